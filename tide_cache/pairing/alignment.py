"""Where two tokenizations of the same bytes agree: pure numpy, for one span or for the spans of a whole batch.

A chunk is a minimal run of tokens between two byte boundaries that both sides share. Spans of many samples are aligned
in one call, because per-token Python would cost more than the tokenizers themselves.

Shape suffixes: N boundaries or tokens of one side, S spans, C chunks.
"""

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import ranges, sums_before
from tide_cache.records import Int32s

Ints = npt.NDArray[np.int64]


def align_bytes(teacher_ends: npt.ArrayLike, student_ends: npt.ArrayLike) -> Int32s:
    """Cut the tokens of both sides into the smallest chunks that cover the same bytes.

    Several tokens may end at the same byte (tokens of no bytes): a chunk takes all of them, and tokens of no bytes at
    the start belong to the first chunk, so the chunks partition the tokens up to the last shared boundary. That is
    all tokens when both sides have the same number of bytes.

    Args:
        teacher_ends: Byte position at which each teacher token ends, from the start of the span; never decreasing.
        student_ends: The same for the student.

    Returns:
        Rows (teacher_start, teacher_end, student_start, student_end), half-open, increasing, int32, shape (C, 4).
    """
    teacher_at, student_at = _shared_boundaries(_with_start(teacher_ends), _with_start(student_ends))
    teacher_at[0] = student_at[0] = 0
    return _rows(teacher_at, student_at, np.arange(len(teacher_at) - 1))


def tokens_within(ends_N: Ints, spans_S2: Ints) -> tuple[Ints, Ints]:
    """Find the tokens that are wholly inside byte spans.

    A token of no bytes belongs to what lies left of it: inside at the end of a span, outside at its start.

    Args:
        ends_N: Byte position at which each token ends; never decreasing.
        spans_S2: Rows (start, end) in the same positions.

    Returns:
        First token and the one after the last, of each span; equal or crossed when no token lies inside.
    """
    first_S = np.searchsorted(ends_N, spans_S2[:, 0], side="right")
    starts_N = np.concatenate([[0], ends_N])
    first_S = first_S + (starts_N[first_S] < spans_S2[:, 0])
    return first_S, np.searchsorted(ends_N, spans_S2[:, 1], side="right")


def align_spans(
    teacher_ends_N: Ints, student_ends_N: Ints, teacher_spans_S2: Ints, student_spans_S2: Ints
) -> tuple[Int32s, Ints]:
    """Align many spans at once; a token that straddles the edge of a span is in no chunk.

    Args:
        teacher_ends_N: Byte position at which each teacher token of the batch ends, in the concatenation of all texts.
        student_ends_N: The same for the student, in the student's own texts.
        teacher_spans_S2: Byte ranges of the spans on the teacher's side.
        student_spans_S2: The same spans on the student's side: equal bytes, hence equal lengths.

    Returns:
        Chunks in token numbers of the batch, shape (C, 4), in the order of the spans, and the span of each chunk.
    """
    lengths_S = student_spans_S2[:, 1] - student_spans_S2[:, 0]
    bases_S = sums_before(lengths_S + 1)[:-1]
    teacher_N, teacher_token_N, _ = _span_boundaries(teacher_ends_N, teacher_spans_S2, bases_S)
    student_N, student_token_N, counts_S = _span_boundaries(student_ends_N, student_spans_S2, bases_S)
    teacher_at, student_at = _shared_boundaries(teacher_N, student_N)
    span_at = np.repeat(np.arange(len(counts_S)), counts_S)[student_at]
    first_C = np.flatnonzero(span_at[1:] == span_at[:-1])
    return _rows(teacher_token_N[teacher_at], student_token_N[student_at], first_C), span_at[first_C]


def _span_boundaries(ends_N: Ints, spans_S2: Ints, bases_S: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the boundaries of tokens inside each span, moved to `bases_S`: positions, tokens that follow, counts."""
    first_S, stop_S = tokens_within(ends_N, spans_S2)
    counts_S = np.maximum(stop_S - first_S + 1, 0)
    token_N = ranges(first_S, counts_S)
    position_N = np.concatenate([[0], ends_N])[token_N] + np.repeat(bases_S - spans_S2[:, 0], counts_S)
    return position_N, token_N, counts_S


def _shared_boundaries(teacher_N: Ints, student_N: Ints) -> tuple[Ints, Ints]:
    """Return the indices, on either side, of the boundaries that both have; of equal ones the last."""
    size = 1 + max(teacher_N.max(initial=0), student_N.max(initial=0))
    is_teacher, is_student = np.zeros(size, bool), np.zeros(size, bool)
    is_teacher[teacher_N] = True
    is_student[student_N] = True
    teacher_at = np.flatnonzero(is_student[teacher_N] & _is_last_of_equals(teacher_N))
    return teacher_at, np.flatnonzero(is_teacher[student_N] & _is_last_of_equals(student_N))


def _is_last_of_equals(positions_N: Ints) -> npt.NDArray[np.bool_]:
    is_last_N = np.ones(len(positions_N), bool)
    is_last_N[:-1] = positions_N[1:] != positions_N[:-1]
    return is_last_N


def _with_start(ends: npt.ArrayLike) -> Ints:
    return np.concatenate([[0], np.asarray(ends, dtype=np.int64)])


def _rows(teacher_N: Ints, student_N: Ints, first_C: Ints) -> Int32s:
    """Return the chunks between consecutive boundaries, given the first of each two."""
    rows_C4 = np.empty((len(first_C), 4), np.int32)
    rows_C4[:, 0], rows_C4[:, 1] = teacher_N[first_C], teacher_N[first_C + 1]
    rows_C4[:, 2], rows_C4[:, 3] = student_N[first_C], student_N[first_C + 1]
    return rows_C4
