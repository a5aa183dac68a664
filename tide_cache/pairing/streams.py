"""The texts of a batch as one side sees them, tokens and bytes concatenated so that numpy can work on all at once.

Shape suffixes: N tokens of the batch, D texts, S spans.
"""

from collections.abc import Sequence

import numpy as np

from tide_cache.arrays import sums_before
from tide_cache.pairing.alignment import Ints, tokens_within
from tide_cache.pairing.rendered import CharRange, Rendered
from tide_cache.pairing.tokenizer import TextTokenizer
from tide_cache.records import Int32s


class TokenStream:
    """Rendered and tokenized rows of one side.

    Attributes:
        rendered: The rows as text.
        ids_N: Tokens of all texts.
        ends_N: Byte at which each token ends, in the concatenation of all texts.
        token_offsets: First token of each text, and the number of tokens: D + 1 numbers.
        byte_offsets: First byte of each text, and the number of bytes.
    """

    def __init__(self, rendered: Sequence[Rendered], tokenizer: TextTokenizer) -> None:
        """Tokenize.

        Args:
            rendered: Conversations of valid Unicode, as this side's template writes them.
            tokenizer: Tokenizer of this side.
        """
        self.rendered = rendered
        encoded = tokenizer.encode_many([rendered.text for rendered in self.rendered])
        self._data = [rendered.text.encode() for rendered in self.rendered]
        self._token_bytes = tokenizer.token_bytes
        self._is_exact = [e.is_exact for e in encoded]
        self.token_offsets = sums_before([len(e.ids_L) for e in encoded])
        self.byte_offsets = sums_before([len(data) for data in self._data])
        bases_N = np.repeat(self.byte_offsets[:-1], np.diff(self.token_offsets))
        self.ids_N: Int32s = np.concatenate([np.zeros(0, np.int32), *(e.ids_L for e in encoded)])
        self.ends_N: Ints = np.concatenate([np.zeros(0, np.int64), *(e.byte_ends_L for e in encoded)]) + bases_N

    def ids_of(self, text: int) -> Int32s:
        """Return the tokens of one text."""
        ids: Int32s = self.ids_N[self.token_offsets[text] : self.token_offsets[text + 1]]
        return ids

    def byte_range(self, text: int, chars: CharRange) -> tuple[int, int]:
        """Turn a character range of one text into a byte range of the stream."""
        base, string = int(self.byte_offsets[text]), self.rendered[text].text
        if len(string) == len(self._data[text]):
            return base + chars[0], base + chars[1]
        start = base + len(string[: chars[0]].encode())
        return start, start + len(string[chars[0] : chars[1]].encode())

    def bytes_in(self, start: int, stop: int) -> bytes:
        """Return the bytes of the stream in a range that lies in one text."""
        text = int(np.searchsorted(self.byte_offsets, start, side="right")) - 1
        base = int(self.byte_offsets[text])
        return self._data[text][start - base : stop - base]

    def settle(self, text: int, span: tuple[int, int]) -> bool:
        """Make the byte ends of a span's tokens exact where the text as a whole is not.

        Changes `ends_N` inside the span, when the bytes of the tokens there are the bytes of the text, or those after
        a space put before them (SentencePiece writes one at the start of a text).

        Args:
            text: The text that the span is in.
            span: Byte range in the stream.

        Returns:
            False when the ends are only good to the character and the bytes may differ.
        """
        if self._is_exact[text]:
            return True
        (first,), (stop,) = tokens_within(self.ends_N, np.array([span]))
        if stop <= first:
            return True
        base = int(self.byte_offsets[text])
        start = int(self.ends_N[first - 1]) if first > 0 else 0
        data = self._data[text][start - base : int(self.ends_N[stop - 1]) - base]
        spelled = self._token_bytes.join(self.ids_N[first:stop].tolist())
        num_extra = len(spelled) - len(data)
        if spelled != data and (num_extra != 1 or spelled != b" " + data):
            return False
        self.ends_N[first:stop] = start + self._token_bytes.ends(self.ids_N[first:stop]) - num_extra
        return True

    def spelled(self, first: int, stop: int) -> bytes:
        """Return the bytes that the tokens `first` to `stop` of the stream stand for."""
        return self._token_bytes.join(self.ids_N[first:stop].tolist())
