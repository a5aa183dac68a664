"""From signals of masked rows to the signals of views: rows are sorted back, top-k is cut, chunks are spelled.

Shape suffixes as in `tide_cache.records`; n views of a sample, L padded teacher tokens, S chunks of one teacher token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from tide_cache.arrays import sums_before
from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.row_signals import RowSignals
from tide_cache.records import (
    Bools,
    Int32s,
    MaskedView,
    ProjectedTopK,
    SamplePair,
    TailSamples,
    TeacherSignal,
    TopK,
)
from tide_cache.signal_table import take
from tide_cache.teacher.chunks import Speller, chunk_candidates
from tide_cache.teacher.conditional import Batch, hidden_chunks
from tide_cache.teacher.projection import Starts, projected_topk
from tide_cache.teacher.tuples import AskedChunks, ChunkRows, Further

Arrays = dict[str, np.ndarray]
"""`RowSignals` on its way to another process."""


def as_arrays(rows: RowSignals) -> Arrays:
    """Return signals as arrays by name; they share memory."""
    return {field.name: getattr(rows, field.name).numpy() for field in fields(rows)}


def _of_arrays(arrays: Arrays) -> RowSignals:
    return RowSignals(**{name: torch.from_numpy(array) for name, array in arrays.items()})


class AnyTeacher(Protocol):
    """What answers for masked views: a model that is asked, or what was written of one."""

    def signals(
        self,
        pairs: Sequence[SamplePair],
        views: Sequence[Sequence[MaskedView]],
        on_views: Callable[[int], None] | None = None,
    ) -> list[list[TeacherSignal]]:
        """Return the signal of every view of every sample; see `Teacher.signals`."""


class Sorter:
    """Cuts signals of masked rows into the signals of views."""

    def __init__(self, signals: SignalsConfig, shared_vocab_size: int, spelling: Speller | None = None):
        """Keep the settings.

        Args:
            signals: What to keep.
            shared_vocab_size: Ids below it mean the same for teacher and student.
            spelling: Spells teacher tokens in student tokens; the signals `chunks` and `projected` need it.
        """
        assert spelling is not None or not signals.tuples_per_chunk, "candidate chunks cannot be spelled"
        self._signals = signals
        self._shared_vocab_size = shared_vocab_size
        self._spelling = spelling

    def signals(
        self,
        batch: Batch,
        is_masked_BnL: np.ndarray,
        true_N: np.ndarray,
        rows: RowSignals,
        starts: tuple[np.ndarray, RowSignals] | None = None,
        further: Sequence[tuple[np.ndarray, RowSignals]] = (),
    ) -> list[list[TeacherSignal]]:
        """Return the signals of the views of each sample.

        Args:
            batch: The samples and their views.
            is_masked_BnL: Masked teacher tokens.
            true_N: True tokens of the masked rows, by sample, view and position.
            rows: Their signals, in the same order.
            starts: Rows [S] that are a whole chunk of the teacher's, and their signals in student ids, if the signal
                `projected` is wanted.
            further: What forwards said that showed one, two, ... true tokens of each longer chunk: for which of the
                masked rows, increasing, and their signals.
        """
        told = [Further(_places(row_R, len(true_N)), said) for row_R, said in further]
        signals = self._split(_told_again(rows, further), is_masked_BnL, batch)
        return self._with_chunks(batch, signals, rows, true_N, starts, told)

    def signals_of_arrays(
        self,
        batch: Batch,
        is_masked_BnL: np.ndarray,
        true_N: np.ndarray,
        rows: Arrays,
        starts: tuple[np.ndarray, Arrays] | None,
        further: Sequence[tuple[np.ndarray, Arrays]] = (),
    ) -> list[list[TeacherSignal]]:
        """Do the same where rows came from another process; see `as_arrays`."""
        of_starts = None if starts is None else (starts[0], _of_arrays(starts[1]))
        told = [(row_R, _of_arrays(said)) for row_R, said in further]
        return self.signals(batch, is_masked_BnL, true_N, _of_arrays(rows), of_starts, told)

    def wanted_mass(self, pairs: Sequence[SamplePair], length: int) -> np.ndarray:
        """Return the mass that the kept ids of each teacher position must reach, [B, L]; 0 where no ids are wanted.

        Aligned pairs and chunks of one token keep `top_p`. Chunks of several keep all of `top_k`, so that the likeliest
        tuples over their positions are found.
        """
        kept = self._signals
        mass_BL = np.zeros((len(pairs), length), np.float32)
        for mass_L, pair in zip(mass_BL, pairs, strict=True):
            if kept.tuples_per_chunk:
                for start, end in pair.chunks_C4[pair.is_distillable_C, :2].tolist():
                    mass_L[start:end] = kept.top_p if end - start == 1 else 1
            if kept.has_topk:
                mass_L[self._pair_positions(pair)] = kept.top_p
        return mass_BL

    def _pair_positions(self, pair: SamplePair) -> Int32s:
        """Return the teacher positions of aligned pairs."""
        positions: Int32s = pair.chunks_C4[pair.is_aligned_pair_C(self._shared_vocab_size), 0]
        return positions

    def _split(self, rows: RowSignals, is_masked_BnL: np.ndarray, batch: Batch) -> list[list[TeacherSignal]]:
        """Return one signal per view, from rows in (sample, view, position) order."""
        stop = 0
        result: list[list[TeacherSignal]] = []
        for (pair, _), is_masked_nL in zip(batch, is_masked_BnL, strict=True):
            is_pair_L = np.zeros(is_masked_nL.shape[1], bool)
            is_pair_L[self._pair_positions(pair)] = True
            result.append([])
            for is_masked_L in is_masked_nL:
                start, stop = stop, stop + int(is_masked_L.sum())
                is_pair_N = torch.from_numpy(is_pair_L[is_masked_L])
                result[-1].append(self._signal(rows, slice(start, stop), is_pair_N))
        return result

    def _signal(self, rows: RowSignals, span: slice, is_pair_N: torch.Tensor) -> TeacherSignal:
        topk = None
        if self._signals.has_topk:
            counts_R = rows.counts_N[span][is_pair_N]
            is_kept_RK = torch.arange(rows.ids_NK.shape[1]) < counts_R[:, None]
            tail = None
            if self._signals.tail_samples:
                tail = _tail_samples(rows.tail_ids_ND[span][is_pair_N], rows.tail_logprobs_ND[span][is_pair_N])
            topk = TopK(
                rows_R=is_pair_N.nonzero().squeeze(1).numpy().astype(np.int32),
                counts_R=counts_R.numpy().astype(np.int32),
                ids_E=rows.ids_NK[span][is_pair_N][is_kept_RK].numpy().astype(np.uint32),
                logprobs_E=rows.logprobs_NK[span][is_pair_N][is_kept_RK].numpy(),
                log_tail_RT=rows.log_tail_NT[span][is_pair_N].numpy(),
                log_partition_RT=rows.log_partition_NT[span][is_pair_N].numpy(),
                tail=tail,
            )
        return TeacherSignal(rows.truth_logprobs_N[span].numpy(), rows.is_top1_N[span].numpy(), topk)

    def _with_chunks(
        self,
        batch: Batch,
        signals: list[list[TeacherSignal]],
        rows: RowSignals,
        true_N: np.ndarray,
        starts: tuple[np.ndarray, RowSignals] | None,
        further: Sequence[Further],
    ) -> list[list[TeacherSignal]]:
        """Return the signals with those of active chunks, if wanted: for whole chunks and for student tokens."""
        wanted, spelling = self._signals, self._spelling
        if spelling is None or not wanted.tuples_per_chunk:
            return signals
        asked = _Asked.of(batch)
        said = ChunkRows(asked.chunks, true_N.astype(np.int32), rows, wanted, further)
        flat = [signal for of_sample in signals for signal in of_sample]
        if wanted.has_chunks:
            every = chunk_candidates(said, spelling)
            ends = sums_before(asked.num_chunks_V)
            flat = [
                replace(signal, chunks=take(every, np.arange(start, end), asked.chunks.student_size_A))
                for signal, (start, end) in zip(flat, pairwise(ends), strict=True)
            ]
        if starts is not None:
            of_starts = Starts(asked.of_rows(starts[0]), starts[1], spelling.num_student_ids)
            projected = projected_topk(said, asked.first_student_row_A, of_starts, spelling)
            flat = [
                replace(signal, projected=_from_row(projected, start, end))
                for signal, (start, end) in zip(flat, pairwise(asked.student_row_V), strict=True)
            ]
        left = iter(flat)
        return [[next(left) for _ in of_sample] for of_sample in signals]


def _places(row_R: np.ndarray, num_rows: int) -> np.ndarray:
    """Invert a list of rows: the place in it of each row, -1 for those that it lacks."""
    place_N = np.full(num_rows, -1, np.int64)
    place_N[row_R] = np.arange(len(row_R))
    return place_N


def _told_again(rows: RowSignals, further: Sequence[tuple[np.ndarray, RowSignals]]) -> RowSignals:
    """Return rows whose true tokens are judged by the last forward that asked for them."""
    if not further:
        return rows
    truth_N, is_top1_N = rows.truth_logprobs_N.clone(), rows.is_top1_N.clone()
    for row_R, said in further:
        truth_N[torch.from_numpy(row_R)], is_top1_N[torch.from_numpy(row_R)] = said.truth_logprobs_N, said.is_top1_N
    return replace(rows, truth_logprobs_N=truth_N, is_top1_N=is_top1_N)


@dataclass(frozen=True, eq=False)
class _Asked:
    """The active chunks of all views of a batch.

    Attributes:
        chunks: View by view.
        num_chunks_V: Number of chunks of each view.
        first_student_row_A: First masked student token of each chunk, among those of all views.
        student_row_V: First masked student token of each view, then the number of all.
    """

    chunks: AskedChunks
    num_chunks_V: list[int]
    first_student_row_A: np.ndarray
    student_row_V: np.ndarray

    @classmethod
    def of(cls, batch: Batch) -> "_Asked":
        """Find the active chunks of a batch."""
        active = [(pair, view, hidden_chunks(pair, view)) for pair, views in batch for view in views]
        teacher_row_V, student_row_V = (
            sums_before([int(masked(view).sum()) for _, view, _ in active]) for masked in (_of_teacher, _of_student)
        )
        first_A, first_student_A = (
            np.concatenate(
                [
                    sums_before(masked(view))[pair.chunks_C4[index_A, column]] + first
                    for (pair, view, index_A), first in zip(active, row_V, strict=False)
                ]
            )
            for masked, column, row_V in ((_of_teacher, 0, teacher_row_V), (_of_student, 2, student_row_V))
        )
        spans_A4 = np.concatenate([pair.chunks_C4[index_A] for pair, _, index_A in active])
        chunks = AskedChunks(
            index_A=np.concatenate([index_A for _, _, index_A in active]),
            first_row_A=first_A.astype(np.int32),
            teacher_size_A=spans_A4[:, 1] - spans_A4[:, 0],
            student_size_A=spans_A4[:, 3] - spans_A4[:, 2],
            student_ids_F=np.concatenate(
                [
                    pair.student_ids_L[a:b]
                    for pair, _, index_A in active
                    for a, b in pair.chunks_C4[index_A, 2:].tolist()
                ]
                or [np.zeros(0, np.int32)]
            ),
        )
        return cls(chunks, [len(index_A) for _, _, index_A in active], first_student_A, student_row_V)

    def of_rows(self, row_S: np.ndarray) -> np.ndarray:
        """Return the chunks that start at some masked teacher tokens."""
        return np.searchsorted(self.chunks.first_row_A, row_S)


def _of_teacher(view: MaskedView) -> Bools:
    return view.is_teacher_masked_M


def _of_student(view: MaskedView) -> Bools:
    return view.is_student_masked_L


def _from_row(every: ProjectedTopK, start: int, end: int) -> ProjectedTopK:
    """Return the rows of one view, counted from its first."""
    chosen = take(every, np.flatnonzero((every.rows_R >= start) & (every.rows_R < end)))
    return replace(chosen, rows_R=chosen.rows_R - np.int32(start))


def first_student_ids(pairs: Sequence[SamplePair], length: int) -> np.ndarray:
    """Return the first student token of each distillable chunk of one teacher token, at that token; else -1: [B, L]."""
    result_BL = np.full((len(pairs), length), -1, np.int64)
    for row_L, pair in zip(result_BL, pairs, strict=True):
        is_single_C = pair.is_distillable_C & (pair.chunks_C4[:, 1] - pair.chunks_C4[:, 0] == 1)
        row_L[pair.chunks_C4[is_single_C, 0]] = pair.student_ids_L[pair.chunks_C4[is_single_C, 2]]
    return result_BL


def _tail_samples(ids_RD: torch.Tensor, logprobs_RD: torch.Tensor) -> TailSamples:
    """Count equal draws of a row."""
    order_RD = ids_RD.argsort(dim=1, stable=True)
    ids_RD, logprobs_RD = ids_RD.gather(1, order_RD), logprobs_RD.gather(1, order_RD)
    is_new_RD = torch.ones_like(ids_RD, dtype=torch.bool)
    is_new_RD[:, 1:] = ids_RD[:, 1:] != ids_RD[:, :-1]
    is_new_RD &= ids_RD >= 0
    starts = is_new_RD.flatten().nonzero().squeeze(1)
    is_drawn = (ids_RD >= 0).flatten()
    draws = torch.bincount(is_new_RD.flatten().cumsum(0)[is_drawn] - 1, minlength=len(starts))
    return TailSamples(
        counts_R=is_new_RD.sum(dim=1).numpy().astype(np.int32),
        ids_S=ids_RD[is_new_RD].numpy().astype(np.uint32),
        logprobs_S=logprobs_RD[is_new_RD].numpy(),
        draws_S=draws.numpy().astype(np.int32),
    )
