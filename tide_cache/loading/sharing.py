"""The teacher's candidates that the student can use, at its rows and in its ids; the others join the tail.

Those of the signal `projected` are at student rows and in student ids already.

Shape suffixes as in `tide_cache.records`; A active chunks of the views, P their masked teacher
positions, R those of them with kept ids.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tide_cache.loading.joining import ActiveChunks, JoinedViews
from tide_cache.records import Float32s, TailSamples, TopK, aligned_pairs
from tide_cache.signal_table import Temperatures, concat, keep_items, take

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SharedTopK:
    """Candidates at some masked rows of several views.

    Attributes:
        topk: `rows_R` are student rows, numbered through the views; ids that the student lacks are removed.
        num_draws_R: Draws from each row's tail, including ids that the student lacks.
    """

    topk: TopK
    num_draws_R: Ints


def told_topk(
    joined: JoinedViews, active: ActiveChunks, shared_vocab_size: int, temperatures: Temperatures
) -> SharedTopK | None:
    """Return the candidates at the rows, from `topk` or `projected`; some rows may have either.

    Args:
        joined: Views of one source.
        active: Their active chunks.
        shared_vocab_size: As for `shared_topk`.
        temperatures: Of tails and partitions.
    """
    shared = shared_topk(joined, active, shared_vocab_size, temperatures)
    if joined.signal is None or (projected := joined.signal.projected) is None:
        return shared
    told = SharedTopK(TopK(**vars(projected)), np.zeros(len(projected.rows_R), np.int64))
    if shared is None:
        return told
    order_R = np.argsort(np.concatenate([shared.topk.rows_R, told.topk.rows_R]))
    draws_R = np.concatenate([shared.num_draws_R, told.num_draws_R])
    return SharedTopK(take(concat([shared.topk, told.topk]), order_R), draws_R[order_R])


def shared_topk(
    joined: JoinedViews, active: ActiveChunks, shared_vocab_size: int, temperatures: Temperatures
) -> SharedTopK | None:
    """Return the positions that have a row, by its number; ids that the student lacks join the rest.

    Args:
        joined: Views of one source.
        active: Their active chunks.
        shared_vocab_size: Teacher ids from here on mean something else to the student.
        temperatures: T of tails and partitions.
    """
    if joined.signal is None or joined.signal.topk is None:
        return None
    topk = joined.signal.topk
    is_pair_A = aligned_pairs(active.spans_A4, joined.teacher_ids_M, joined.student_ids_L, shared_vocab_size)
    position_A = joined.positions_before_M[active.spans_A4[is_pair_A, 0]]
    row_of_position_P = np.full(len(joined.signal.truth_logprobs_N), -1, np.int32)
    row_of_position_P[position_A] = active.first_row_A[is_pair_A]
    row_R = row_of_position_P[topk.rows_R]
    wanted_R = np.flatnonzero(row_R >= 0)
    if len(wanted_R) < len(row_R):
        topk, row_R = take(topk, wanted_R), row_R[wanted_R]
    tail, num_draws_R = _shared_tail(topk, shared_vocab_size)
    if topk.ids_E.max(initial=0) >= shared_vocab_size:  # never so with one tokenizer
        entry_E = np.repeat(np.arange(len(topk.rows_R)), topk.counts_R)
        is_shared_E = topk.ids_E < shared_vocab_size
        log_tail_RT = _with_foreign(topk, entry_E[~is_shared_E], topk.logprobs_E[~is_shared_E], temperatures)
        topk = replace(keep_items(topk, is_shared_E), log_tail_RT=log_tail_RT)
    return SharedTopK(replace(topk, rows_R=row_R, tail=tail), num_draws_R)


def _with_foreign(topk: TopK, row_F: Ints, logprob_F: Float32s, temperatures: Temperatures) -> Float32s:
    """Return the tails with foreign ids added; rows without any keep their exact bits."""
    has_foreign_R = np.zeros(len(topk.rows_R), bool)
    has_foreign_R[row_F] = True
    moved_RT = np.exp(topk.log_tail_RT.astype(np.float64))
    for index, temperature in enumerate(temperatures):
        powers_F = np.exp(logprob_F.astype(np.float64) / temperature)
        moved_RT[:, index] += np.bincount(row_F, weights=powers_F, minlength=len(moved_RT))
    result_RT = topk.log_tail_RT.copy()
    with np.errstate(divide="ignore"):  # a tail may be empty, and what joins it too small for a float64
        result_RT[has_foreign_R] = np.log(moved_RT[has_foreign_R])
    return result_RT


def _shared_tail(topk: TopK, shared_vocab_size: int) -> tuple[TailSamples | None, Ints]:
    """Return the draws of ids that the student has, and the number of all draws of each row."""
    if topk.tail is None:
        return None, np.zeros(len(topk.rows_R), np.int64)
    row_S = np.repeat(np.arange(len(topk.rows_R)), topk.tail.counts_R)
    num_draws_R = np.bincount(row_S, weights=topk.tail.draws_S, minlength=len(topk.rows_R)).astype(np.int64)
    return keep_items(topk.tail, topk.tail.ids_S < shared_vocab_size), num_draws_R
