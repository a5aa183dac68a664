"""Which bytes of a text each token covers: exactly where the vocabulary spells bytes, else from character offsets.

Chunks are cut at byte boundaries, so a wrong boundary would tie wrong tokens together. Exact boundaries are therefore
believed only when the tokens' bytes, joined, are the text; everything else is marked as not exact and checked later.

Shape suffixes: L tokens of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import sums_before
from tide_cache.records import Int32s


@dataclass(frozen=True, eq=False)
class Encoded:
    """One text as tokens.

    Attributes:
        ids_L: Token ids, int32.
        byte_ends_L: Position in the text's UTF-8 bytes at which each token ends, int64, never decreasing. A token
            starts where the one before it ends.
        is_exact: The tokens' bytes, joined, are the text's. Otherwise the ends come from character offsets: tokens
            that share a character all end after it, and a normaliser may have changed what the bytes are.
    """

    ids_L: Int32s
    byte_ends_L: npt.NDArray[np.int64]
    is_exact: bool


class TokenBytes:
    """The bytes that each token of a vocabulary stands for."""

    def __init__(self, tokens: Sequence[str | None], is_added: npt.NDArray[np.bool_], is_byte_level: bool) -> None:
        """Spell every token.

        Args:
            tokens: The vocabulary's token strings by id; None where an id has no token.
            is_added: Added tokens, which stand for their literal text.
            is_byte_level: GPT-2's byte alphabet; otherwise SentencePiece's: `▁` is a space, `<0xFF>` one byte.
        """
        spell = _spell_byte_level if is_byte_level else _spell_sentencepiece
        self._by_id = [
            b"" if token is None else token.encode() if added else spell(token)
            for token, added in zip(tokens, is_added.tolist(), strict=True)
        ]
        self._lengths = np.fromiter(map(len, self._by_id), np.int64, len(self._by_id))

    def of(self, token_id: int) -> bytes:
        """Return the bytes of a token; none for an id beyond the vocabulary."""
        return self._by_id[token_id] if token_id < len(self._by_id) else b""

    def join(self, ids: Sequence[int]) -> bytes:
        """Concatenate the bytes of the tokens."""
        return b"".join(map(self._by_id.__getitem__, ids))

    def ends(self, ids: Int32s) -> npt.NDArray[np.int64]:
        """Return the byte position at which each token ends."""
        return np.cumsum(self._lengths[ids])


def ends_by_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Turn character offsets into byte ends, without a boundary inside a character.

    A character that no token claims (a combining mark composed away) belongs to the token before it.

    Args:
        text: The text that the offsets point into.
        offsets: Start and end of each token in characters.

    Returns:
        Position in the text's UTF-8 bytes at which each token ends, never decreasing; the last is the text's end.
    """
    if not offsets:
        return np.zeros(0, np.int64)
    starts, ends = np.array(offsets, dtype=np.int64).T
    next_starts = np.append(starts[1:], len(text))
    boundaries = np.where(next_starts >= ends, next_starts, len(text))
    char_ends = np.minimum.accumulate(boundaries[::-1])[::-1]
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    byte_at_char = sums_before(1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))
    result: npt.NDArray[np.int64] = byte_at_char[char_ends]
    return result


def _byte_alphabet() -> dict[int, str]:
    """Map GPT-2's printable stand-ins to the Latin-1 characters of the bytes they stand for."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = printable + [256 + n for n in range(len(others))]
    return {code: chr(byte) for code, byte in zip(codes, printable + others, strict=True)}


_BYTE_ALPHABET = _byte_alphabet()
_PRINTABLE_OF = {ord(character): chr(code) for code, character in _BYTE_ALPHABET.items()}
_ONE_BYTE = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


def spell_printable(data: bytes) -> str:
    """Write bytes as a byte-level vocabulary does: one printable character each."""
    return data.decode("latin-1").translate(_PRINTABLE_OF)


def _spell_byte_level(token: str) -> bytes:
    try:
        return token.translate(_BYTE_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _spell_sentencepiece(token: str) -> bytes:
    return _ONE_BYTE.get(token) or token.replace("▁", " ").encode()
