"""Views of several samples as one long view, so that they take a few array operations, not a few per sample.

A row group holds its views so already. Shape suffixes as in `tide_cache.records`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Int64s, Ints, ranges, sums_before
from tide_cache.records import Bools, Int32s, TeacherSignal, ViewRecord, distillable_chunks
from tide_cache.shards import Array, Columns, masks_of, ragged, scalars
from tide_cache.signal_table import NESTED, PARTS, Rule, Temperatures, at_temperatures, concat, from_columns


@dataclass(frozen=True, eq=False)
class JoinedViews:
    """Views of several samples, concatenated. This is not a view itself: it has no id.

    Student tokens, teacher tokens, chunks and masked teacher positions are numbered consecutively.

    Attributes:
        number_B: Number of each view.
        t_B: Its diffusion time.
        token_start_B: First student token of each view, then the number of all.
        student_ids_L: As in `SamplePair`.
        is_supervised_L: As in `SamplePair`.
        is_student_masked_L: As in `MaskedView`.
        teacher_ids_M: As in `SamplePair`.
        is_teacher_masked_M: As in `MaskedView`.
        chunks_C4: As in `SamplePair`.
        signal: The teacher's signals for all of them; masked positions and chunks are numbered as here.
    """

    number_B: npt.NDArray[np.int32]
    t_B: npt.NDArray[np.float64]
    token_start_B: Int64s
    student_ids_L: Int32s
    is_supervised_L: Bools
    is_student_masked_L: Bools
    teacher_ids_M: Int32s
    is_teacher_masked_M: Bools
    chunks_C4: Int32s
    signal: TeacherSignal | None

    @cached_property
    def rows_before_L(self) -> Int64s:
        """Number of masked student tokens before each, and of all."""
        return sums_before(self.is_student_masked_L)

    @cached_property
    def positions_before_M(self) -> Int64s:
        """Number of masked teacher tokens before each, and of all."""
        return sums_before(self.is_teacher_masked_M)


@dataclass(frozen=True, eq=False)
class ActiveChunks:
    """The chunks of joined views that have a loss; without a teacher there are none.

    Attributes:
        is_active_C: Which of all chunks they are.
        spans_A4: Their spans, as in `SamplePair`.
        first_row_A: Number of the first of their masked rows; the others follow it.
    """

    is_active_C: Bools
    spans_A4: Int32s
    first_row_A: npt.NDArray[np.int64]

    @classmethod
    def of(cls, joined: JoinedViews) -> Self:
        """Find the active chunks of joined views."""
        before_C2 = joined.rows_before_L[joined.chunks_C4[:, 2:]]
        is_active_C = before_C2[:, 1] > before_C2[:, 0]
        is_active_C &= distillable_chunks(joined.chunks_C4, joined.is_supervised_L) & (joined.signal is not None)
        spans_A4 = joined.chunks_C4[is_active_C]
        return cls(is_active_C, spans_A4, before_C2[is_active_C, 0])

    @property
    def size_A(self) -> npt.NDArray[np.int64]:
        """Number of student tokens of each chunk."""
        return (self.spans_A4[:, 3] - self.spans_A4[:, 2]).astype(np.int64)

    def chunk_of_row(self, num_rows: int) -> npt.NDArray[np.int64]:
        """Return the active chunk of each masked row, -1 for none."""
        chunk_N = np.full(num_rows, -1, np.int64)
        size_A = self.size_A
        chunk_N[ranges(self.first_row_A, size_A)] = np.repeat(np.arange(len(size_A)), size_A)
        return chunk_N

    def teacher_logprobs(self, joined: JoinedViews) -> npt.NDArray[np.float64]:
        """Return the sum of the teacher's log-probs of each chunk's true tokens; the same in any batch."""
        if joined.signal is None or not len(self.spans_A4):
            return np.zeros(0)
        position_A2 = joined.positions_before_M[self.spans_A4[:, :2]]
        truth = np.append(joined.signal.truth_logprobs_N.astype(np.float64), 0)  # so that a last end lies inside
        result: npt.NDArray[np.float64] = np.add.reduceat(truth, position_A2.ravel())[::2]
        return result


def join_views(records: Sequence[ViewRecord], own: Temperatures, wanted: Temperatures) -> JoinedViews:
    """Concatenate views.

    Args:
        records: At least one, all with signals or all without.
        own: Temperatures of the records.
        wanted: Temperatures of the result; tails and partitions that the records lack are nan, so that they cannot
            enter a loss unnoticed.
    """
    pairs, views = [record.pair for record in records], [record.view for record in records]
    signals = [record.signal for record in records if record.signal is not None]
    assert len(signals) in (0, len(records)), "views with a signal and views without one"
    teacher_start_B = sums_before([len(pair.teacher_ids_M) for pair in pairs])
    student_start_B = sums_before([len(pair.student_ids_L) for pair in pairs])
    chunk_start_B = sums_before([len(pair.chunks_C4) for pair in pairs])
    is_teacher_masked_M = np.concatenate([view.is_teacher_masked_M for view in views])
    first: dict[Rule, list[int]] = {
        "masked position": sums_before(is_teacher_masked_M)[teacher_start_B[:-1]].tolist(),
        "masked token": sums_before([int(view.is_student_masked_L.sum()) for view in views])[:-1].tolist(),
        "chunk": chunk_start_B[:-1].tolist(),
    }
    return JoinedViews(
        number_B=np.array([view.view for view in views], np.int32),
        t_B=np.array([view.t for view in views]),
        token_start_B=student_start_B,
        student_ids_L=np.concatenate([pair.student_ids_L for pair in pairs]),
        is_supervised_L=np.concatenate([pair.is_supervised_L for pair in pairs]),
        is_student_masked_L=np.concatenate([view.is_student_masked_L for view in views]),
        teacher_ids_M=np.concatenate([pair.teacher_ids_M for pair in pairs]),
        is_teacher_masked_M=is_teacher_masked_M,
        chunks_C4=_numbered_through(
            np.concatenate([pair.chunks_C4 for pair in pairs]), chunk_start_B, teacher_start_B, student_start_B
        ),
        signal=_at(concat(signals, first), own, wanted) if signals else None,
    )


def join_columns(pairs: Columns, signals: Columns, own: Temperatures, wanted: Temperatures) -> JoinedViews:
    """Return the views of a row group; nothing is copied that is laid out as it is stored.

    Args:
        pairs: Columns of the samples.
        signals: Columns of one view of each.
        own: Temperatures that are stored.
        wanted: As for `join_views`.
    """
    students, teachers, chunks = (ragged(pairs, name) for name in ("student_ids", "teacher_ids", "chunks"))
    rows, positions = ragged(signals, "student_masked"), ragged(signals, "teacher_masked")
    chunk_start_S = chunks.offsets // 4
    first: dict[Rule, Int32s] = {
        "masked position": positions.offsets[:-1],
        "masked token": rows.offsets[:-1],
        "chunk": chunk_start_S[:-1],
    }
    said = from_columns(TeacherSignal, _values(signals, first), len(own))
    assert said is not None, "a row group of a pass has signals"
    return JoinedViews(
        number_B=scalars(signals, "view"),
        t_B=scalars(signals, "t"),
        token_start_B=students.offsets.astype(np.int64),
        student_ids_L=students.values,
        is_supervised_L=ragged(pairs, "is_supervised").values,
        is_student_masked_L=masks_of(rows, students.lengths).values,
        teacher_ids_M=teachers.values,
        is_teacher_masked_M=masks_of(positions, teachers.lengths).values,
        chunks_C4=_numbered_through(chunks.values.reshape(-1, 4), chunk_start_S, teachers.offsets, students.offsets),
        signal=_at(said, own, wanted),
    )


def _values(signals: Columns, first: Mapping[Rule, Int32s]) -> dict[str, Array]:
    """Return the values of the columns of signals; those that count within their view count through all."""
    result = {}
    for field in (field for part in PARTS for field in part.fields if field.column in signals):
        column = ragged(signals, field.column)
        result[field.column] = column.values
        if (first_S := first.get(field.rule)) is not None:
            result[field.column] = column.values + np.repeat(first_S, column.lengths)
    return result


def _numbered_through(chunks_C4: Int32s, chunk_start_B: Ints, teacher_start_B: Ints, student_start_B: Ints) -> Int32s:
    """Return the spans of chunks in tokens that are numbered through all views."""
    shift_B4 = np.stack([teacher_start_B, teacher_start_B, student_start_B, student_start_B], axis=1)[:-1]
    result: Int32s = chunks_C4 + np.repeat(shift_B4.astype(np.int32), np.diff(chunk_start_B), axis=0)
    return result


def _at(signal: TeacherSignal, own: Temperatures, wanted: Temperatures) -> TeacherSignal:
    """Return the signal with tails and partitions at other temperatures."""
    if own == wanted:
        return signal
    nested = {name: getattr(signal, name) for name in NESTED[TeacherSignal]}
    return replace(
        signal, **{name: at_temperatures(lists, own, wanted) for name, lists in nested.items() if lists is not None}
    )
