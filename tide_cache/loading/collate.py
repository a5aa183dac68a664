"""From view records to one student batch and its targets: pad, find the masked rows, and bring each row its signal.

Shape suffixes as in `tide_cache.records`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tide_cache.records import Float32s, Int32s, StudentBatch, Targets, TopK, ViewRecord
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
    """

    mask_id: int
    pad_id: int
    block_size: int
    shared_vocab_size: int = 0
    temperatures: tuple[float, ...] = ()
    schedule: Schedule = "linear"


@dataclass(frozen=True, eq=False)
class _SampleTargets:
    """The targets of one sample; rows and chunks are numbered from 0."""

    true_id_N: Int32s
    chunk_of_row_N: np.ndarray
    chunk_logprob_C: Float32s
    topk: TopK | None
    """With `rows_R` turned into rows of this sample."""


def collate(records: Sequence[ViewRecord], plan: CollatePlan) -> tuple[StudentBatch, Targets]:
    """Lay records out as one micro-batch.

    Args:
        records: At least one; all with signals or all without.
        plan: Ids and sizes.
    """
    longest = max(len(record.pair.student_ids_L) for record in records)
    length = -(-longest // plan.block_size) * plan.block_size
    x_0_BL = np.full((len(records), length), plan.pad_id, np.int64)
    is_real_BL = np.zeros((len(records), length), bool)
    is_masked_BL = np.zeros((len(records), length), bool)
    for b, record in enumerate(records):
        size = len(record.pair.student_ids_L)
        x_0_BL[b, :size] = record.pair.student_ids_L
        is_real_BL[b, :size] = True
        is_masked_BL[b, :size] = record.view.is_student_masked_L
    row_sample_N, row_position_N = np.nonzero(is_masked_BL)
    batch = StudentBatch(
        x_0_BL=torch.from_numpy(x_0_BL),
        x_t_BL=torch.from_numpy(np.where(is_masked_BL, plan.mask_id, x_0_BL)),
        is_real_BL=torch.from_numpy(is_real_BL),
        row_sample_N=torch.from_numpy(row_sample_N),
        row_position_N=torch.from_numpy(row_position_N),
    )
    return batch, _targets(records, [_sample_targets(record, plan) for record in records], plan)


def _sample_targets(record: ViewRecord, plan: CollatePlan) -> _SampleTargets:
    pair, view = record.pair, record.view
    positions_N = np.flatnonzero(view.is_student_masked_L)
    true_id_N = pair.student_ids_L[positions_N]
    row_of_position_L = np.cumsum(view.is_student_masked_L) - 1
    chunk_of_row_N = np.full(len(positions_N), -1, np.int64)
    if record.signal is None:
        return _SampleTargets(true_id_N, chunk_of_row_N, np.zeros(0, np.float32), None)
    is_active_C = active_chunks(pair, view)
    chunks_A4 = pair.chunks_C4[is_active_C]
    sizes_A = chunks_A4[:, 3] - chunks_A4[:, 2]
    first_row_A = row_of_position_L[chunks_A4[:, 2]]
    within = np.arange(sizes_A.sum()) - np.repeat(np.cumsum(sizes_A) - sizes_A, sizes_A)
    chunk_of_row_N[np.repeat(first_row_A, sizes_A) + within] = np.repeat(np.arange(len(chunks_A4)), sizes_A)
    teacher_row_M = np.cumsum(view.is_teacher_masked_M) - 1
    total_N = np.concatenate([[0.0], np.cumsum(record.signal.truth_logprobs_N, dtype=np.float64)])
    chunk_logprob_A = total_N[teacher_row_M[chunks_A4[:, 1] - 1] + 1] - total_N[teacher_row_M[chunks_A4[:, 0]]]
    topk = None
    if record.signal.topk is not None:
        is_pair_A = pair.is_aligned_pair_C(plan.shared_vocab_size)[is_active_C]
        row_of_teacher_row = np.full(len(record.signal.truth_logprobs_N), -1, np.int32)
        row_of_teacher_row[teacher_row_M[chunks_A4[is_pair_A, 0]]] = first_row_A[is_pair_A]
        topk = _for_student(record.signal.topk, row_of_teacher_row, plan)
    return _SampleTargets(true_id_N, chunk_of_row_N, chunk_logprob_A.astype(np.float32), topk)


def _for_student(topk: TopK, row_of_teacher_row: Int32s, plan: CollatePlan) -> TopK:
    """Keep the rows that have a student row, renumbered; ids that the student lacks join the rest."""
    is_wanted_R = row_of_teacher_row[topk.rows_R] >= 0
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
    return TopK(
        rows_R=row_of_teacher_row[topk.rows_R[is_wanted_R]],
        counts_R=counts_R[is_wanted_R],
        ids_E=topk.ids_E[is_kept_E],
        logprobs_E=topk.logprobs_E[is_kept_E],
        log_tail_RT=tail_RT[is_wanted_R],
        log_partition_RT=topk.log_partition_RT[is_wanted_R],
    )


def _targets(records: Sequence[ViewRecord], samples: Sequence[_SampleTargets], plan: CollatePlan) -> Targets:
    rows_B = np.array([len(sample.true_id_N) for sample in samples])
    chunks_B = np.array([len(sample.chunk_logprob_C) for sample in samples])
    supervised_B = np.array([record.pair.is_supervised_L.sum() for record in records])
    t_B = np.array([record.view.t for record in records])
    weight_B = np.array([time_weight(record.view.t, plan.schedule) for record in records])
    first_chunk_N = np.repeat(np.cumsum(chunks_B) - chunks_B, rows_B)
    chunk_of_row_N = np.concatenate([sample.chunk_of_row_N for sample in samples])
    return Targets(
        true_id_N=_tensor(np.concatenate([sample.true_id_N for sample in samples]), np.int64),
        t_N=_tensor(np.repeat(t_B, rows_B), np.float32),
        time_weight_N=_tensor(np.repeat(weight_B, rows_B), np.float32),
        mask_ratio_N=_tensor(np.repeat(rows_B / np.maximum(supervised_B, 1), rows_B), np.float32),
        num_supervised=int(supervised_B.sum()),
        temperatures=plan.temperatures,
        **_candidates([sample.topk for sample in samples], rows_B, len(plan.temperatures)),
        chunk_of_row_N=_tensor(np.where(chunk_of_row_N >= 0, chunk_of_row_N + first_chunk_N, -1), np.int64),
        chunk_logprob_C=_tensor(np.concatenate([sample.chunk_logprob_C for sample in samples]), np.float32),
        chunk_t_C=_tensor(np.repeat(t_B, chunks_B), np.float32),
    )


def _candidates(topks: Sequence[TopK | None], rows_B: np.ndarray, num_temperatures: int) -> dict[str, torch.Tensor]:
    """Lay the ragged candidates of all samples out as padded rows."""
    num_rows = int(rows_B.sum())
    present = [(topk, first) for topk, first in zip(topks, np.cumsum(rows_B) - rows_B, strict=True) if topk is not None]
    counts_R = np.concatenate([topk.counts_R for topk, _ in present]) if present else np.zeros(0, np.int32)
    width = int(counts_R.max(initial=0))
    ids_NK = np.full((num_rows, width), -1, np.int64)
    logprobs_NK = np.full((num_rows, width), -np.inf, np.float32)
    log_tail_NT = np.zeros((num_rows, num_temperatures), np.float32)
    log_partition_NT = np.zeros((num_rows, num_temperatures), np.float32)
    has_topk_N = np.zeros(num_rows, bool)
    if present:
        rows_R = np.concatenate([topk.rows_R + first for topk, first in present])
        row_of_entry_E = np.repeat(rows_R, counts_R)
        rank_E = np.arange(counts_R.sum()) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
        ids_NK[row_of_entry_E, rank_E] = np.concatenate([topk.ids_E for topk, _ in present])
        logprobs_NK[row_of_entry_E, rank_E] = np.concatenate([topk.logprobs_E for topk, _ in present])
        log_tail_NT[rows_R] = np.concatenate([topk.log_tail_RT for topk, _ in present])
        log_partition_NT[rows_R] = np.concatenate([topk.log_partition_RT for topk, _ in present])
        has_topk_N[rows_R] = True
    return {
        "has_topk_N": torch.from_numpy(has_topk_N),
        "kept_ids_NK": torch.from_numpy(ids_NK),
        "kept_logprobs_NK": torch.from_numpy(logprobs_NK),
        "log_tail_NT": torch.from_numpy(log_tail_NT),
        "log_partition_NT": torch.from_numpy(log_partition_NT),
    }


def _tensor(array: np.ndarray, dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
