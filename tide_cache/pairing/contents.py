"""Chunks between two differently rendered texts: the k-th content of one side is the k-th content of the other.

Where a tokenizer's normaliser changed the bytes, boundaries are only good to the character; chunks there count only if
both sides spell the same after Unicode normalisation. A wrong chunk would teach one token by another.

Shape suffixes: S spans, C chunks.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tide_cache.pairing.alignment import Ints, align_spans
from tide_cache.pairing.rendered import CharRange
from tide_cache.pairing.streams import TokenStream
from tide_cache.records import Bools, Int32s

SpanAligner = Callable[[TokenStream, TokenStream, Ints, Ints], tuple[Int32s, Ints, Ints]]


@dataclass(frozen=True, eq=False)
class AlignedContents:
    """The chunks of a batch, and counts about the contents.

    Attributes:
        chunks_C4: Chunks in token numbers of their own texts, in the order of the texts.
        offsets: First chunk of each text, and the number of chunks.
        counts: Numbers of `PairingReport`, by name and text.
    """

    chunks_C4: Int32s
    offsets: Ints
    counts: Mapping[int, Counter[str]]

    def chunks_of(self, text: int) -> Int32s:
        """Return the chunks of one text."""
        chunks: Int32s = self.chunks_C4[self.offsets[text] : self.offsets[text + 1]]
        return chunks


def align_at_bytes(
    teacher: TokenStream, student: TokenStream, teacher_spans_S2: Ints, student_spans_S2: Ints
) -> tuple[Int32s, Ints, Ints]:
    """Align spans by `align_spans`, whose chunks are right by construction: none of any span is dropped."""
    chunks_C4, span_C = align_spans(teacher.ends_N, student.ends_N, teacher_spans_S2, student_spans_S2)
    return chunks_C4, span_C, np.zeros(len(student_spans_S2), np.int64)


def align_contents(
    teacher: TokenStream, student: TokenStream, texts: Sequence[int], align: SpanAligner = align_at_bytes
) -> AlignedContents:
    """Align the contents of some texts of a batch.

    Args:
        teacher: The batch as the teacher sees it.
        student: The same rows as the student sees them.
        texts: Numbers of the texts to align, increasing; the others get no chunks.
        align: Aligns spans; returns the chunks, the span of each, and how many of each span it had to drop.
    """
    counts: dict[int, Counter[str]] = {text: Counter() for text in texts}
    spans: list[tuple[int, int, int, int]] = []
    text_S: list[int] = []
    is_exact_S: list[bool] = []
    for text in texts:
        for teacher_chars, student_chars in _content_pairs(teacher, student, text, counts[text]):
            teacher_span, student_span = (
                teacher.byte_range(text, teacher_chars),
                student.byte_range(text, student_chars),
            )
            exact = (teacher.settle(text, teacher_span), student.settle(text, student_span))
            spans.append((*teacher_span, *student_span))
            text_S.append(text)
            is_exact_S.append(all(exact))
    spans_S4 = np.array(spans, dtype=np.int64).reshape(-1, 4)
    chunks_C4, span_C, num_rejected_S = align(teacher, student, spans_S4[:, :2], spans_S4[:, 2:])
    for span in np.flatnonzero(num_rejected_S):
        counts[text_S[span]]["chunks_rejected"] += int(num_rejected_S[span])
    text_C = np.array(text_S, dtype=np.int64)[span_C]
    is_kept_C = np.ones(len(span_C), bool)
    for span in np.flatnonzero(~np.array(is_exact_S, dtype=bool)):
        first, stop = np.searchsorted(span_C, [span, span + 1])
        is_kept_C[first:stop] = agrees = _spell_the_same(teacher, student, chunks_C4[first:stop])
        counts[text_S[span]].update(_outcome(agrees))
    chunks_C4 = chunks_C4 - np.repeat(
        np.stack([teacher.token_offsets[text_C], student.token_offsets[text_C]], axis=1), 2, axis=1
    ).astype(np.int32)
    offsets = np.searchsorted(text_C[is_kept_C], np.arange(len(student.rendered) + 1))
    return AlignedContents(chunks_C4[is_kept_C], offsets, counts)


def _content_pairs(
    teacher: TokenStream, student: TokenStream, text: int, counts: Counter[str]
) -> Iterator[tuple[CharRange, CharRange]]:
    """Yield the character ranges of the contents that both sides have in common, in the student's order."""
    sides = (teacher.rendered[text], student.rendered[text])
    both = [
        (t, s) for t, s in zip(sides[0].contents, sides[1].contents, strict=True) if t is not None and s is not None
    ]
    teacher_end = 0
    for teacher_chars, student_chars in sorted(both, key=lambda pair: pair[1]):
        ranges = (teacher_chars, student_chars)
        if sides[0].text[slice(*teacher_chars)] != sides[1].text[slice(*student_chars)]:
            ranges = (_stripped(sides[0].text, teacher_chars), _stripped(sides[1].text, student_chars))
        is_alike = sides[0].text[slice(*ranges[0])] == sides[1].text[slice(*ranges[1])]
        if not is_alike or ranges[0][0] < teacher_end:
            counts["spans_dropped"] += 1
            continue
        teacher_end = ranges[0][1]
        yield ranges


def _stripped(text: str, chars: CharRange) -> CharRange:
    content = text[slice(*chars)]
    start = chars[0] + len(content) - len(content.lstrip())
    return start, start + len(content.strip())


def _spell_the_same(teacher: TokenStream, student: TokenStream, chunks_C4: Int32s) -> Bools:
    return np.array(
        [_normalised(teacher.spelled(a, b)) == _normalised(student.spelled(c, d)) for a, b, c, d in chunks_C4.tolist()],
        dtype=bool,
    )


def _normalised(spelled: bytes) -> str | bytes:
    try:
        return unicodedata.normalize("NFC", spelled.decode())
    except UnicodeDecodeError:
        return spelled


def _outcome(agrees_C: Bools) -> dict[str, int]:
    name = "spans_resynchronised" if agrees_C.any() else "spans_dropped"
    return {name: 1, "chunks_rejected": int((~agrees_C).sum())}
