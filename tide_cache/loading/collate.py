"""From view records to a student batch and its targets: pad, find the masked rows, and give each row its signal.

Shape suffixes as in `tide_cache.records`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tide_cache.config.settings import Schedule
from tide_cache.loading.candidates import candidate_targets
from tide_cache.loading.joining import ActiveChunks, JoinedViews, join_views
from tide_cache.loading.sharing import told_topk
from tide_cache.modeling.kept import keep_blocks
from tide_cache.records import StudentBatch, Targets, TruthTargets, ViewRecord
from tide_cache.views.masking import is_complement
from tide_cache.views.schedule import time_weight
from tide_cache.views.weights import ViewLaw, denoising_weights, unit_sizes


@dataclass(frozen=True)
class BatchLayout:
    """How records are laid out as batches.

    Attributes:
        mask_id: The student's mask token.
        pad_id: Pads samples to the longest; never attended to.
        block_size: Batches are padded to a multiple of it.
        shared_vocab_size: Teacher ids from here on mean something else to the student, and count as rest.
        temperatures: The cache's T, in its order; empty without a teacher.
        schedule: Mask schedule of the views; it determines the weight of the denoising loss.
        sources: In a mix, the layout of each source: its `shared_vocab_size`, `temperatures`, `schedule` and
            `complementary` apply to its records. `temperatures` of the mix itself are those of the batch.
        complementary: Whether views come in pairs, which also determines that weight.
    """

    mask_id: int
    pad_id: int
    block_size: int
    shared_vocab_size: int = 0
    temperatures: tuple[float, ...] = ()
    schedule: Schedule = "linear"
    sources: tuple["BatchLayout", ...] = ()
    complementary: bool = False

    def of(self, record: ViewRecord) -> "BatchLayout":
        """Return the layout of the source that a record comes from."""
        return self.sources[record.source] if self.sources else self


def collate(records: Sequence[ViewRecord], layout: BatchLayout) -> tuple[StudentBatch, Targets]:
    """Return records as one micro-batch, each in its own row.

    Args:
        records: At least one; all with signals or all without.
        layout: Ids and sizes.
    """
    return collate_rows([[(record,)] for record in records], layout)


def collate_rows(rows: Sequence[Sequence[Sequence[ViewRecord]]], layout: BatchLayout) -> tuple[StudentBatch, Targets]:
    """Return records as one micro-batch; a row may hold several samples, and several views of each.

    Every sample starts at the start of a block.

    Args:
        rows: The samples of each row, each with its views; all have the same number of views.
        layout: Ids and sizes.
    """
    num_views = len(rows[0][0])
    sizes = [
        [-(-len(views[0].pair.student_ids_L) // layout.block_size) * layout.block_size for views in row] for row in rows
    ]
    shape = (len(rows), max(map(sum, sizes)))
    x_0_BL = np.full(shape, layout.pad_id, np.int64)
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
    row_sample_N, row_position_N = (
        torch.from_numpy(place_N) for place_N in np.nonzero(is_masked_BnL.reshape(shape[0], -1))
    )
    x_t_BnL = np.where(is_masked_BnL, layout.mask_id, x_0_BL[:, None])
    batch = StudentBatch(
        x_0_BL=torch.from_numpy(x_0_BL),
        x_t_BL=torch.from_numpy(x_t_BnL.reshape(shape[0], -1)),
        is_real_BL=torch.from_numpy(is_real_BL),
        row_sample_N=row_sample_N,
        row_position_N=row_position_N,
        sample_BL=torch.from_numpy(sample_BL) if any(len(row) > 1 for row in rows) else None,
        kept=keep_blocks(row_sample_N, row_position_N, shape, layout.block_size),
    )
    records = [views[n] for row in rows for n in range(num_views) for views in row]
    return batch, _targets(records, layout)


def _targets(records: Sequence[ViewRecord], layout: BatchLayout) -> Targets:
    layouts = [layout.of(record) for record in records]
    joined = join_views(records, [own.temperatures for own in layouts], layout.temperatures)
    rows_B = np.diff(joined.rows_before_L[joined.token_start_B])
    num_rows = int(rows_B.sum())
    active = ActiveChunks.of(joined)
    sample_A = np.repeat(np.arange(len(records)), rows_B)[active.first_row_A]
    t_B = np.array([record.view.t for record in records])
    laws = [
        ViewLaw(own.schedule, is_complement(record.view.view, own.complementary))
        for record, own in zip(records, layouts, strict=True)
    ]
    weight_B = np.array([time_weight(t, law.schedule, law.is_complement) for t, law in zip(t_B, laws, strict=True)])
    vocab_B = np.array([own.shared_vocab_size for own in layouts])
    told = told_topk(joined, active, vocab_B[sample_A], layout.temperatures)
    topk, chunks, extra_ids_NX = candidate_targets(num_rows, told, joined.signal, active, len(layout.temperatures))
    return Targets(
        true_id_N=_tensor(joined.student_ids_L[joined.is_student_masked_L], np.int64),
        view_N=_tensor(np.repeat(np.arange(len(records)), rows_B), np.int64),
        t_N=_tensor(np.repeat(t_B, rows_B), np.float32),
        time_weight_N=_tensor(np.repeat(weight_B, rows_B), np.float32),
        mask_weight_N=_tensor(_mask_weights(joined, laws), np.float32),
        num_supervised=int(joined.is_supervised_L.sum()),
        temperatures=layout.temperatures,
        extra_ids_NX=extra_ids_NX,
        truth=TruthTargets(
            chunk_of_row_N=_tensor(active.chunk_of_row(num_rows), np.int64),
            chunk_logprob_C=_tensor(active.teacher_logprobs(joined), np.float32),
            chunk_t_C=_tensor(t_B[sample_A], np.float32),
        ),
        topk=topk,
        chunks=chunks,
        steps_to_reveal_N=_steps(joined),
    )


def _steps(joined: JoinedViews) -> torch.Tensor | None:
    """Return how many steps it takes until each masked row is revealed, where all views say so."""
    steps_N = None if joined.signal is None else joined.signal.steps_to_reveal_N
    return None if steps_N is None else _tensor(steps_N, np.int64)


def _mask_weights(joined: JoinedViews, laws: Sequence[ViewLaw]) -> npt.NDArray[np.float64]:
    """Return each masked row's weight; chunks matter without a teacher too: they decide what is masked together."""
    view_L = np.repeat(np.arange(len(laws)), np.diff(joined.token_start_B))
    unit_L = unit_sizes(joined.is_supervised_L, joined.chunks_C4[:, 2:])
    return denoising_weights(unit_L, joined.is_student_masked_L, view_L, laws)


def _tensor(array: np.ndarray, dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
