"""From views to a student batch and its targets: pad, number through, and give each row its signal.

Shape suffixes as in `tide_cache.records`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from tide_cache.arrays import Ints
from tide_cache.config.settings import Schedule
from tide_cache.loading.candidates import columns_of
from tide_cache.loading.joining import join_views
from tide_cache.loading.ready_views import ReadyAxis, ReadyView, SourceLaw, make_ready
from tide_cache.loading.taking import TakenViews
from tide_cache.modeling.kept import keep_blocks
from tide_cache.records import ChunkTargets, StudentBatch, Targets, TopKTargets, TruthTargets, ViewRecord
from tide_cache.shards import Array

ReadyRows = Sequence[Sequence[Sequence[ReadyView]]]
"""A micro-batch: its rows, the samples of each, and the views of each of these."""


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

    def law(self, source: int = 0) -> SourceLaw:
        """Return what the views of a source mean to the student."""
        of = self.sources[source] if self.sources else self
        return SourceLaw(of.shared_vocab_size, of.temperatures, self.temperatures, of.schedule, of.complementary)


def ready_records(records: Sequence[ViewRecord], layout: BatchLayout) -> list[ReadyView]:
    """Return records as views of tables, in their order."""
    ready: list[ReadyView] = []
    for source, members in groupby(records, key=lambda record: record.source):
        law = layout.law(source)
        ready += make_ready(join_views(list(members), law.own, law.temperatures), law).all()
    return ready


def collate(records: Sequence[ViewRecord], layout: BatchLayout) -> tuple[StudentBatch, Targets]:
    """Return records as one micro-batch, each in its own row.

    Args:
        records: At least one; all with signals or all without.
        layout: Ids and sizes.
    """
    return batch_of([[(view,)] for view in ready_records(records, layout)], layout)


def collate_rows(rows: Sequence[Sequence[Sequence[ViewRecord]]], layout: BatchLayout) -> tuple[StudentBatch, Targets]:
    """Return records as one micro-batch; a row may hold several samples, and several views of each.

    Args:
        rows: As for `batch_of`.
        layout: Ids and sizes.
    """
    ready = iter(ready_records([record for row in rows for views in row for record in views], layout))
    return batch_of([[[next(ready) for _ in views] for views in row] for row in rows], layout)


def batch_of(rows: ReadyRows, layout: BatchLayout) -> tuple[StudentBatch, Targets]:
    """Return views as one micro-batch.

    Every sample starts at the start of a block.

    Args:
        rows: The samples of each row, each with its views; all have the same number of views.
        layout: Ids and sizes.
    """
    num_views = len(rows[0][0])
    taken = TakenViews([views[n] for row in rows for n in range(num_views) for views in row])
    places = _Places.of(rows, num_views, layout.block_size)
    num_rows, length = len(rows), places.length
    x_0_BL = np.full((num_rows, length), layout.pad_id, np.int64)
    is_real_BL = np.zeros((num_rows, length), bool)
    for ids, row, view, start in zip(
        taken.parts("student_id"), places.row_V, places.view_V, places.start_V, strict=True
    ):
        if view == 0:  # all views of a sample have its tokens
            x_0_BL[row, start : start + len(ids)] = ids
            is_real_BL[row, start : start + len(ids)] = True
    first_V = np.array([view * length + start for view, start in zip(places.view_V, places.start_V, strict=True)])
    row_position_N = taken.column("position", np.int64)
    row_position_N += taken.spread(first_V, "row")
    row_sample_N = taken.spread(np.array(places.row_V), "row")
    x_t_BL = np.concatenate([x_0_BL] * num_views, axis=1) if num_views > 1 else x_0_BL.copy()
    place_N = row_sample_N * (num_views * length)
    place_N += row_position_N
    true_id_N = x_t_BL.reshape(-1)[place_N]
    x_t_BL.reshape(-1)[place_N] = layout.mask_id
    places_of_rows = torch.from_numpy(row_sample_N), torch.from_numpy(row_position_N)
    batch = StudentBatch(
        x_0_BL=torch.from_numpy(x_0_BL),
        x_t_BL=torch.from_numpy(x_t_BL),
        is_real_BL=torch.from_numpy(is_real_BL),
        row_sample_N=places_of_rows[0],
        row_position_N=places_of_rows[1],
        sample_BL=_samples(rows, length, layout.block_size) if any(len(row) > 1 for row in rows) else None,
        kept=keep_blocks(*places_of_rows, (num_rows, length), layout.block_size),
    )
    return batch, _targets(taken, true_id_N, layout)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the views of a batch lie: row by row, view by view, sample by sample.

    Attributes:
        row_V: Row of each.
        view_V: Which of the views of its sample it is.
        start_V: Where its sample begins in the row.
        length: Tokens of a row.
    """

    row_V: list[int]
    view_V: list[int]
    start_V: list[int]
    length: int

    @classmethod
    def of(cls, rows: ReadyRows, num_views: int, block_size: int) -> "_Places":
        row_V: list[int] = []
        view_V: list[int] = []
        start_V: list[int] = []
        length = 0
        for number, row in enumerate(rows):
            starts, end = [], 0
            for views in row:
                starts.append(end)
                end += _blocks(views[0].length, block_size)
            row_V += [number] * (num_views * len(row))
            view_V += [view for view in range(num_views) for _ in row]
            start_V += starts * num_views
            length = max(length, end)
        return cls(row_V, view_V, start_V, length)


def _samples(rows: ReadyRows, length: int, block_size: int) -> torch.Tensor:
    """Return which sample of its row each token belongs to."""
    sample_BL = np.full((len(rows), length), -1, np.int64)
    for row, of_row in enumerate(rows):
        end = 0
        for number, views in enumerate(of_row):
            start, end = end, end + _blocks(views[0].length, block_size)
            sample_BL[row, start:end] = number
    return torch.from_numpy(sample_BL)


def _blocks(length: int, block_size: int) -> int:
    """Return the length of the blocks that so many tokens fill."""
    return -(-length // block_size) * block_size


def _targets(taken: TakenViews, true_id_N: npt.NDArray[np.int64], layout: BatchLayout) -> Targets:
    num_T = len(layout.temperatures)
    topk, width = _topk(taken, num_T)
    t_B = taken.column("t", np.float32)
    return Targets(
        true_id_N=torch.from_numpy(true_id_N),
        view_N=torch.from_numpy(taken.spread(np.arange(taken.count("view")), "row")),
        t_N=torch.from_numpy(taken.spread(t_B, "row")),
        time_weight_N=torch.from_numpy(taken.spread(taken.column("time_weight", np.float32), "row")),
        mask_weight_N=_tensor(taken, "mask_weight", np.float32),
        num_supervised=int(taken.column("num_supervised", np.int64).sum()),
        temperatures=layout.temperatures,
        extra_ids_NX=torch.from_numpy(padded(taken.column("extras", np.int64), taken.column("extra_id", np.int64), -1)),
        truth=TruthTargets(
            chunk_of_row_N=_tensor(taken, "chunk_of_row", np.int64),
            chunk_logprob_C=_tensor(taken, "chunk_logprob", np.float32),
            chunk_t_C=torch.from_numpy(taken.spread(t_B, "chunk")),
        ),
        topk=topk,
        chunks=ChunkTargets(
            candidate_chunk_J=_tensor(taken, "candidate_chunk", np.int64),
            candidate_logprob_J=_tensor(taken, "candidate_logprob", np.float32),
            token_candidate_F=_tensor(taken, "token_candidate", np.int64),
            token_row_F=_tensor(taken, "token_row", np.int64),
            token_column_F=torch.from_numpy(columns_of(taken.column("token_place", np.int64), width)),
            log_tail_CT=_by_temperature(taken, "chunk_log_tail", "chunk", num_T),
            log_partition_CT=_by_temperature(taken, "chunk_log_partition", "chunk", num_T),
        ),
        steps_to_reveal_N=_tensor(taken, "steps", np.int64) if taken.has("steps") else None,
    )


def _topk(taken: TakenViews, num_temperatures: int) -> tuple[TopKTargets, int]:
    """Return the candidates for single tokens, and the most kept ids of a row."""
    num_rows, num_entries = taken.count("row"), taken.count("entry")
    counts_R = taken.column("kept_count", np.int64)
    width = int(counts_R.max(initial=0))
    ids, logprobs = taken.column("kept_id", np.int64), taken.column("kept_logprob", np.float32)
    is_full = len(ids) == num_rows * width and num_entries == num_rows  # as ever at a fixed k with one tokenizer
    rows_R = np.arange(num_rows) if is_full else taken.column("kept_row", np.int64)
    counts_N = counts_R if is_full else _spread(counts_R, rows_R, num_rows)
    drawn_row_D = taken.column("drawn_row", np.int64)
    drawn_N = np.bincount(drawn_row_D, minlength=num_rows)
    column_D = columns_of(taken.column("drawn_place", np.int64), width)
    targets = TopKTargets(
        rows_R=torch.from_numpy(rows_R),
        kept_ids_NK=torch.from_numpy(padded(counts_N, ids, -1)),
        kept_logprobs_NK=torch.from_numpy(padded(counts_N, logprobs, -np.inf)),
        log_tail_NT=_by_temperature(taken, "log_tail", "row", num_temperatures),
        log_partition_NT=_by_temperature(taken, "log_partition", "row", num_temperatures),
        drawn_column_ND=torch.from_numpy(padded(drawn_N, column_D, -1)),
        drawn_logprob_ND=torch.from_numpy(padded(drawn_N, taken.column("drawn_logprob", np.float32), 0)),
        drawn_share_ND=torch.from_numpy(padded(drawn_N, taken.column("drawn_share", np.float32), 0)),
    )
    return targets, width


def padded(counts_N: Ints, values: Array, beyond: float) -> Array:
    """Return the lists of rows as the rows of a matrix, filled up."""
    width = int(counts_N.max(initial=0))
    if len(values) == len(counts_N) * width:
        return values.reshape(len(counts_N), width)
    result = np.full((len(counts_N), width), beyond, values.dtype)
    result[np.arange(width) < counts_N[:, None]] = values
    return result


def _spread(values_R: Ints, rows_R: Ints, num_rows: int) -> Ints:
    """Return one number for each row, 0 where there is none."""
    result = np.zeros(num_rows, np.int64)
    result[rows_R] = values_R
    return result


def _tensor(taken: TakenViews, name: str, dtype: type) -> torch.Tensor:
    return torch.from_numpy(taken.column(name, dtype))


def _by_temperature(taken: TakenViews, name: str, of: ReadyAxis, num_temperatures: int) -> torch.Tensor:
    return _tensor(taken, name, np.float32).reshape(taken.count(of), num_temperatures)
