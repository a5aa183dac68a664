"""Rows of preprocessed sets to samples: no text, no template, no tokenising; every span is checked against the bytes.

What a set says to be the same text was found by searching, which can point at the prompt or at a template's own words,
and was not cut where the student's tokens were cut (docs/run-files.md lists the known faults). So of each span only
what the tokens of both sides spell alike is cut into chunks, as for conversations. A span without a supervised
student token is passed over, since it can never be masked. A span is dropped, and counted, when

- it starts before the end of an earlier one, on either side (a repeated position, or padding);
- its teacher tokens are missing, or are all without a label where the student's have one: it points at the prompt;
- the two sides spell different bytes, apart from ASCII whitespace at its ends, which templates merge into tokens.

Shape suffixes: N tokens of the batch, L student tokens of a sample, M teacher tokens, P spans of a row, S spans of the
batch, C chunks.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tide_cache.arrays import sums_before
from tide_cache.pairing.alignment import Ints, align_spans
from tide_cache.pairing.base import Pairer
from tide_cache.pairing.collecting import Collected, teacher_fault
from tide_cache.pairing.encoding import TokenBytes
from tide_cache.pairing.report import PairedRows
from tide_cache.records import Int32s, PreprocessedRow, SamplePair

DISCARDED = "marked _discard in the preprocessed set"


class PreprocessedPairer(Pairer):
    """Makes samples of rows that are already tokenised, each side by the tokenizer that is given for it."""

    def pair_many(self, rows: Sequence[PreprocessedRow]) -> PairedRows:
        """Make samples, in the order of the rows.

        Args:
            rows: Rows whose ids are all within the vocabularies.
        """
        teacher = _Side([row.teacher_ids_M for row in rows], self.teacher.token_bytes)
        student = _Side([row.student_ids_L for row in rows], self.student.token_bytes)
        spans = [_ordered(row) for row in rows]
        num_dropped = [dropped for _, dropped in spans]
        found: list[tuple[int, int, int, int]] = []
        row_S: list[int] = []
        for number, (spans_P4, _) in enumerate(spans):
            for span in spans_P4.tolist():
                if (alike := _alike(teacher, student, number, span)) is not None:
                    found.append(alike)
                    row_S.append(number)
                else:
                    num_dropped[number] += 1
        spans_S4 = np.array(found, dtype=np.int64).reshape(-1, 4)
        chunks_C4, span_C = align_spans(teacher.ends_N, student.ends_N, spans_S4[:, :2], spans_S4[:, 2:])
        for span in np.flatnonzero(np.bincount(span_C, minlength=len(spans_S4)) == 0):
            num_dropped[row_S[span]] += 1  # its tokens share no boundary with the other side's
        row_C = np.array(row_S, dtype=np.int64)[span_C]
        bounds = np.searchsorted(row_C, np.arange(len(rows) + 1))
        collected = Collected()
        for number, row in enumerate(rows):
            of_row_C4 = chunks_C4[bounds[number] : bounds[number + 1]]
            base = np.array([teacher.offsets[number]] * 2 + [student.offsets[number]] * 2, np.int32)
            whole = SamplePair(
                row.sample_id, row.student_ids_L, row.is_supervised_L, row.teacher_ids_M, of_row_C4 - base
            )
            if row.is_discarded:
                collected.drop(row.sample_id, DISCARDED)
            elif (reason := teacher_fault(whole, self.teacher.mask_id)) is not None:
                collected.drop(row.sample_id, reason)
            else:
                counts = Counter(spans_dropped=num_dropped[number])
                collected.add(whole, self.limits.cut(whole), self.student.mask_id, counts)
        return collected.result()


class _Side:
    """The tokens of one side of a batch, concatenated.

    Attributes:
        offsets: First token of each row, and the number of tokens.
        ends_N: Byte at which each token ends.
    """

    def __init__(self, ids: Sequence[Int32s], token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._ids = [ids_N.tolist() for ids_N in ids]
        self.offsets = sums_before([len(ids_N) for ids_N in ids])
        self.ends_N: Ints = token_bytes.ends(np.concatenate([np.zeros(0, np.int32), *ids]))

    def spelled(self, row: int, start: int, end: int) -> tuple[int, bytes, bool]:
        """Return where some tokens of a row start, their bytes, and whether there are fewer than asked for."""
        first = int(self.offsets[row]) + start
        data = self._token_bytes.join(self._ids[row][start:end])
        return int(self.ends_N[first - 1]) if first else 0, data, end > len(self._ids[row])


def _ordered(row: PreprocessedRow) -> tuple[Int32s, int]:
    """Return the spans that may hold chunks, in order and disjoint on both sides, and how many were dropped."""
    num_supervised_L = sums_before(row.is_supervised_L)
    num_labelled_M = sums_before(row.is_teacher_labelled_M)
    student_P2 = np.minimum(row.spans_P4[:, 2:], len(row.student_ids_L))
    teacher_P2 = np.minimum(row.spans_P4[:, :2], len(row.teacher_ids_M))
    has_supervised_P = num_supervised_L[student_P2[:, 1]] > num_supervised_L[student_P2[:, 0]]
    has_labelled_P = num_labelled_M[teacher_P2[:, 1]] > num_labelled_M[teacher_P2[:, 0]]
    candidates_P4 = row.spans_P4[has_supervised_P & has_labelled_P]
    candidates_P4 = candidates_P4[np.lexsort((candidates_P4[:, 0], candidates_P4[:, 2]))]
    kept, teacher_end, student_end = [], 0, 0
    for number, (teacher_start, next_teacher_end, student_start, next_student_end) in enumerate(candidates_P4.tolist()):
        if teacher_start >= teacher_end and student_start >= student_end:
            kept.append(number)
            teacher_end, student_end = next_teacher_end, next_student_end
    return candidates_P4[kept], int(has_supervised_P.sum()) - len(kept)


def _alike(
    teacher: _Side, student: _Side, row: int, span: tuple[int, int, int, int]
) -> tuple[int, int, int, int] | None:
    """Return the byte ranges, in the two sides, of what both spell alike of a span; None when they differ.

    Whitespace at the start is left out where only one side has it in the same tokens. The text may go on on one side
    where the other side's tokens were cut off, else only whitespace may.
    """
    teacher_at, teacher_bytes, is_teacher_cut = teacher.spelled(row, span[0], span[1])
    student_at, student_bytes, is_student_cut = student.spelled(row, span[2], span[3])
    for one, other in ((teacher_bytes, student_bytes), (teacher_bytes.lstrip(), student_bytes.lstrip())):
        size = min(len(one), len(other))
        is_whole = (is_student_cut or not one[size:].strip()) and (is_teacher_cut or not other[size:].strip())
        if size and one[:size] == other[:size] and is_whole:
            teacher_start = teacher_at + len(teacher_bytes) - len(one)
            student_start = student_at + len(student_bytes) - len(other)
            return teacher_start, teacher_start + size, student_start, student_start + size
    return None
