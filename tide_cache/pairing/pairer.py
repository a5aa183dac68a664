"""Chat rows to samples as both tokenizers see them, a batch at a time.

A student token is supervised when it lies wholly in the content of an assistant message, when it is the special token
directly after such a content (end of turn), and when it comes after the last message's content, if that message is the
assistant's. A token that straddles the border of prompt and answer is not: it is half prompt.

Shape suffixes: N tokens of the batch, L student tokens of a sample, M teacher tokens, C chunks, S spans, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress

import numpy as np

from tide_cache.config.settings import AlignerName
from tide_cache.pairing.alignment import tokens_within
from tide_cache.pairing.base import Pairer
from tide_cache.pairing.collecting import Collected, Limits, teacher_fault
from tide_cache.pairing.contents import SpanAligner, align_at_bytes, align_contents
from tide_cache.pairing.rendered import Rendered, RenderError
from tide_cache.pairing.report import Dropped, PairedRows
from tide_cache.pairing.streams import TokenStream
from tide_cache.pairing.tokenizer import TextTokenizer, shared_vocab_size
from tide_cache.pairing.tokenkit_aligner import TokenkitAligner
from tide_cache.records import Bools, ChatRow, Int32s, SamplePair

NOT_UNICODE = "a content is not valid Unicode (it holds a lone surrogate)"


@dataclass(frozen=True, eq=False)
class SamplePairer(Pairer):
    """Pairs conversations; `aligner` says what cuts contents into chunks.

    Raises:
        RunFileError: The aligner is not installed, or not the right one.
    """

    aligner: AlignerName = "bytes"

    def __post_init__(self) -> None:
        _ = self._align  # a missing aligner is refused before any row is read

    @cached_property
    def _align(self) -> SpanAligner:
        return TokenkitAligner() if self.aligner == "tokenkit" else align_at_bytes

    @cached_property
    def _shared_vocab_size(self) -> int:
        return shared_vocab_size(self.teacher, self.student)

    @cached_property
    def _reads_alike(self) -> bool:
        return self.teacher.reads_like(self.student)

    def pair(self, row: ChatRow) -> SamplePair | Dropped:
        """Pair one row; `pair_many` is faster.

        Args:
            row: A conversation.
        """
        result = self.pair_many([row])
        return result.pairs[0] if result.pairs else result.dropped[0]

    def pair_many(self, rows: Sequence[ChatRow]) -> PairedRows:
        """Pair rows, in their order.

        Where both sides have the same text and the same tokens, every token is its own chunk, those of the template
        and the filled ones too, so that the end of text is distilled as well. Otherwise chunks come from the contents
        of the messages, and only the student is filled.

        Args:
            rows: Conversations.
        """
        tokenizers = [self.student] if self._reads_alike else [self.student, self.teacher]
        usable, rendered, unusable = _rendered(rows, tokenizers)
        student = TokenStream(rendered[0], self.student)
        teacher = student if self._reads_alike else TokenStream(rendered[1], self.teacher)
        is_supervised_N = _supervised(usable, student, self.student.is_special_V)
        is_same = [self._is_same(teacher, student, text) for text in range(len(usable))]
        others = [text for text in range(len(usable)) if not is_same[text]]
        contents = align_contents(teacher, student, others, self._align)
        collected = Collected()
        for row, text in _numbered(rows, unusable, collected):
            collected.note_unwritten(name for side in rendered for name in side[text].unwritten)
            whole = SamplePair(
                row.sample_id,
                student.ids_of(text),
                is_supervised_N[student.token_offsets[text] : student.token_offsets[text + 1]],
                teacher.ids_of(text),
                contents.chunks_of(text),
            )
            if (reason := teacher_fault(whole, self.teacher.mask_id)) is not None:
                collected.drop(row.sample_id, reason)
            else:
                cut = self.limits.cut_same if is_same[text] else self.limits.cut
                collected.add(whole, cut(whole), self.student.mask_id, contents.counts.get(text))
        return collected.result()

    def _is_same(self, teacher: TokenStream, student: TokenStream, text: int) -> bool:
        if teacher.rendered[text].text != student.rendered[text].text:
            return False
        ids_L = student.ids_of(text)
        is_shared = self.teacher.eos_id == self.student.eos_id < self._shared_vocab_size
        return (
            is_shared and np.array_equal(teacher.ids_of(text), ids_L) and bool((ids_L < self._shared_vocab_size).all())
        )


def encode_student(
    rows: Sequence[ChatRow], student: TextTokenizer, *, max_length: int, block_size: int, fill_last_block: bool
) -> PairedRows:
    """Tokenize rows for training without a teacher: no teacher tokens, no chunks, otherwise as `SamplePairer` does.

    Args:
        rows: Conversations.
        student: The student's tokenizer.
        max_length: Longest sequence, in tokens.
        block_size: Tokens per block.
        fill_last_block: Fill the last block with supervised end-of-text tokens.
    """
    usable, rendered, unusable = _rendered(rows, [student])
    stream = TokenStream(rendered[0], student)
    is_supervised_N = _supervised(usable, stream, student.is_special_V)
    limits = Limits(0, max_length, block_size if fill_last_block else 1, student.eos_id)
    collected = Collected()
    for row, text in _numbered(rows, unusable, collected):
        collected.note_unwritten(rendered[0][text].unwritten)
        is_supervised_L = is_supervised_N[stream.token_offsets[text] : stream.token_offsets[text + 1]]
        whole = SamplePair(row.sample_id, stream.ids_of(text), is_supervised_L, _NO_IDS, _NO_CHUNKS)
        collected.add(whole, limits.cut(whole), student.mask_id)
    return collected.result()


_NO_IDS: Int32s = np.zeros(0, np.int32)
_NO_CHUNKS: Int32s = np.zeros((0, 4), np.int32)


def _rendered(
    rows: Sequence[ChatRow], tokenizers: Sequence[TextTokenizer]
) -> tuple[list[ChatRow], list[list[Rendered]], dict[int, tuple[str, str]]]:
    """Render rows for each side.

    Returns:
        The rows that every side can render, as each of them does, and of the others, by number, reason and fault.
    """
    unusable = {number: (NOT_UNICODE, "") for number, row in enumerate(rows) if not _is_unicode(row)}
    tried = [number for number in range(len(rows)) if number not in unusable]
    sides = [tokenizer.try_render([rows[number] for number in tried]) for tokenizer in tokenizers]
    for number, results in zip(tried, zip(*sides, strict=True), strict=True):
        if errors := [result for result in results if isinstance(result, RenderError)]:
            # a fault that makes the row bad takes precedence over one that only leaves it out
            error = next((error for error in errors if error.is_strict), errors[0])
            unusable[number] = error.reason, f"{rows[number].origin}: {error}" if error.is_strict else ""
    is_kept = [number not in unusable for number in tried]
    kept = [[r for r in side if isinstance(r, Rendered)] for side in ([*compress(s, is_kept)] for s in sides)]
    return [rows[number] for number in compress(tried, is_kept)], kept, unusable


def _numbered(
    rows: Sequence[ChatRow], unusable: Mapping[int, tuple[str, str]], collected: Collected
) -> Iterator[tuple[ChatRow, int]]:
    """Yield the usable rows with the numbers of their texts; drop the others on the way."""
    text = 0
    for number, row in enumerate(rows):
        if number in unusable:
            collected.drop(row.sample_id, *unusable[number])
        else:
            yield row, text
            text += 1


def _is_unicode(row: ChatRow) -> bool:
    try:
        for message in row.messages:
            message.content.encode()
    except UnicodeEncodeError:
        return False
    return True


def _supervised(rows: Sequence[ChatRow], stream: TokenStream, is_special_V: Bools) -> Bools:
    """Mark the tokens to learn, of all texts of a stream; the rules are in the module's docstring."""
    spans, texts, is_final = [], [], []
    for text, row in enumerate(rows):
        for k, message in enumerate(row.messages):
            chars = stream.rendered[text].answer(k)
            if message.role == "assistant" and message.is_learnt and chars is not None:
                spans.append(stream.byte_range(text, chars))
                texts.append(text)
                is_final.append(k + 1 == len(row.messages))
    spans_S2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
    first_S, stop_S = tokens_within(stream.ends_N, spans_S2)
    text_stop_S = stream.token_offsets[np.array(texts, dtype=np.int64) + 1]
    next_id_S = np.append(stream.ids_N, 0)[stop_S]
    next_start_S = np.concatenate([[0], stream.ends_N])[stop_S]
    is_end_of_turn_S = (stop_S < text_stop_S) & (next_start_S >= spans_S2[:, 1]) & is_special_V[next_id_S]
    stop_S = np.where(np.array(is_final, dtype=bool), text_stop_S, stop_S + is_end_of_turn_S)
    has_token_S = stop_S > first_S
    steps_N = np.zeros(len(stream.ids_N) + 1, np.int32)
    np.add.at(steps_N, first_S[has_token_S], 1)
    np.add.at(steps_N, stop_S[has_token_S], -1)
    result: Bools = np.cumsum(steps_N[:-1]) > 0
    return result
