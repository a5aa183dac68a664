"""What the teacher said about tokens other than the true ones, laid out for a batch: one gathered logit per id.

A masked row's logits are gathered once per id, whatever needs it: the true token (column 0), the row's kept ids, and
further ids that candidate chunks and draws from the tail use. All but column 0 are distinct within a row, so that
the mass outside any subset of them is a sum of what is gathered and of the rest.

Shape suffixes as in `tide_cache.records`; W wanted (row, id) entries.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tide_cache.arrays import ranges, sums_before
from tide_cache.loading.joining import ActiveChunks
from tide_cache.loading.sharing import SharedTopK
from tide_cache.records import ChunkCandidates, ChunkTargets, TeacherSignal, TopK, TopKTargets

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def candidate_targets(
    num_rows: int, shared: SharedTopK | None, signal: TeacherSignal | None, active: ActiveChunks, num_temperatures: int
) -> tuple[TopKTargets, ChunkTargets, torch.Tensor]:
    """Return kept ids, draws and chunks, laid out for a batch.

    Args:
        num_rows: Masked rows of the batch.
        shared: Candidates at these rows, if there are any.
        signal: Signals of the whole batch; its `chunks` belong to active chunks.
        active: The active chunks.
        num_temperatures: How many T tails and partitions have.

    Returns:
        Both parts of `Targets`, and its `extra_ids_NX`.
    """
    rows_R, kept_ids_NK, kept_logprobs_NK, log_tail_NT, log_partition_NT = _kept(
        num_rows, None if shared is None else shared.topk, num_temperatures
    )
    drawn_row_D, drawn_id_D, drawn = _drawn(shared)
    found = _candidates(None if signal is None else signal.chunks, active, num_temperatures)
    wanted_row_W = np.concatenate([drawn_row_D, found.token_row_F])
    wanted_id_W = np.concatenate([drawn_id_D, found.token_id_F])
    extra_ids_NX, column_W = gather_columns(kept_ids_NK, wanted_row_W, wanted_id_W)
    drawn_column_ND, drawn_logprob_ND, drawn_share_ND = _padded_draws(
        num_rows, drawn_row_D, column_W[: len(drawn_row_D)], drawn
    )
    topk = TopKTargets(
        rows_R=_tensor(rows_R),
        kept_ids_NK=_tensor(kept_ids_NK),
        kept_logprobs_NK=_tensor(kept_logprobs_NK),
        log_tail_NT=_tensor(log_tail_NT),
        log_partition_NT=_tensor(log_partition_NT),
        drawn_column_ND=_tensor(drawn_column_ND),
        drawn_logprob_ND=_tensor(drawn_logprob_ND),
        drawn_share_ND=_tensor(drawn_share_ND),
    )
    chunks = ChunkTargets(
        candidate_chunk_J=_tensor(found.chunk_J),
        candidate_logprob_J=_tensor(found.logprob_J),
        token_candidate_F=_tensor(found.token_candidate_F),
        token_row_F=_tensor(found.token_row_F),
        token_column_F=_tensor(column_W[len(drawn_row_D) :]),
        log_tail_CT=_tensor(found.log_tail_CT),
        log_partition_CT=_tensor(found.log_partition_CT),
    )
    return topk, chunks, _tensor(extra_ids_NX)


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def gather_columns(kept_ids_NK: Ints, row_W: Ints, id_W: Ints) -> tuple[Ints, Ints]:
    """Find a column for each wanted id of a row: that of a kept id, or one of the extra columns.

    Args:
        kept_ids_NK: Kept ids of each row, -1 beyond.
        row_W: Row of each wanted entry.
        id_W: Its id.

    Returns:
        The extra ids [N, X], distinct within a row and not among its kept ones, -1 beyond, and the column of each
        entry [W], counted from the true token's column 0.
    """
    num_rows, num_kept = kept_ids_NK.shape
    if not len(id_W):  # only kept ids are needed; sorting all of them would be most of the work
        return np.full((num_rows, 0), -1, np.int64), np.zeros(0, np.int64)
    row_E, rank_E = np.nonzero(kept_ids_NK >= 0)
    kept_key_E = _key(row_E, kept_ids_NK[row_E, rank_E])
    order_E = np.argsort(kept_key_E)
    kept_key_E, rank_E = kept_key_E[order_E], rank_E[order_E]
    key_U, of_wanted_W = np.unique(_key(row_W, id_W), return_inverse=True)
    place_U = np.searchsorted(kept_key_E, key_U)
    is_kept_U = np.zeros(len(key_U), bool)
    is_kept_U[place_U < len(kept_key_E)] = (
        kept_key_E[place_U[place_U < len(kept_key_E)]] == key_U[place_U < len(kept_key_E)]
    )
    column_U = np.zeros(len(key_U), np.int64)
    column_U[is_kept_U] = 1 + rank_E[place_U[is_kept_U]]
    extra_row, extra_id = np.divmod(key_U[~is_kept_U], _IDS)
    per_row_N = np.bincount(extra_row, minlength=num_rows)
    extra_rank = ranges(0, per_row_N)
    column_U[~is_kept_U] = 1 + num_kept + extra_rank
    extra_ids_NX = np.full((num_rows, int(per_row_N.max(initial=0))), -1, np.int64)
    extra_ids_NX[extra_row, extra_rank] = extra_id
    return extra_ids_NX, column_U[of_wanted_W]


_IDS = 1 << 32
"""Larger than any vocabulary."""


def _key(row: Ints, token_id: Ints) -> Ints:
    return row * _IDS + token_id


def _kept(num_rows: int, topk: TopK | None, num_temperatures: int) -> tuple[Array, Ints, Array, Array, Array]:
    """Return the ragged candidates as padded rows: the first fields of `TopKTargets`, in order."""
    width = 0 if topk is None else int(topk.counts_R.max(initial=0))
    log_tail_NT = np.zeros((num_rows, num_temperatures), np.float32)
    log_partition_NT = np.zeros((num_rows, num_temperatures), np.float32)
    rows_R = np.zeros(0, np.int64)
    if topk is None:
        ids_NK, logprobs_NK = np.zeros((num_rows, 0), np.int64), np.zeros((num_rows, 0), np.float32)
    elif len(topk.rows_R) == num_rows and (topk.counts_R == width).all():  # as ever at a fixed k with one tokenizer
        ids_NK = topk.ids_E.reshape(num_rows, width).astype(np.int64, copy=False)
        logprobs_NK = topk.logprobs_E.reshape(num_rows, width)
    else:
        counts_N = np.zeros(num_rows, np.int32)
        counts_N[topk.rows_R] = topk.counts_R
        is_kept_NK = np.arange(width) < counts_N[:, None]
        ids_NK = np.full((num_rows, width), -1, np.int64)
        ids_NK[is_kept_NK] = topk.ids_E  # rows increase, so in this order
        logprobs_NK = np.full((num_rows, width), -np.inf, np.float32)
        logprobs_NK[is_kept_NK] = topk.logprobs_E
    if topk is not None:
        log_tail_NT[topk.rows_R] = topk.log_tail_RT
        log_partition_NT[topk.rows_R] = topk.log_partition_RT
        rows_R = topk.rows_R.astype(np.int64)
    return rows_R, ids_NK, logprobs_NK, log_tail_NT, log_partition_NT


def _drawn(shared: SharedTopK | None) -> tuple[Ints, Ints, npt.NDArray[np.float32]]:
    """Return row and id of each id drawn from a tail, with its log-prob and its share of the row's draws, [2, D]."""
    if shared is None or (tail := shared.topk.tail) is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((2, 0), np.float32)
    row_D = np.repeat(shared.topk.rows_R.astype(np.int64), tail.counts_R)
    share_D = tail.draws_S / np.repeat(np.maximum(shared.num_draws_R, 1), tail.counts_R)
    return row_D, tail.ids_S.astype(np.int64), np.stack([tail.logprobs_S, share_D.astype(np.float32)])


def _padded_draws(
    num_rows: int, row_D: Ints, column_D: Ints, drawn: npt.NDArray[np.float32]
) -> tuple[Array, Array, Array]:
    """Return columns, log-probs and shares as padded rows."""
    counts_N = np.bincount(row_D, minlength=num_rows)
    order_D = np.argsort(row_D, kind="stable")
    rank_D = ranges(0, counts_N)
    shape = (num_rows, int(counts_N.max(initial=0)))
    column_ND, logprob_ND = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
    share_ND = np.zeros(shape, np.float32)
    place = (row_D[order_D], rank_D)
    column_ND[place], logprob_ND[place], share_ND[place] = column_D[order_D], *drawn[:, order_D]
    return column_ND, logprob_ND, share_ND


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Candidates of chunks before their logits have columns; names as in `ChunkTargets`."""

    chunk_J: Ints
    logprob_J: Array
    token_candidate_F: Ints
    token_row_F: Ints
    token_id_F: Ints
    log_tail_CT: Array
    log_partition_CT: Array


def _candidates(chunks: ChunkCandidates | None, active: ActiveChunks, num_temperatures: int) -> _Candidates:
    log_tail_CT = np.zeros((len(active.spans_A4), num_temperatures), np.float32)
    log_partition_CT = np.zeros_like(log_tail_CT)
    if chunks is None:
        nothing = np.zeros(0, np.int64)
        return _Candidates(nothing, np.zeros(0, np.float32), nothing, nothing, nothing, log_tail_CT, log_partition_CT)
    chunk_A = sums_before(active.is_active_C)[chunks.chunks_A]
    log_tail_CT[chunk_A], log_partition_CT[chunk_A] = chunks.log_tail_AT, chunks.log_partition_AT
    chunk_J = np.repeat(chunk_A, chunks.counts_A)
    size_J = active.size_A[chunk_J]
    candidate_F = np.repeat(np.arange(len(chunk_J)), size_J)
    row_F = ranges(active.first_row_A[chunk_J], size_J)
    id_F = chunks.ids_F.astype(np.int64)
    return _Candidates(chunk_J, chunks.logprobs_J, candidate_F, row_F, id_F, log_tail_CT, log_partition_CT)
