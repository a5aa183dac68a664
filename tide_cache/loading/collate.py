"""From view records to one student batch and its targets: pad, find the masked rows, and bring each row its signal.

Shape suffixes as in `tide_cache.records`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tide_cache.loading.candidates import SampleSignals, candidate_targets
from tide_cache.records import Bools, Float32s, Int32s, StudentBatch, TailSamples, Targets, TopK, ViewRecord
from tide_cache.views.masking import active_chunks
from tide_cache.views.schedule import Schedule, time_weight


@dataclass(frozen=True)
class CollatePlan:
    """What turns records into batches.

    Attributes:
        mask_id: The student's mask token.
        pad_id: Fills samples up to the longest; never attended to.
        block_size: Batches are padded to a multiple of it.
        shared_vocab_size: Teacher ids from here on mean something else to the student: they count as rest.
        temperatures: T of the cache, in its order; empty without a teacher.
        schedule: Mask schedule of the views, for the weight of the denoising loss.
        sources: For a mix, the plan of each source, whose `shared_vocab_size`, `temperatures` and `schedule` hold for
            its records; `temperatures` of the mix itself are those of the batch.
    """

    mask_id: int
    pad_id: int
    block_size: int
    shared_vocab_size: int = 0
    temperatures: tuple[float, ...] = ()
    schedule: Schedule = "linear"
    sources: tuple["CollatePlan", ...] = ()

    def of(self, record: ViewRecord) -> "CollatePlan":
        """Give the plan of the source that a record comes from."""
        return self.sources[record.source] if self.sources else self


@dataclass(frozen=True, eq=False)
class _SampleTargets:
    """The targets of one sample; rows and chunks are numbered from 0."""

    true_id_N: Int32s
    chunk_of_row_N: np.ndarray
    chunk_logprob_C: Float32s
    signals: SampleSignals


def collate(records: Sequence[ViewRecord], plan: CollatePlan) -> tuple[StudentBatch, Targets]:
    """Lay records out as one micro-batch, each in a row of its own.

    Args:
        records: At least one; all with signals or all without.
        plan: Ids and sizes.
    """
    return collate_rows([[(record,)] for record in records], plan)


def collate_rows(rows: Sequence[Sequence[Sequence[ViewRecord]]], plan: CollatePlan) -> tuple[StudentBatch, Targets]:
    """Lay records out as one micro-batch whose rows may hold several samples, and several views of each.

    A sample begins where a block begins.

    Args:
        rows: The samples of each row, each with its views; equally many views everywhere.
        plan: Ids and sizes.
    """
    num_views = len(rows[0][0])
    sizes = [
        [-(-len(views[0].pair.student_ids_L) // plan.block_size) * plan.block_size for views in row] for row in rows
    ]
    shape = (len(rows), max(map(sum, sizes)))
    x_0_BL = np.full(shape, plan.pad_id, np.int64)
    is_real_BL = np.zeros(shape, bool)
    sample_BL = np.full(shape, -1, np.int64)
    is_masked_BnL = np.zeros((shape[0], num_views, shape[1]), bool)
    for b, (row, of_row) in enumerate(zip(rows, sizes, strict=True)):
        for number, (views, end) in enumerate(zip(row, np.cumsum(of_row).tolist(), strict=True)):
            start, pair = end - of_row[number], views[0].pair
            inside = slice(start, start + len(pair.student_ids_L))
            x_0_BL[b, inside], is_real_BL[b, inside], sample_BL[b, start:end] = pair.student_ids_L, True, number
            for n, record in enumerate(views):
                is_masked_BnL[b, n, inside] = record.view.is_student_masked_L
    row_sample_N, row_position_N = np.nonzero(is_masked_BnL.reshape(shape[0], -1))
    x_t_BnL = np.where(is_masked_BnL, plan.mask_id, x_0_BL[:, None])
    batch = StudentBatch(
        x_0_BL=torch.from_numpy(x_0_BL),
        x_t_BL=torch.from_numpy(x_t_BnL.reshape(shape[0], -1)),
        is_real_BL=torch.from_numpy(is_real_BL),
        row_sample_N=torch.from_numpy(row_sample_N),
        row_position_N=torch.from_numpy(row_position_N),
        sample_BL=torch.from_numpy(sample_BL) if any(len(row) > 1 for row in rows) else None,
    )
    records = [views[n] for row in rows for n in range(num_views) for views in row]
    samples = [_sample_targets(record, plan.of(record), plan.temperatures) for record in records]
    return batch, _targets(records, samples, plan)


def _sample_targets(record: ViewRecord, plan: CollatePlan, temperatures: tuple[float, ...]) -> _SampleTargets:
    pair, view = record.pair, record.view
    positions_N = np.flatnonzero(view.is_student_masked_L)
    true_id_N = pair.student_ids_L[positions_N]
    row_of_position_L = np.cumsum(view.is_student_masked_L) - 1
    chunk_of_row_N = np.full(len(positions_N), -1, np.int64)
    if record.signal is None:
        nothing = np.zeros(0, np.int64)
        silent = SampleSignals(len(positions_N), 0, None, nothing, None, nothing, nothing)
        return _SampleTargets(true_id_N, chunk_of_row_N, np.zeros(0, np.float32), silent)
    is_active_C = active_chunks(pair, view)
    chunks_A4 = pair.chunks_C4[is_active_C]
    sizes_A = chunks_A4[:, 3] - chunks_A4[:, 2]
    first_row_A = row_of_position_L[chunks_A4[:, 2]]
    within = np.arange(sizes_A.sum()) - np.repeat(np.cumsum(sizes_A) - sizes_A, sizes_A)
    chunk_of_row_N[np.repeat(first_row_A, sizes_A) + within] = np.repeat(np.arange(len(chunks_A4)), sizes_A)
    teacher_row_M = np.cumsum(view.is_teacher_masked_M) - 1
    total_N = np.concatenate([[0.0], np.cumsum(record.signal.truth_logprobs_N, dtype=np.float64)])
    chunk_logprob_A = total_N[teacher_row_M[chunks_A4[:, 1] - 1] + 1] - total_N[teacher_row_M[chunks_A4[:, 0]]]
    topk, num_draws_R = None, np.zeros(0, np.int64)
    if record.signal.topk is not None:
        is_pair_A = pair.is_aligned_pair_C(plan.shared_vocab_size)[is_active_C]
        row_of_teacher_row = np.full(len(record.signal.truth_logprobs_N), -1, np.int32)
        row_of_teacher_row[teacher_row_M[chunks_A4[is_pair_A, 0]]] = first_row_A[is_pair_A]
        topk, num_draws_R = _for_student(record.signal.topk, row_of_teacher_row, plan)
    signals = SampleSignals(
        num_rows=len(positions_N),
        num_chunks=len(chunks_A4),
        topk=topk,
        num_draws_R=num_draws_R,
        chunks=record.signal.chunks,
        first_row_A=first_row_A.astype(np.int64),
        size_A=sizes_A.astype(np.int64),
    )
    signals = _at_temperatures(signals, plan.temperatures, temperatures)
    return _SampleTargets(true_id_N, chunk_of_row_N, chunk_logprob_A.astype(np.float32), signals)


def _at_temperatures(signals: SampleSignals, own: tuple[float, ...], wanted: tuple[float, ...]) -> SampleSignals:
    """Bring tails and partitions to the batch's T; what the sample's source lacks is nan, so that no loss hides it."""
    if own == wanted:
        return signals

    def spread(values_XT: Float32s) -> Float32s:
        spread_XT = np.full((len(values_XT), len(wanted)), np.nan, np.float32)
        for index, temperature in enumerate(own):
            spread_XT[:, wanted.index(temperature)] = values_XT[:, index]
        return spread_XT

    topk, chunks = signals.topk, signals.chunks
    if topk is not None:
        topk = replace(topk, log_tail_RT=spread(topk.log_tail_RT), log_partition_RT=spread(topk.log_partition_RT))
    if chunks is not None:
        chunks = replace(
            chunks, log_tail_AT=spread(chunks.log_tail_AT), log_partition_AT=spread(chunks.log_partition_AT)
        )
    return replace(signals, topk=topk, chunks=chunks)


def _for_student(topk: TopK, row_of_teacher_row: Int32s, plan: CollatePlan) -> tuple[TopK, np.ndarray]:
    """Keep the rows that have a student row, renumbered; ids that the student lacks join the rest.

    Returns:
        The rows, and the number of draws from each one's tail, those of ids that the student lacks included.
    """
    is_wanted_R = row_of_teacher_row[topk.rows_R] >= 0
    tail, num_draws_R = _tail_for_student(topk, is_wanted_R, plan)
    if is_wanted_R.all() and topk.ids_E.max(initial=0) < plan.shared_vocab_size:  # as ever with one tokenizer
        return replace(topk, rows_R=row_of_teacher_row[topk.rows_R], tail=tail), num_draws_R
    row_of_entry_E = np.repeat(np.arange(len(topk.rows_R)), topk.counts_R)
    is_shared_E = topk.ids_E < plan.shared_vocab_size
    tail_RT = topk.log_tail_RT
    if not is_shared_E.all():
        foreign_row, foreign_logprob = row_of_entry_E[~is_shared_E], topk.logprobs_E[~is_shared_E].astype(np.float64)
        with np.errstate(divide="ignore"):
            moved_RT = np.exp(tail_RT.astype(np.float64))
            for index, temperature in enumerate(plan.temperatures):
                np.add.at(moved_RT[:, index], foreign_row, np.exp(foreign_logprob / temperature))
            tail_RT = np.log(moved_RT).astype(np.float32)
    is_kept_E = is_shared_E & is_wanted_R[row_of_entry_E]
    counts_R = np.bincount(row_of_entry_E[is_kept_E], minlength=len(topk.rows_R)).astype(np.int32)
    shared = TopK(
        rows_R=row_of_teacher_row[topk.rows_R[is_wanted_R]],
        counts_R=counts_R[is_wanted_R],
        ids_E=topk.ids_E[is_kept_E],
        logprobs_E=topk.logprobs_E[is_kept_E],
        log_tail_RT=tail_RT[is_wanted_R],
        log_partition_RT=topk.log_partition_RT[is_wanted_R],
        tail=tail,
    )
    return shared, num_draws_R


def _tail_for_student(topk: TopK, is_wanted_R: Bools, plan: CollatePlan) -> tuple[TailSamples | None, np.ndarray]:
    """Keep the draws of ids that the student has, at the rows that it has, and count all draws of those rows."""
    if topk.tail is None:
        return None, np.zeros(0, np.int64)
    tail = topk.tail
    row_S = np.repeat(np.arange(len(topk.rows_R)), tail.counts_R)
    num_draws_R = np.bincount(row_S, weights=tail.draws_S, minlength=len(topk.rows_R)).astype(np.int64)
    is_kept_S = is_wanted_R[row_S] & (tail.ids_S < plan.shared_vocab_size)
    counts_R = np.bincount(row_S[is_kept_S], minlength=len(topk.rows_R)).astype(np.int32)[is_wanted_R]
    kept = TailSamples(counts_R, tail.ids_S[is_kept_S], tail.logprobs_S[is_kept_S], tail.draws_S[is_kept_S])
    return kept, num_draws_R[is_wanted_R]


def _targets(records: Sequence[ViewRecord], samples: Sequence[_SampleTargets], plan: CollatePlan) -> Targets:
    rows_B = np.array([len(sample.true_id_N) for sample in samples])
    chunks_B = np.array([len(sample.chunk_logprob_C) for sample in samples])
    supervised_B = np.array([record.pair.is_supervised_L.sum() for record in records])
    t_B = np.array([record.view.t for record in records])
    weight_B = np.array([time_weight(record.view.t, plan.of(record).schedule) for record in records])
    first_chunk_N = np.repeat(np.cumsum(chunks_B) - chunks_B, rows_B)
    chunk_of_row_N = np.concatenate([sample.chunk_of_row_N for sample in samples])
    return Targets(
        true_id_N=_tensor(np.concatenate([sample.true_id_N for sample in samples]), np.int64),
        t_N=_tensor(np.repeat(t_B, rows_B), np.float32),
        time_weight_N=_tensor(np.repeat(weight_B, rows_B), np.float32),
        mask_ratio_N=_tensor(np.repeat(rows_B / np.maximum(supervised_B, 1), rows_B), np.float32),
        num_supervised=int(supervised_B.sum()),
        temperatures=plan.temperatures,
        **candidate_targets([sample.signals for sample in samples], len(plan.temperatures)),
        chunk_of_row_N=_tensor(np.where(chunk_of_row_N >= 0, chunk_of_row_N + first_chunk_N, -1), np.int64),
        chunk_logprob_C=_tensor(np.concatenate([sample.chunk_logprob_C for sample in samples]), np.float32),
        chunk_t_C=_tensor(np.repeat(t_B, chunks_B), np.float32),
    )


def _tensor(array: np.ndarray, dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
