"""Candidate chunks: the likeliest tuples of teacher tokens over a chunk's positions, spelled in student tokens.

The teacher predicts masked positions independently, so a tuple's probability is a product, and the likeliest tuples
come position by position: the best prefixes of one position more are extensions of the best prefixes. Whatever is
dropped on the way is added up, at every temperature, so that candidates and tail are the whole distribution; no mass
is ever taken from 1 minus a sum.

Shape suffixes: N masked rows, A chunks of all views of a batch, G those of them with equally many teacher tokens,
J candidates, K kept ids of a row, T temperatures, M teacher tokens of a chunk, P student tokens of a candidate,
F student tokens of all candidates, end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """Writes tuples of teacher tokens in student tokens; `pairing.spelling.Spelling` is one."""

    def single(self, ids_J: Int32s, sizes_J: Int32s) -> Int32s:
        """Spell single teacher tokens in a given number of student tokens each: [J, P], -1 beyond."""

    def several(self, tuples: Sequence[tuple[int, ...]]) -> list[tuple[int, ...] | None]:
        """Spell tuples of teacher tokens in as many student tokens as it takes; None where that cannot be done."""


@dataclass(frozen=True, eq=False)
class AskedChunks:
    """Chunks whose candidates a forward is asked for: those of its views that carry a loss.

    Attributes:
        index_A: Which of its pair's chunks each is.
        first_row_A: Masked row of its first teacher position; the others follow.
        teacher_size_A: Its teacher tokens.
        student_size_A: Its student tokens.
        student_ids_F: Its true student tokens, chunk by chunk.
    """

    index_A: Int32s
    first_row_A: Int32s
    teacher_size_A: Int32s
    student_size_A: Int32s
    student_ids_F: Int32s


def chunk_candidates(
    chunks: AskedChunks, true_ids_N: Int32s, rows: RowSignals, spelling: Speller, plan: SignalsConfig
) -> ChunkCandidates:
    """Return the candidates of all chunks of a batch, in the order given.

    The chunk's own text is spelled in its own student tokens, whatever the student would make of it alone. Where two
    tuples are spelled alike, the likelier one is the candidate and the other is tail.

    Args:
        chunks: Active chunks; rows of chunks of several tokens keep `top_k` ids, or all that the vocabulary has.
        true_ids_N: True teacher token of each row.
        rows: Signals of the rows.
        spelling: From teacher to student tokens.
        plan: What to keep.
    """
    parts = [
        _group(np.flatnonzero(chunks.teacher_size_A == size), int(size), chunks, true_ids_N, rows, spelling, plan)
        for size in np.unique(chunks.teacher_size_A)
    ]
    joined = concat([empty(ChunkCandidates, len(plan.temperatures)), *parts])
    ordered = take(joined, np.argsort(joined.chunks_A), chunks.student_size_A[joined.chunks_A])
    return replace(ordered, chunks_A=chunks.index_A)


def _group(
    members_G: npt.NDArray[np.int64],
    size: int,
    chunks: AskedChunks,
    true_ids_N: Int32s,
    rows: RowSignals,
    spelling: Speller,
    plan: SignalsConfig,
) -> ChunkCandidates:
    """Candidates of the chunks of `size` teacher tokens; `chunks_A` of the result are places in `chunks`."""
    rows_GM = chunks.first_row_A[members_G][:, None] + np.arange(size)
    tuples_GJM, logprobs_GJ, log_tail_GT = best_tuples(rows_GM, rows, plan)
    group_J, rank_J = np.nonzero(logprobs_GJ > -np.inf)
    tuples_JM, logprobs_J = tuples_GJM[group_J, rank_J], logprobs_GJ[group_J, rank_J]
    sizes_J = chunks.student_size_A[members_G][group_J]
    spelled_JP = _spelled(tuples_JM, sizes_J, spelling)
    is_true_J = (tuples_JM == true_ids_N[rows_GM][group_J]).all(axis=1)
    own = chunks.student_ids_F[places_in_lists(chunks.student_size_A, members_G[group_J[is_true_J]])]
    place_JP = np.arange(spelled_JP.shape[1]) < sizes_J[:, None]
    spelled_JP[place_JP & is_true_J[:, None]] = own
    is_spelled_J = spelled_JP[:, 0] >= 0
    is_kept_J = is_spelled_J.copy()
    is_kept_J[is_spelled_J] = ~repeats_of_candidates(
        spelled_JP[is_spelled_J][place_JP[is_spelled_J]], sizes_J[is_spelled_J], group_J[is_spelled_J]
    )
    for index, temperature in enumerate(plan.temperatures):
        np.logaddexp.at(log_tail_GT[:, index], group_J[~is_kept_J], logprobs_J[~is_kept_J] / temperature)
    return ChunkCandidates(
        chunks_A=members_G.astype(np.int32),
        counts_A=np.bincount(group_J[is_kept_J], minlength=len(members_G)).astype(np.int32),
        ids_F=spelled_JP[is_kept_J][place_JP[is_kept_J]].astype(np.uint32),
        logprobs_J=logprobs_J[is_kept_J].astype(np.float32),
        log_tail_AT=log_tail_GT.astype(np.float32),
        log_partition_AT=rows.log_partition_NT.numpy()[rows_GM].sum(axis=1, dtype=np.float64).astype(np.float32),
    )


def best_tuples(
    rows_GM: npt.NDArray[np.integer], rows: RowSignals, plan: SignalsConfig
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Find the likeliest tuples over the positions of each chunk, and add up all the others.

    A chunk of one position has all ids that its row keeps; one of several has at most `plan.chunk_k` tuples, and
    the fewest that reach `plan.top_p`.

    Args:
        rows_GM: Rows of the positions of each chunk.
        rows: Signals of the rows.
        plan: What to keep.

    Returns:
        Teacher ids [G, J, M], log-probs at T = 1 [G, J], falling, -inf where a chunk has fewer, and the log of the
        others' sum of p^(1/T) [G, T].
    """
    first = _lists(rows, rows_GM[:, 0])
    tuples_GJM, logprobs_GJ, rest_GT = first.ids_GK[:, :, None], first.logprobs_GK, first.log_tail_GT
    for row_G in rows_GM.T[1:]:
        last = _lists(rows, row_G)
        extended_GX = (logprobs_GJ[:, :, None] + last.logprobs_GK[:, None, :]).reshape(len(row_G), -1)
        rest_GT = np.logaddexp(rest_GT + last.log_partition_GT, _log_powers(logprobs_GJ, plan) + last.log_tail_GT)
        chosen_GJ = np.argsort(-extended_GX, axis=1, kind="stable")[:, : plan.chunk_k]
        rest_GT = np.logaddexp(rest_GT, _log_powers(_without(extended_GX, chosen_GJ), plan))
        prefix_GJ, last_GJ = np.divmod(chosen_GJ, last.ids_GK.shape[1])
        tuples_GJM = np.concatenate(
            [
                np.take_along_axis(tuples_GJM, prefix_GJ[:, :, None], axis=1),
                np.take_along_axis(last.ids_GK, last_GJ, axis=1)[:, :, None],
            ],
            axis=2,
        )
        logprobs_GJ = np.take_along_axis(extended_GX, chosen_GJ, axis=1)
    if rows_GM.shape[1] > 1 and plan.top_p < 1:
        mass_GJ = np.exp(logprobs_GJ).cumsum(axis=1)
        is_surplus_GJ = np.concatenate([np.zeros((len(mass_GJ), 1), bool), mass_GJ[:, :-1] >= plan.top_p], axis=1)
        rest_GT = np.logaddexp(rest_GT, _log_powers(np.where(is_surplus_GJ, logprobs_GJ, -np.inf), plan))
        logprobs_GJ = np.where(is_surplus_GJ, -np.inf, logprobs_GJ)
    return tuples_GJM, logprobs_GJ, rest_GT


@dataclass(frozen=True, eq=False)
class _Lists:
    """What some rows keep, one row of each chunk, in float64; ids that are not kept have -inf."""

    ids_GK: npt.NDArray[np.int64]
    logprobs_GK: Floats
    log_tail_GT: Floats
    log_partition_GT: Floats


def _lists(rows: RowSignals, row_G: npt.NDArray[np.integer]) -> _Lists:
    is_kept_GK = np.arange(rows.ids_NK.shape[1]) < rows.counts_N.numpy()[row_G, None]
    return _Lists(
        ids_GK=rows.ids_NK.numpy()[row_G].astype(np.int64),
        logprobs_GK=np.where(is_kept_GK, rows.logprobs_NK.numpy()[row_G].astype(np.float64), -np.inf),
        log_tail_GT=rows.log_tail_NT.numpy()[row_G].astype(np.float64),
        log_partition_GT=rows.log_partition_NT.numpy()[row_G].astype(np.float64),
    )


def _without(logprobs_GX: Floats, chosen_GJ: npt.NDArray[np.int64]) -> Floats:
    result_GX = logprobs_GX.copy()
    np.put_along_axis(result_GX, chosen_GJ, -np.inf, axis=1)
    return result_GX


def _log_powers(logprobs_GJ: Floats, plan: SignalsConfig) -> Floats:
    """Return log sum_j p_j^(1/T) of each row, for each T: [G, T]; -inf for rows without any."""
    return np.stack([_logsumexp(logprobs_GJ / temperature) for temperature in plan.temperatures], axis=1)


def _logsumexp(values_GJ: Floats) -> Floats:
    top_G = values_GJ.max(axis=1, initial=-np.inf)
    safe_G = np.where(top_G > -np.inf, top_G, 0)
    with np.errstate(divide="ignore"):
        result: Floats = np.log(np.exp(values_GJ - safe_G[:, None]).sum(axis=1)) + safe_G
    return result


def _spelled(tuples_JM: npt.NDArray[np.int64], sizes_J: Int32s, spelling: Speller) -> Int32s:
    """Student tokens of each tuple, [J, P], -1 beyond its size; a row begins with -1 where it cannot be spelled."""
    if tuples_JM.shape[1] == 1:
        return spelling.single(tuples_JM[:, 0].astype(np.int32), sizes_J)
    result_JP = np.full((len(tuples_JM), int(sizes_J.max(initial=1))), -1, np.int32)
    for j, (ids, size) in enumerate(
        zip(spelling.several(list(map(tuple, tuples_JM.tolist()))), sizes_J.tolist(), strict=True)
    ):
        if ids is not None and len(ids) == size:
            result_JP[j, :size] = ids
    return result_JP
