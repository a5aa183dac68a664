"""Candidate chunks: the likeliest tuples of teacher tokens over a chunk's positions, spelled in student tokens.

The teacher predicts masked positions independently, so a tuple's probability is a product, and the likeliest tuples
are found position by position: the best prefixes with one more position are extensions of the best prefixes. All that
is dropped is summed, at every temperature, so that candidates and tail make up the whole distribution. No mass is
computed as 1 minus a sum.

Shape suffixes: N masked rows, A chunks of all views of a batch, G those with the same number of teacher tokens,
J candidates, K kept ids of a row, T temperatures, M teacher tokens of a chunk, P student tokens of a candidate,
F student tokens of all candidates, concatenated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import places_in_lists
from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.row_signals import RowSignals
from tide_cache.records import ChunkCandidates, Int32s
from tide_cache.shards.record_columns import repeats_of_candidates
from tide_cache.signal_table import concat, empty, take

Floats = npt.NDArray[np.float64]


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

    def several(self, tuples: Sequence[tuple[int, ...]]) -> list[tuple[int, ...] | None]:
        """Spell tuples of teacher tokens in any number of student tokens; None if that is impossible."""


@dataclass(frozen=True, eq=False)
class AskedChunks:
    """Chunks for which a forward must give candidates: those of its views that have a loss.

    Attributes:
        index_A: Number of each chunk among those of its pair.
        first_row_A: Masked row of its first teacher position; the others follow.
        teacher_size_A: Number of its teacher tokens.
        student_size_A: Number of its student tokens.
        student_ids_F: Its true student tokens, chunk by chunk.
    """

    index_A: Int32s
    first_row_A: Int32s
    teacher_size_A: Int32s
    student_size_A: Int32s
    student_ids_F: Int32s


def chunk_candidates(
    chunks: AskedChunks, true_ids_N: Int32s, rows: RowSignals, spelling: Speller, signals: SignalsConfig
) -> ChunkCandidates:
    """Return the candidates of all chunks of a batch, in the order given.

    The chunk's own text is spelled in its own student tokens, even if the student would tokenize it differently alone.
    If two tuples are spelled the same, the likelier one is the candidate and the other joins the tail.

    Args:
        chunks: Active chunks; rows of chunks of several tokens keep `top_k` ids, or the whole vocabulary.
        true_ids_N: True teacher token of each row.
        rows: Signals of the rows.
        spelling: From teacher to student tokens.
        signals: What to keep.
    """
    parts = [
        _group(np.flatnonzero(chunks.teacher_size_A == size), int(size), chunks, true_ids_N, rows, spelling, signals)
        for size in np.unique(chunks.teacher_size_A)
    ]
    joined = concat([empty(ChunkCandidates, len(signals.temperatures)), *parts])
    ordered = take(joined, np.argsort(joined.chunks_A), chunks.student_size_A[joined.chunks_A])
    return replace(ordered, chunks_A=chunks.index_A)


def _group(
    members_G: npt.NDArray[np.int64],
    size: int,
    chunks: AskedChunks,
    true_ids_N: Int32s,
    rows: RowSignals,
    spelling: Speller,
    signals: SignalsConfig,
) -> ChunkCandidates:
    """Return the candidates of the chunks of `size` teacher tokens; `chunks_A` of the result are places in `chunks`."""
    likely = likely_tuples(members_G, size, chunks, true_ids_N, rows, signals)
    group_J, logprobs_J, is_true_J, log_tail_GT = (
        likely.group_J,
        likely.logprobs_J,
        likely.is_true_J,
        likely.log_tail_GT,
    )
    sizes_J = chunks.student_size_A[members_G][group_J]
    spelled_JP = _spelled(likely.tuples_JM, sizes_J, spelling)
    own = chunks.student_ids_F[places_in_lists(chunks.student_size_A, members_G[group_J[is_true_J]])]
    true_JP = spelled_JP[is_true_J]
    true_JP[np.arange(spelled_JP.shape[1]) < sizes_J[is_true_J, None]] = own
    spelled_JP[is_true_J] = true_JP
    is_spelled_J = spelled_JP[:, 0] >= 0
    is_kept_J = is_spelled_J.copy()
    is_kept_J[is_spelled_J] = ~repeats_of_candidates(
        _end_to_end(spelled_JP[is_spelled_J], sizes_J[is_spelled_J]), sizes_J[is_spelled_J], group_J[is_spelled_J]
    )
    for index, temperature in enumerate(signals.temperatures):
        np.logaddexp.at(log_tail_GT[:, index], group_J[~is_kept_J], logprobs_J[~is_kept_J] / temperature)
    return ChunkCandidates(
        chunks_A=members_G.astype(np.int32),
        counts_A=np.bincount(group_J[is_kept_J], minlength=len(members_G)).astype(np.int32),
        ids_F=_end_to_end(spelled_JP[is_kept_J], sizes_J[is_kept_J]).astype(np.uint32),
        logprobs_J=logprobs_J[is_kept_J].astype(np.float32),
        log_tail_AT=log_tail_GT.astype(np.float32),
        log_partition_AT=rows.log_partition_NT.numpy()[likely.rows_GM].sum(axis=1, dtype=np.float64).astype(np.float32),
    )


def _end_to_end(spelled_JP: Int32s, sizes_J: Int32s) -> Int32s:
    """Return the first `sizes_J` ids of each row, concatenated."""
    if spelled_JP.shape[1] == 1:
        return spelled_JP[:, 0]
    return spelled_JP[np.arange(spelled_JP.shape[1]) < sizes_J[:, None]]


@dataclass(frozen=True, eq=False)
class LikelyTuples:
    """The likeliest tuples of some chunks, chunk by chunk, likeliest first.

    Attributes:
        rows_GM: Rows of the positions of each chunk.
        group_J: Chunk of each.
        tuples_JM: Its teacher tokens.
        logprobs_J: Its log-prob at T = 1, float64.
        is_true_J: Whether it is the chunk's own text.
        log_tail_GT: log of the sum of p^(1/T) over all other tuples of each chunk.
    """

    rows_GM: npt.NDArray[np.integer]
    group_J: npt.NDArray[np.int64]
    tuples_JM: npt.NDArray[np.int64]
    logprobs_J: Floats
    is_true_J: npt.NDArray[np.bool_]
    log_tail_GT: Floats


def likely_tuples(
    members_G: npt.NDArray[np.int64],
    size: int,
    chunks: AskedChunks,
    true_ids_N: npt.NDArray[np.integer],
    rows: RowSignals,
    signals: SignalsConfig,
) -> LikelyTuples:
    """Return the likeliest tuples of the chunks `members_G`, which have `size` teacher tokens each."""
    rows_GM = chunks.first_row_A[members_G][:, None] + np.arange(size)
    tuples_GJM, logprobs_GJ, log_tail_GT = best_tuples(rows_GM, rows, signals)
    found_J = np.flatnonzero(logprobs_GJ > -np.inf)
    group_J = found_J // logprobs_GJ.shape[1]
    tuples_JM = tuples_GJM.reshape(-1, size)[found_J]
    true_GM = true_ids_N[rows_GM]
    is_true_J = np.logical_and.reduce([tuples_JM[:, m] == true_GM[group_J, m] for m in range(size)])
    return LikelyTuples(rows_GM, group_J, tuples_JM, logprobs_GJ.ravel()[found_J], is_true_J, log_tail_GT)


def best_tuples(
    rows_GM: npt.NDArray[np.integer], rows: RowSignals, signals: SignalsConfig
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Return the likeliest tuples over the positions of each chunk, and the sum of all others.

    A chunk of one position has all ids that its row keeps. One of several has at most `signals.chunk_k` tuples, and
    the fewest that reach `signals.top_p`.

    Args:
        rows_GM: Rows of the positions of each chunk.
        rows: Signals of the rows.
        signals: What to keep.

    Returns:
        Teacher ids [G, J, M], log-probs at T = 1 [G, J], decreasing, -inf if a chunk has fewer, and the log of the
        others' sum of p^(1/T) [G, T].
    """
    first = _lists(rows, rows_GM[:, 0])
    tuples_GJM, logprobs_GJ, rest_GT = first.ids_GK[:, :, None], first.logprobs_GK, first.log_tail_GT
    for row_G in rows_GM.T[1:]:
        last = _lists(rows, row_G)
        rest_GT = np.logaddexp(rest_GT + last.log_partition_GT, _log_powers(logprobs_GJ, signals) + last.log_tail_GT)
        rest_GT = np.logaddexp(rest_GT, _hopeless(logprobs_GJ, last.logprobs_GK, signals))
        prefix_X, last_X = _hopeful(logprobs_GJ.shape[1], last.ids_GK.shape[1], signals.chunk_k)
        extended_GX = logprobs_GJ[:, prefix_X] + last.logprobs_GK[:, last_X]
        chosen_GJ = np.argsort(-extended_GX, axis=1, kind="stable")[:, : signals.chunk_k]
        rest_GT = np.logaddexp(rest_GT, _log_powers(_without(extended_GX, chosen_GJ), signals))
        prefix_GJ, last_GJ = prefix_X[chosen_GJ], last_X[chosen_GJ]
        tuples_GJM = np.concatenate(
            [
                np.take_along_axis(tuples_GJM, prefix_GJ[:, :, None], axis=1),
                np.take_along_axis(last.ids_GK, last_GJ, axis=1)[:, :, None],
            ],
            axis=2,
        )
        logprobs_GJ = np.take_along_axis(extended_GX, chosen_GJ, axis=1)
    if rows_GM.shape[1] > 1 and signals.top_p < 1:
        mass_GJ = np.exp(logprobs_GJ).cumsum(axis=1)
        is_surplus_GJ = np.concatenate([np.zeros((len(mass_GJ), 1), bool), mass_GJ[:, :-1] >= signals.top_p], axis=1)
        rest_GT = np.logaddexp(rest_GT, _log_powers(np.where(is_surplus_GJ, logprobs_GJ, -np.inf), signals))
        logprobs_GJ = np.where(is_surplus_GJ, -np.inf, logprobs_GJ)
    return tuples_GJM, logprobs_GJ, rest_GT


@dataclass(frozen=True, eq=False)
class _Lists:
    """The kept ids of some rows, one row of each chunk, in float64; ids that are not kept have -inf."""

    ids_GK: npt.NDArray[np.int64]
    logprobs_GK: Floats
    log_tail_GT: Floats
    log_partition_GT: Floats


def _lists(rows: RowSignals, row_G: npt.NDArray[np.integer]) -> _Lists:
    is_kept_GK = np.arange(rows.ids_NK.shape[1]) < rows.counts_N.numpy()[row_G, None]
    return _Lists(
        ids_GK=rows.ids_NK.numpy()[row_G].astype(np.int64, copy=False),
        logprobs_GK=np.where(is_kept_GK, rows.logprobs_NK.numpy()[row_G].astype(np.float64), -np.inf),
        log_tail_GT=rows.log_tail_NT.numpy()[row_G].astype(np.float64),
        log_partition_GT=rows.log_partition_NT.numpy()[row_G].astype(np.float64),
    )


def _hopeful(num_prefixes: int, num_last: int, chunk_k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the pairs [X] of ranks that can be among the `chunk_k` likeliest, by prefix, then by last id.

    Both lists decrease, so (i + 1)(j + 1) - 1 pairs are at least as likely as the pair (i, j), and precede it.
    """
    rank_J, rank_K = np.arange(1, num_prefixes + 1), np.arange(1, num_last + 1)
    prefix_X, last_X = np.nonzero(rank_J[:, None] * rank_K <= chunk_k)
    return prefix_X, last_X


def _hopeless(logprobs_GJ: Floats, last_GK: Floats, signals: SignalsConfig) -> Floats:
    """Return the log of the sum of p^(1/T) over all pairs that `_hopeful` leaves out: [G, T].

    Prefixes with the same number of hopeful last ids are summed together: the sum of pairs is a product of two sums.
    """
    start_J = np.minimum(signals.chunk_k // np.arange(1, logprobs_GJ.shape[1] + 1), last_GK.shape[1])
    beyond_GT = np.full((len(last_GK), len(signals.temperatures)), -np.inf)
    result_GT, end = beyond_GT, last_GK.shape[1]
    for start in np.unique(start_J)[::-1].tolist():
        beyond_GT = np.logaddexp(beyond_GT, _log_powers(last_GK[:, start:end], signals))
        result_GT = np.logaddexp(result_GT, _log_powers(logprobs_GJ[:, start_J == start], signals) + beyond_GT)
        end = start
    return result_GT


def _without(logprobs_GX: Floats, chosen_GJ: npt.NDArray[np.int64]) -> Floats:
    result_GX = logprobs_GX.copy()
    np.put_along_axis(result_GX, chosen_GJ, -np.inf, axis=1)
    return result_GX


def _log_powers(logprobs_GJ: Floats, signals: SignalsConfig) -> Floats:
    """Return log sum_j p_j^(1/T) of each row, for each T: [G, T]; -inf for rows without any."""
    return np.stack([_logsumexp(logprobs_GJ / temperature) for temperature in signals.temperatures], axis=1)


def _logsumexp(values_GJ: Floats) -> Floats:
    top_G = values_GJ.max(axis=1, initial=-np.inf)
    safe_G = np.where(top_G > -np.inf, top_G, 0)
    with np.errstate(divide="ignore"):
        result: Floats = np.log(np.exp(values_GJ - safe_G[:, None]).sum(axis=1)) + safe_G
    return result


def _spelled(tuples_JM: npt.NDArray[np.int64], sizes_J: Int32s, spelling: Speller) -> Int32s:
    """Return the student tokens of each tuple, [J, P], -1 beyond its size; one without a spelling starts with -1."""
    if tuples_JM.shape[1] == 1:
        return spelling.single(tuples_JM[:, 0].astype(np.int32), sizes_J)
    spelled = [ids or () for ids in spelling.several(list(map(tuple, tuples_JM.tolist())))]
    fits_J = np.fromiter(map(len, spelled), np.int64, len(spelled)) == sizes_J
    result_JP = np.full((len(tuples_JM), int(sizes_J.max(initial=1))), -1, np.int32)
    places_JP = (np.arange(result_JP.shape[1]) < sizes_J[:, None]) & fits_J[:, None]
    result_JP[places_JP] = list(chain.from_iterable(compress(spelled, fits_J.tolist())))
    return result_JP
