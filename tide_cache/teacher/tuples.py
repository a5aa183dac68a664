"""The likeliest tuples of teacher tokens over the positions of a chunk, and the sum of all others.

The teacher predicts masked positions independently, so a tuple's probability is a product, and the likeliest tuples
are found position by position: the best prefixes with one more position are extensions of the best prefixes. All that
is dropped is summed, at every temperature, so that tuples and tail make up the whole distribution. No mass is computed
as 1 minus a sum.

Shape suffixes: N masked rows, A chunks of all views of a batch, G those with the same number of teacher tokens,
J tuples, X pairs of a prefix and a last id, K kept ids of a row, T temperatures, M teacher tokens of a chunk,
F student tokens of all chunks, concatenated.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.row_signals import RowSignals
from tide_cache.records import Int32s

Floats = npt.NDArray[np.float64]


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
