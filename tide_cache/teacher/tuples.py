"""The likeliest tuples of teacher tokens over the positions of a chunk, and the sum of all others.

The teacher predicts masked positions independently, so a tuple's probability is a product, and the likeliest tuples
are found position by position: the best prefixes with one more position are extensions of the best prefixes. All that
is dropped is summed, at every temperature, so that tuples and tail make up the whole distribution. No mass is computed
as 1 minus a sum.

Where further forwards showed the first true tokens of a chunk, a tuple is judged by the forward that showed as much of
its own beginning as is true. So all tuples fall into one product for each forward: its prefix is true, and what follows
begins with another token than the true one, but in the last forward with any. docs/decisions/conditional-chunks.md.

Shape suffixes: N masked rows, A chunks of all views of a batch, G those with the same number of teacher tokens,
J tuples, X pairs of a prefix and a last id, K kept ids of a row, T temperatures, M teacher tokens of a chunk,
F student tokens of all chunks, concatenated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Int64s
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
class Further:
    """What a further forward said, which showed the first true tokens of every chunk that has more.

    Attributes:
        row_N: Row of each masked token among its rows; -1 where it was not asked for.
        rows: Its rows.
    """

    row_N: npt.NDArray[np.int64]
    rows: RowSignals


@dataclass(frozen=True, eq=False)
class LikelyTuples:
    """The likeliest tuples of some chunks with the same number of teacher tokens, chunk by chunk, likeliest first.

    Attributes:
        chunks_G: The chunks, by their places among all.
        group_J: Chunk of each tuple, among these.
        tuples_JM: Its teacher tokens.
        logprobs_J: Its log-prob at T = 1, float64.
        is_true_J: Whether it is the chunk's own text.
        log_tail_GT: log of the sum of p^(1/T) over all other tuples of each chunk.
        log_partition_GT: log of the sum of p^(1/T) over all tuples of each chunk; 0 at T = 1.
    """

    chunks_G: Int64s
    group_J: Int64s
    tuples_JM: Int64s
    logprobs_J: Floats
    is_true_J: npt.NDArray[np.bool_]
    log_tail_GT: Floats
    log_partition_GT: Floats

    def log_tail_with(self, is_lost_J: npt.NDArray[np.bool_], temperatures: tuple[float, ...]) -> Floats:
        """Return tails that some of the tuples have joined: [G, T]."""
        log_tail_GT = self.log_tail_GT.copy()
        join_tails(log_tail_GT, self.group_J[is_lost_J], self.logprobs_J[is_lost_J], temperatures)
        return log_tail_GT


def join_tails(log_tail_GT: Floats, group_I: Int64s, logprobs_I: Floats, temperatures: tuple[float, ...]) -> None:
    """Add p^(1/T) of some items to the tails of their chunks, in place, one after the other."""
    for index, temperature in enumerate(temperatures):
        np.logaddexp.at(log_tail_GT[:, index], group_I, logprobs_I / temperature)


@dataclass(frozen=True, eq=False)
class ChunkRows:
    """Chunks, and what a forward said at their rows.

    Attributes:
        chunks: Active chunks.
        true_ids_N: True teacher token of each row.
        rows: Signals of the rows; those of chunks of several tokens keep `top_k` ids, or the whole vocabulary.
        signals: What to keep.
        further: What forwards said that showed one, two, ... true tokens of chunks.
    """

    chunks: AskedChunks
    true_ids_N: npt.NDArray[np.integer]
    rows: RowSignals
    signals: SignalsConfig
    further: Sequence[Further] = ()

    @cached_property
    def is_one_A(self) -> npt.NDArray[np.bool_]:
        """Whether a chunk is one token on both sides: every kept id is a candidate, and nothing is searched."""
        is_one_A: npt.NDArray[np.bool_] = (self.chunks.teacher_size_A == 1) & (self.chunks.student_size_A == 1)
        return is_one_A

    @cached_property
    def likely(self) -> tuple[LikelyTuples, ...]:
        """The likeliest tuples of all other chunks, by their number of teacher tokens; found once for all signals.

        A chunk of one teacher token has all ids that its row keeps. One of several has at most `signals.chunk_k`
        tuples, and the fewest that reach `signals.top_p`.
        """
        teacher_size_A = self.chunks.teacher_size_A
        sizes = np.unique(teacher_size_A[~self.is_one_A]).tolist()
        return tuple(self._likely(np.flatnonzero((teacher_size_A == size) & ~self.is_one_A), size) for size in sizes)

    def _likely(self, chunks_G: Int64s, size: int) -> LikelyTuples:
        rows_GM = self.chunks.first_row_A[chunks_G][:, None] + np.arange(size)
        true_GM = self.true_ids_N[rows_GM]
        told = [[_lists(self.rows, row_G) for row_G in rows_GM.T]]
        for said in self.further[: size - 1]:
            shown = len(told)
            told.append(told[0][:shown] + [_lists(said.rows, said.row_N[row_G]) for row_G in rows_GM.T[shown:]])
        products = _products(told, true_GM, self.signals)
        best = _merged([_best(lists, self.signals) for lists in products], self.signals)
        tuples_GJM, logprobs_GJ, log_tail_GT = _cut(best, self.signals)
        found_J = np.flatnonzero(logprobs_GJ > -np.inf)
        group_J = found_J // logprobs_GJ.shape[1]
        tuples_JM = tuples_GJM.reshape(-1, size)[found_J]
        return LikelyTuples(
            chunks_G,
            group_J,
            tuples_JM,
            logprobs_GJ.ravel()[found_J],
            np.logical_and.reduce([tuples_JM[:, m] == true_GM[group_J, m] for m in range(size)]),
            log_tail_GT,
            _log_partition(products, self.signals),
        )


_Best = tuple[npt.NDArray[np.int64], Floats, Floats]
"""Teacher ids [G, J, M] of tuples, log-probs at T = 1 [G, J], decreasing, -inf if a chunk has fewer, and the log of the
sum of p^(1/T) of all others [G, T]."""


def _best(lists: Sequence["_Lists"], signals: SignalsConfig) -> _Best:
    """Return the likeliest tuples of a product, a factor for each position; at most `chunk_k` of several positions."""
    first = lists[0]
    tuples_GJM, logprobs_GJ, rest_GT = first.ids_GK[:, :, None], first.logprobs_GK, first.log_tail_GT
    for last in lists[1:]:
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
    return tuples_GJM, logprobs_GJ, rest_GT


def _cut(best: _Best, signals: SignalsConfig) -> _Best:
    """Keep the fewest tuples that reach `top_p`, of chunks of several positions."""
    tuples_GJM, logprobs_GJ, rest_GT = best
    if tuples_GJM.shape[2] > 1 and signals.top_p < 1:
        mass_GJ = np.exp(logprobs_GJ).cumsum(axis=1)
        is_surplus_GJ = np.concatenate([np.zeros((len(mass_GJ), 1), bool), mass_GJ[:, :-1] >= signals.top_p], axis=1)
        rest_GT = np.logaddexp(rest_GT, _log_powers(np.where(is_surplus_GJ, logprobs_GJ, -np.inf), signals))
        logprobs_GJ = np.where(is_surplus_GJ, -np.inf, logprobs_GJ)
    return tuples_GJM, logprobs_GJ, rest_GT


def _merged(parts: Sequence[_Best], signals: SignalsConfig) -> _Best:
    """Return the likeliest tuples of several products, no tuple of which is in two."""
    if len(parts) == 1:
        return parts[0]
    tuples_GJM = np.concatenate([tuples for tuples, _, _ in parts], axis=1)
    logprobs_GJ = np.concatenate([logprobs for _, logprobs, _ in parts], axis=1)
    rest_GT = np.logaddexp.reduce([rest for _, _, rest in parts])
    chosen_GJ = np.argsort(-logprobs_GJ, axis=1, kind="stable")[:, : signals.chunk_k]
    rest_GT = np.logaddexp(rest_GT, _log_powers(_without(logprobs_GJ, chosen_GJ), signals))
    return (
        np.take_along_axis(tuples_GJM, chosen_GJ[:, :, None], axis=1),
        np.take_along_axis(logprobs_GJ, chosen_GJ, axis=1),
        rest_GT,
    )


def _products(
    told: Sequence[Sequence["_Lists"]], true_GM: npt.NDArray[np.integer], signals: SignalsConfig
) -> list[list["_Lists"]]:
    """Return the factors of each forward's product of tuples.

    A true token that its row does not keep is not followed: tuples that begin with it stay in the tail of that forward.

    Args:
        told: For each forward, the lists of all positions; those that it showed are not looked at.
        true_GM: True ids.
        signals: What to keep.
    """
    result: list[list[_Lists]] = []
    prefix: list[_Lists] = []
    for shown, lists in enumerate(told):
        is_last = shown + 1 == len(told)
        following = lists[shown] if is_last else lists[shown].without(true_GM[:, shown], signals)
        result.append([*prefix, following, *lists[shown + 1 :]])
        if not is_last:
            prefix.append(lists[shown].only(true_GM[:, shown], signals))
    return result


def _log_partition(products: Sequence[Sequence["_Lists"]], signals: SignalsConfig) -> Floats:
    """Return the log of the sum of p^(1/T) over all tuples of all products: [G, T]."""
    sums: list[Floats] = [
        np.stack([factor.log_partition_GT for factor in lists], axis=1).sum(axis=1) for lists in products
    ]
    if len(sums) == 1:
        return sums[0]
    result_GT: Floats = np.logaddexp.reduce(sums)
    result_GT[:, signals.temperatures.index(1.0)] = 0
    return result_GT


@dataclass(frozen=True, eq=False)
class _Lists:
    """The kept ids of some rows, one row of each chunk, in float64; ids that are not kept have -inf."""

    ids_GK: npt.NDArray[np.int64]
    logprobs_GK: Floats
    log_tail_GT: Floats
    log_partition_GT: Floats

    def only(self, id_G: npt.NDArray[np.integer], signals: SignalsConfig) -> "_Lists":
        """Return the lists with one id alone; with nothing where it is not kept."""
        logprob_G1 = np.where(self.ids_GK == id_G[:, None], self.logprobs_GK, -np.inf).max(axis=1, keepdims=True)
        return replace(
            self,
            ids_GK=id_G[:, None].astype(np.int64),
            logprobs_GK=logprob_G1,
            log_tail_GT=np.full_like(self.log_tail_GT, -np.inf),
            log_partition_GT=logprob_G1 / np.asarray(signals.temperatures),
        )

    def without(self, id_G: npt.NDArray[np.integer], signals: SignalsConfig) -> "_Lists":
        """Return the lists without an id; as they are where it is not kept."""
        logprobs_GK = np.where(self.ids_GK == id_G[:, None], -np.inf, self.logprobs_GK)
        order_GK = np.argsort(-logprobs_GK, axis=1, kind="stable")
        logprobs_GK = np.take_along_axis(logprobs_GK, order_GK, axis=1)
        return replace(
            self,
            ids_GK=np.take_along_axis(self.ids_GK, order_GK, axis=1),
            logprobs_GK=logprobs_GK,
            log_partition_GT=np.logaddexp(_log_powers(logprobs_GK, signals), self.log_tail_GT),
        )


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
    powers_TGJ = logprobs_GJ / np.array(signals.temperatures)[:, None, None]
    top_TG = powers_TGJ.max(axis=2, initial=-np.inf)
    top_TG[top_TG == -np.inf] = 0
    powers_TGJ -= top_TG[:, :, None]
    with np.errstate(divide="ignore"):
        result_TG: Floats = np.log(np.exp(powers_TGJ, out=powers_TGJ).sum(axis=2)) + top_TG
    return result_TG.T
