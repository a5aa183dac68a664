"""What the teacher said of other tokens than the true ones, laid out for a batch: one gathered logit for every id.

A masked row's logits are gathered once per id, whatever needs it: the true token (column 0), the row's kept ids, and
further ids that candidate chunks and draws from the tail speak of. All but column 0 are distinct within a row, so that
the mass outside any subset of them is a sum of what is gathered and of the rest.

Shape suffixes as in `tide_cache.records`; W wanted (row, id) entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tide_cache.records import ChunkCandidates, TopK

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SampleSignals:
    """A sample's signals in the numbering of its masked rows and active chunks.

    Attributes:
        num_rows: Masked rows.
        num_chunks: Active chunks.
        topk: With `rows_R` turned into rows of this sample; foreign ids gone.
        num_draws_R: Draws from each row's tail, foreign ids included.
        chunks: One entry for each active chunk.
        first_row_A: First row of each active chunk.
        size_A: Student tokens of each active chunk.
    """

    num_rows: int
    num_chunks: int
    topk: TopK | None
    num_draws_R: Ints
    chunks: ChunkCandidates | None
    first_row_A: Ints
    size_A: Ints


def candidate_targets(samples: Sequence[SampleSignals], num_temperatures: int) -> dict[str, torch.Tensor]:
    """Give the fields of `Targets` that speak of candidates: kept ids, draws and chunks.

    Args:
        samples: Of the batch, in order.
        num_temperatures: T of tails and partitions.
    """
    rows_B = np.array([sample.num_rows for sample in samples])
    first_row_B = np.cumsum(rows_B) - rows_B
    kept = _kept(samples, first_row_B, num_temperatures)
    drawn_row_D, drawn_id_D, drawn = _drawn(samples, first_row_B)
    token_row_F, token_id_F, chunks = _chunks(samples, first_row_B, num_temperatures)
    wanted_row_W, wanted_id_W = np.concatenate([drawn_row_D, token_row_F]), np.concatenate([drawn_id_D, token_id_F])
    extra_ids_NX, column_W = gather_columns(kept["kept_ids_NK"], wanted_row_W, wanted_id_W)
    arrays = {
        **kept,
        **_padded_draws(int(rows_B.sum()), drawn_row_D, column_W[: len(drawn_row_D)], drawn),
        **chunks,
        "extra_ids_NX": extra_ids_NX,
        "token_column_F": column_W[len(drawn_row_D) :],
    }
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


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
    if not len(id_W):  # nothing but kept ids is spoken of: then sorting all of them would be most of the work
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
    extra_rank = np.arange(len(extra_row)) - np.repeat(np.cumsum(per_row_N) - per_row_N, per_row_N)
    column_U[~is_kept_U] = 1 + num_kept + extra_rank
    extra_ids_NX = np.full((num_rows, int(per_row_N.max(initial=0))), -1, np.int64)
    extra_ids_NX[extra_row, extra_rank] = extra_id
    return extra_ids_NX, column_U[of_wanted_W]


_IDS = 1 << 32
"""More than any vocabulary has."""


def _key(row: Ints, token_id: Ints) -> Ints:
    return row * _IDS + token_id


def _kept(samples: Sequence[SampleSignals], first_row_B: Ints, num_temperatures: int) -> dict[str, Array]:
    """Lay the ragged candidates of all samples out as padded rows."""
    num_rows = sum(sample.num_rows for sample in samples)
    present = [
        (sample.topk, first) for sample, first in zip(samples, first_row_B, strict=True) if sample.topk is not None
    ]
    counts_R = np.concatenate([np.zeros(0, np.int32), *(topk.counts_R for topk, _ in present)])
    width = int(counts_R.max(initial=0))
    ids_NK = np.full((num_rows, width), -1, np.int64)
    logprobs_NK = np.full((num_rows, width), -np.inf, np.float32)
    log_tail_NT = np.zeros((num_rows, num_temperatures), np.float32)
    log_partition_NT = np.zeros((num_rows, num_temperatures), np.float32)
    has_topk_N = np.zeros(num_rows, bool)
    if present:
        rows_R = np.concatenate([topk.rows_R + first for topk, first in present])
        counts_N = np.zeros(num_rows, np.int32)
        counts_N[rows_R] = counts_R
        is_kept_NK = np.arange(width) < counts_N[:, None]
        ids_NK[is_kept_NK] = np.concatenate([topk.ids_E for topk, _ in present])  # rows increase, so in this order
        logprobs_NK[is_kept_NK] = np.concatenate([topk.logprobs_E for topk, _ in present])
        log_tail_NT[rows_R] = np.concatenate([topk.log_tail_RT for topk, _ in present])
        log_partition_NT[rows_R] = np.concatenate([topk.log_partition_RT for topk, _ in present])
        has_topk_N[rows_R] = True
    return {
        "has_topk_N": has_topk_N,
        "kept_ids_NK": ids_NK,
        "kept_logprobs_NK": logprobs_NK,
        "log_tail_NT": log_tail_NT,
        "log_partition_NT": log_partition_NT,
    }


def _drawn(samples: Sequence[SampleSignals], first_row_B: Ints) -> tuple[Ints, Ints, npt.NDArray[np.float32]]:
    """Row and id of each id drawn from a tail, with its log-prob and its share of the row's draws, [2, D]."""
    rows, ids, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros((2, 0), np.float32)]
    for sample, first in zip(samples, first_row_B, strict=True):
        if sample.topk is not None and (tail := sample.topk.tail) is not None:
            rows.append(np.repeat(sample.topk.rows_R.astype(np.int64) + first, tail.counts_R))
            ids.append(tail.ids_S.astype(np.int64))
            share_S = tail.draws_S / np.repeat(np.maximum(sample.num_draws_R, 1), tail.counts_R)
            values.append(np.stack([tail.logprobs_S, share_S.astype(np.float32)]))
    return np.concatenate(rows), np.concatenate(ids), np.concatenate(values, axis=1)


def _padded_draws(num_rows: int, row_D: Ints, column_D: Ints, drawn: npt.NDArray[np.float32]) -> dict[str, Array]:
    counts_N = np.bincount(row_D, minlength=num_rows)
    order_D = np.argsort(row_D, kind="stable")
    rank_D = np.arange(len(row_D)) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
    shape = (num_rows, int(counts_N.max(initial=0)))
    column_ND, logprob_ND = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
    share_ND = np.zeros(shape, np.float32)
    place = (row_D[order_D], rank_D)
    column_ND[place], logprob_ND[place], share_ND[place] = column_D[order_D], *drawn[:, order_D]
    return {"drawn_column_ND": column_ND, "drawn_logprob_ND": logprob_ND, "drawn_share_ND": share_ND}


def _chunks(
    samples: Sequence[SampleSignals], first_row_B: Ints, num_temperatures: int
) -> tuple[Ints, Ints, dict[str, Array]]:
    """Row and id of each candidate token, and what the teacher says of candidates and chunks."""
    chunks_B = np.array([sample.num_chunks for sample in samples])
    first_chunk_B = np.cumsum(chunks_B) - chunks_B
    log_tail_CT = np.zeros((int(chunks_B.sum()), num_temperatures), np.float32)
    log_partition_CT = np.zeros_like(log_tail_CT)
    nothing = np.zeros(0, np.int64)
    chunk_J, logprob_J, candidate_F, row_F, id_F = [nothing], [np.zeros(0, np.float32)], [nothing], [nothing], [nothing]
    num_candidates = 0
    for sample, first_row, first_chunk in zip(samples, first_row_B, first_chunk_B, strict=True):
        if (chunks := sample.chunks) is None:
            continue
        log_tail_CT[first_chunk : first_chunk + sample.num_chunks] = chunks.log_tail_AT
        log_partition_CT[first_chunk : first_chunk + sample.num_chunks] = chunks.log_partition_AT
        owner_J = np.repeat(np.arange(sample.num_chunks), chunks.counts_A)
        size_J = sample.size_A[owner_J]
        chunk_J.append(owner_J + first_chunk)
        logprob_J.append(chunks.logprobs_J)
        candidate_F.append(np.repeat(np.arange(len(owner_J)), size_J) + num_candidates)
        within_F = np.arange(size_J.sum()) - np.repeat(np.cumsum(size_J) - size_J, size_J)
        row_F.append(np.repeat(sample.first_row_A[owner_J] + first_row, size_J) + within_F)
        id_F.append(chunks.ids_F.astype(np.int64))
        num_candidates += len(owner_J)
    rows_F = np.concatenate(row_F)
    return rows_F, np.concatenate(id_F), {
        "candidate_chunk_J": np.concatenate(chunk_J),
        "candidate_logprob_J": np.concatenate(logprob_J),
        "token_candidate_F": np.concatenate(candidate_F),
        "token_row_F": rows_F,
        "chunk_log_tail_CT": log_tail_CT,
        "chunk_log_partition_CT": log_partition_CT,
    }  # fmt: skip
