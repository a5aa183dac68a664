"""What the teacher said about tokens other than the true ones: one gathered logit per id.

A masked row's logits are gathered once per id, whatever needs it: the true token (column 0), the row's kept ids, and
further ids that candidate chunks and draws from the tail use. All but column 0 are distinct within a row, so that
the mass outside any subset of them is a sum of what is gathered and of the rest.

The columns of kept ids depend on the batch, whose rows are as wide as its longest. So a place is noted first: the
rank of a kept id, or the number n of a further id of the row as -1 - n.

Shape suffixes as in `tide_cache.records`; W wanted (row, id) entries, U distinct ones.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import ranges, sums_before
from tide_cache.loading.joining import ActiveChunks
from tide_cache.loading.sharing import SharedTopK
from tide_cache.records import ChunkCandidates, TopK

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Ids drawn from tails.

    Attributes:
        row_D: Row of each, increasing.
        id_D: The id.
        logprob_D: Its log-prob at T = 1, float32.
        share_D: Its share of the row's draws, float32.
    """

    row_D: Ints
    id_D: Ints
    logprob_D: Array
    share_D: Array


def drawn_of(shared: SharedTopK | None) -> Drawn:
    """Return the ids drawn from the tails of shared candidates."""
    if shared is None or (tail := shared.topk.tail) is None:
        nothing, no_values = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return Drawn(nothing, nothing, no_values, no_values)
    row_D = np.repeat(shared.topk.rows_R.astype(np.int64), tail.counts_R)
    share_D = tail.draws_S / np.repeat(np.maximum(shared.num_draws_R, 1), tail.counts_R)
    return Drawn(row_D, tail.ids_S.astype(np.int64), tail.logprobs_S, share_D.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates of chunks before their logits have columns; names as in `ChunkTargets`."""

    chunk_J: Ints
    logprob_J: Array
    token_candidate_F: Ints
    token_row_F: Ints
    token_id_F: Ints
    log_tail_CT: Array
    log_partition_CT: Array


def candidates_of(chunks: ChunkCandidates | None, active: ActiveChunks, num_temperatures: int) -> Candidates:
    """Return the candidates of active chunks, numbered among these."""
    log_tail_CT = np.zeros((len(active.spans_A4), num_temperatures), np.float32)
    log_partition_CT = np.zeros_like(log_tail_CT)
    if chunks is None:
        nothing = np.zeros(0, np.int64)
        return Candidates(nothing, np.zeros(0, np.float32), nothing, nothing, nothing, log_tail_CT, log_partition_CT)
    chunk_A = sums_before(active.is_active_C)[chunks.chunks_A]
    log_tail_CT[chunk_A], log_partition_CT[chunk_A] = chunks.log_tail_AT, chunks.log_partition_AT
    chunk_J = np.repeat(chunk_A, chunks.counts_A)
    size_J = active.size_A[chunk_J]
    candidate_F = np.repeat(np.arange(len(chunk_J)), size_J)
    row_F = ranges(active.first_row_A[chunk_J], size_J)
    id_F = chunks.ids_F.astype(np.int64)
    return Candidates(chunk_J, chunks.logprobs_J, candidate_F, row_F, id_F, log_tail_CT, log_partition_CT)


def kept_as_candidates(kept: TopK, active: ActiveChunks, num_rows: int) -> Candidates:
    """Return the kept ids of rows as candidates of their chunks: where one token meets one token these are the same.

    Args:
        kept: `rows_R` are rows of chunks of one token on each side.
        active: The active chunks.
        num_rows: Number of masked rows.
    """
    chunk_R = active.chunk_of_row(num_rows)[kept.rows_R]
    log_tail_CT = np.zeros((len(active.spans_A4), kept.log_tail_RT.shape[1]), np.float32)
    log_partition_CT = np.zeros_like(log_tail_CT)
    log_tail_CT[chunk_R], log_partition_CT[chunk_R] = kept.log_tail_RT, kept.log_partition_RT
    chunk_J, row_J = (np.repeat(what_R, kept.counts_R).astype(np.int64) for what_R in (chunk_R, kept.rows_R))
    id_J = kept.ids_E.astype(np.int64)
    return Candidates(chunk_J, kept.logprobs_E, np.arange(len(id_J)), row_J, id_J, log_tail_CT, log_partition_CT)


def gather_places(num_rows: int, kept: TopK | None, row_W: Ints, id_W: Ints) -> tuple[Ints, Ints, Ints]:
    """Find a place for each wanted id of a row: that of a kept id, or of one of the row's further ids.

    Args:
        num_rows: Number of rows.
        kept: Kept ids; `rows_R` are their rows.
        row_W: Row of each wanted entry.
        id_W: Its id.

    Returns:
        The place of each entry [W], the number of further ids of each row [N], and these ids, increasing within a
        row, distinct and not among the kept ones.
    """
    if not len(id_W):  # only kept ids are needed; sorting all of them would be most of the work
        nothing = np.zeros(0, np.int64)
        return nothing, np.zeros(num_rows, np.int64), nothing
    key_U, of_wanted_W = np.unique(_key(row_W, id_W), return_inverse=True)
    place_U = np.zeros(len(key_U), np.int64)
    is_kept_U = np.zeros(len(key_U), bool)
    if kept is not None and len(kept.ids_E):
        kept_key_E = _key(np.repeat(kept.rows_R.astype(np.int64), kept.counts_R), kept.ids_E.astype(np.int64))
        order_E = np.argsort(kept_key_E)
        found_U = np.minimum(np.searchsorted(kept_key_E, key_U, sorter=order_E), len(order_E) - 1)
        is_kept_U = kept_key_E[order_E[found_U]] == key_U
        place_U[is_kept_U] = ranges(0, kept.counts_R)[order_E[found_U[is_kept_U]]]
    extra_row, extra_id = np.divmod(key_U[~is_kept_U], _IDS)
    extras_N = np.bincount(extra_row, minlength=num_rows)
    place_U[~is_kept_U] = -1 - ranges(0, extras_N)
    return place_U[of_wanted_W], extras_N, extra_id


def columns_of(places_W: Ints, width: int) -> Ints:
    """Return the columns of places where rows have so many kept ids, counted from the true token's column 0."""
    return np.where(places_W < 0, width - places_W, 1 + places_W)


_IDS = 1 << 32
"""Larger than any vocabulary."""


def _key(row: Ints, token_id: Ints) -> Ints:
    return row * _IDS + token_id
