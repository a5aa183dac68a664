"""Candidate chunks: what the teacher would write over a chunk's positions, spelled in student tokens.

A chunk of one token on both sides, as most are, has the kept ids of its row as candidates. Of any other the likeliest
tuples are searched (`teacher/tuples.py`). What is not spelled in the chunk's number of student tokens joins the tail.

Shape suffixes: A chunks of all views of a batch, G those that are spelled together, J candidates, K kept ids of a row,
T temperatures, M teacher tokens of a chunk, P student tokens of a candidate, F student tokens of all candidates,
concatenated.
"""

from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Int64s, places_in_lists, sums_before
from tide_cache.records import Bools, ChunkCandidates, Int32s
from tide_cache.shards.record_columns import repeats_of_candidates
from tide_cache.signal_table import concat, empty, take
from tide_cache.teacher.tuples import ChunkRows, LikelyTuples, join_tails


class Speller(Protocol):
    """Spells tuples of teacher tokens in student tokens; `pairing.spelling.Spelling` is one."""

    @property
    def num_student_ids(self) -> int:
        """Ids of the student."""

    @property
    def first_V(self) -> Int32s:
        """Student token that the bytes of each teacher id begin with; `num_student_ids` where there is none."""

    def single(self, ids_J: Int32s, sizes_J: Int32s) -> Int32s:
        """Spell single teacher tokens in a given number of student tokens each: [J, P], -1 beyond."""

    def several(self, tuples_JM: Int64s) -> tuple[Int32s, Int64s]:
        """Spell tuples of teacher tokens in any number of student tokens: these end to end, and their number [J]."""


def chunk_candidates(said: ChunkRows, spelling: Speller) -> ChunkCandidates:
    """Return the candidates of all chunks of a batch, in the order given.

    The chunk's own text is spelled in its own student tokens, even if the student would tokenize it differently alone.
    If two tuples are spelled the same, the likelier one is the candidate and the other joins the tail.

    Args:
        said: The chunks, and what was said at their rows.
        spelling: From teacher to student tokens.
    """
    parts = [_of_tuples(likely, said, spelling) for likely in said.likely]
    if said.is_one_A.any():
        parts.append(_of_ids(np.flatnonzero(said.is_one_A), said, spelling))
    joined = parts[0] if len(parts) == 1 else concat([empty(ChunkCandidates, len(said.signals.temperatures)), *parts])
    if len(parts) > 1:
        joined = take(joined, np.argsort(joined.chunks_A), said.chunks.student_size_A[joined.chunks_A])
    return replace(joined, chunks_A=said.chunks.index_A)


def _of_ids(chunks_G: Int64s, said: ChunkRows, spelling: Speller) -> ChunkCandidates:
    """Return the candidates of chunks of one token on both sides: the ids that their rows keep."""
    chunks, rows = said.chunks, said.rows
    row_G = chunks.first_row_A[chunks_G]
    ids_GK, logprobs_GK = rows.ids_NK.numpy()[row_G], rows.logprobs_NK.numpy()[row_G]
    is_there_GK = (np.arange(ids_GK.shape[1]) < rows.counts_N.numpy()[row_G, None]) & (logprobs_GK > -np.inf)
    spelled_GK = spelling.single(ids_GK.ravel(), np.ones(ids_GK.size, np.int32)).reshape(ids_GK.shape)
    own_G = chunks.student_ids_F[sums_before(chunks.student_size_A)[chunks_G]]
    np.copyto(spelled_GK, own_G[:, None], where=ids_GK == said.true_ids_N[row_G, None])
    spelled_GK[~is_there_GK] = -1
    is_kept_GK = (spelled_GK >= 0) & ~_repeats(spelled_GK)
    kept_J, lost_I = np.flatnonzero(is_kept_GK), np.flatnonzero(is_there_GK & ~is_kept_GK)
    lost_logprobs_I = logprobs_GK.ravel()[lost_I].astype(np.float64)
    log_tail_GT = rows.log_tail_NT.numpy()[row_G].astype(np.float64)
    join_tails(log_tail_GT, lost_I // ids_GK.shape[1], lost_logprobs_I, said.signals.temperatures)
    return ChunkCandidates(
        chunks_A=chunks_G.astype(np.int32),
        counts_A=is_kept_GK.sum(axis=1).astype(np.int32),
        ids_F=spelled_GK.ravel()[kept_J].astype(np.uint32),
        logprobs_J=logprobs_GK.ravel()[kept_J],
        log_tail_AT=log_tail_GT.astype(np.float32),
        log_partition_AT=rows.log_partition_NT.numpy()[row_G],
    )


def _repeats(spelled_GK: Int32s) -> Bools:
    """Mark the tokens that an earlier one of their row equals; -1 stands for none."""
    is_repeat_GK = np.zeros(spelled_GK.shape, np.bool_)
    in_order_GK = np.sort(spelled_GK, axis=1)
    has_twice_G = ((in_order_GK[:, 1:] == in_order_GK[:, :-1]) & (in_order_GK[:, 1:] >= 0)).any(axis=1)
    suspects_S = np.flatnonzero(has_twice_G)
    # Sorted by token and place: of equal tokens the first is the earliest.
    bits = spelled_GK.shape[1].bit_length()
    keys_SK = np.sort(spelled_GK[suspects_S].astype(np.int64) << bits | np.arange(spelled_GK.shape[1]), axis=1)
    tokens_SK = keys_SK >> bits
    s, k = np.nonzero((tokens_SK[:, 1:] == tokens_SK[:, :-1]) & (tokens_SK[:, 1:] >= 0))
    is_repeat_GK[suspects_S[s], keys_SK[s, k + 1] & ((1 << bits) - 1)] = True
    return is_repeat_GK


def _of_tuples(likely: LikelyTuples, said: ChunkRows, spelling: Speller) -> ChunkCandidates:
    """Return the candidates of chunks whose likeliest tuples are known; `chunks_A` of the result are their places."""
    chunks, group_J, is_true_J = said.chunks, likely.group_J, likely.is_true_J
    sizes_J = chunks.student_size_A[likely.chunks_G][group_J]
    spelled_JP = _spelled(likely.tuples_JM, sizes_J, spelling)
    own = chunks.student_ids_F[places_in_lists(chunks.student_size_A, likely.chunks_G[group_J[is_true_J]])]
    true_JP = spelled_JP[is_true_J]
    true_JP[np.arange(spelled_JP.shape[1]) < sizes_J[is_true_J, None]] = own
    spelled_JP[is_true_J] = true_JP
    is_spelled_J = spelled_JP[:, 0] >= 0
    is_kept_J = is_spelled_J.copy()
    is_kept_J[is_spelled_J] = ~repeats_of_candidates(
        _end_to_end(spelled_JP[is_spelled_J], sizes_J[is_spelled_J]), sizes_J[is_spelled_J], group_J[is_spelled_J]
    )
    return ChunkCandidates(
        chunks_A=likely.chunks_G.astype(np.int32),
        counts_A=np.bincount(group_J[is_kept_J], minlength=len(likely.chunks_G)).astype(np.int32),
        ids_F=_end_to_end(spelled_JP[is_kept_J], sizes_J[is_kept_J]).astype(np.uint32),
        logprobs_J=likely.logprobs_J[is_kept_J].astype(np.float32),
        log_tail_AT=likely.log_tail_with(~is_kept_J, said.signals.temperatures).astype(np.float32),
        log_partition_AT=likely.log_partition_GT.astype(np.float32),
    )


def _end_to_end(spelled_JP: Int32s, sizes_J: Int32s) -> Int32s:
    """Return the first `sizes_J` ids of each row, concatenated."""
    return spelled_JP[np.arange(spelled_JP.shape[1]) < sizes_J[:, None]]


def _spelled(tuples_JM: Int64s, sizes_J: Int32s, spelling: Speller) -> Int32s:
    """Return the student tokens of each tuple, [J, P], -1 beyond its size; one without a spelling starts with -1."""
    if tuples_JM.shape[1] == 1:
        return spelling.single(tuples_JM[:, 0].astype(np.int32), sizes_J)
    ids_F, found_J = spelling.several(tuples_JM)
    fits_J: npt.NDArray[np.bool_] = found_J == sizes_J
    result_JP = np.full((len(tuples_JM), int(sizes_J.max(initial=1))), -1, np.int32)
    places_JP = (np.arange(result_JP.shape[1]) < sizes_J[:, None]) & fits_J[:, None]
    result_JP[places_JP] = ids_F[np.repeat(fits_J, found_J)]
    return result_JP
