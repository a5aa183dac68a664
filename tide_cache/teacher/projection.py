"""The teacher's distribution in the student's vocabulary, at each token of a chunk: what `kl` reads across tokenizers.

At the first token of a chunk, a teacher's text counts for the student token with which its bytes begin. For a chunk of
one teacher token this is exact over the whole vocabulary: the probabilities of all ids are summed by student token
(`modeling.row_signals.Projection`). For a chunk of several it is a sum over the likeliest tuples, and all others join
the tail. At a later token, the likeliest texts that agree with the true one so far are compared, and there is no tail.

What the student cannot write also joins the tail. At a T other than 1, the tail of a chunk of several teacher tokens is
a sum over tuples, many of which may begin alike, so it is too large there.

Shape suffixes: A chunks, G chunks with the same number of teacher tokens, J tuples, M teacher tokens of a tuple,
P student tokens of a text, R rows of the result, E kept ids of all rows, S chunks of one teacher token, K kept ids of a
row, T temperatures.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import places_in_lists
from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.row_signals import RowSignals
from tide_cache.records import ProjectedTopK
from tide_cache.signal_table import concat, empty, take
from tide_cache.teacher.chunks import Speller
from tide_cache.teacher.tuples import ChunkRows, LikelyTuples

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Starts:
    """The teacher's signals at the first tokens of chunks of one teacher token, in student ids.

    Attributes:
        chunks_S: Their places among the chunks asked for.
        rows: Their signals.
        num_ids: Number of student ids; the next id stands for texts that have none.
    """

    chunks_S: Ints
    rows: RowSignals
    num_ids: int


def projected_topk(said: ChunkRows, first_row_A: Ints, starts: Starts, spelling: Speller) -> ProjectedTopK:
    """Return the teacher's candidates at the student tokens of all chunks of a batch.

    Args:
        said: Active chunks, and what was said at their rows.
        first_row_A: Number of the first masked student token of each; the others follow it.
        starts: Signals at the chunks of one teacher token.
        spelling: From teacher to student tokens.
    """
    signals = said.signals
    parts = [empty(ProjectedTopK, len(signals.temperatures)), _of_starts(first_row_A, starts, signals)]
    for likely in said.likely:
        texts = _Texts.of(likely, said, spelling)
        parts += [
            _of_texts(texts, place, first_row_A[likely.chunks_G] + place, signals)
            for place in range(int(likely.tuples_JM.shape[1] == 1), texts.true_GP.shape[1])
        ]
    joined = concat(parts)
    return take(joined, np.argsort(joined.rows_R))


def _of_starts(first_row_A: Ints, starts: Starts, signals: SignalsConfig) -> ProjectedTopK:
    """Return rows for the chunks of one teacher token; what the student cannot write joins the tail."""
    ids_SK, logprobs_SK = starts.rows.ids_NK.numpy(), starts.rows.logprobs_NK.numpy()
    is_kept_SK = np.arange(ids_SK.shape[1]) < starts.rows.counts_N.numpy()[:, None]
    is_written_SK = is_kept_SK & (ids_SK < starts.num_ids) & (logprobs_SK > -np.inf)
    unwritten_S = np.where(is_kept_SK & (ids_SK == starts.num_ids), logprobs_SK, -np.inf).max(axis=1, initial=-np.inf)
    counts_S = is_written_SK.sum(axis=1).astype(np.int32)
    powers_ST = unwritten_S[:, None].astype(np.float64) / np.asarray(signals.temperatures)
    log_tail_ST = np.logaddexp(starts.rows.log_tail_NT.numpy(), powers_ST).astype(np.float32)
    every = ProjectedTopK(
        rows_R=first_row_A[starts.chunks_S].astype(np.int32),
        counts_R=counts_S,
        ids_E=ids_SK[is_written_SK].astype(np.uint32),
        logprobs_E=logprobs_SK[is_written_SK],
        log_tail_RT=log_tail_ST,
        log_partition_RT=starts.rows.log_partition_NT.numpy(),
    )
    return take(every, np.flatnonzero(counts_S > 0))


@dataclass(frozen=True, eq=False)
class _Texts:
    """The likeliest texts of some chunks, in student tokens.

    Attributes:
        group_J: Chunk of each text.
        spelled_JP: Its student tokens, -1 beyond.
        logprob_J: Its log-prob at T = 1.
        log_tail_GT: log of the sum of p^(1/T) over all other texts.
        true_GP: True student tokens of each chunk, -1 beyond.
    """

    group_J: Ints
    spelled_JP: Ints
    logprob_J: Floats
    log_tail_GT: Floats
    true_GP: Ints

    @classmethod
    def of(cls, likely: LikelyTuples, said: ChunkRows, spelling: Speller) -> "_Texts":
        """Spell the likeliest tuples of some chunks; a chunk's own text keeps its tokens."""
        chunks, group_J, is_true_J = said.chunks, likely.group_J, likely.is_true_J
        ids_F, found_J = spelling.several(likely.tuples_JM)
        true_ids_F = chunks.student_ids_F[places_in_lists(chunks.student_size_A, likely.chunks_G)]
        true_GP = _padded(true_ids_F, chunks.student_size_A[likely.chunks_G])
        spelled_JP = _padded(ids_F, found_J, least=true_GP.shape[1])
        spelled_JP[is_true_J] = -1
        spelled_JP[is_true_J, : true_GP.shape[1]] = true_GP[group_J[is_true_J]]
        is_lost_J = spelled_JP[:, 0] < 0
        log_tail_GT = likely.log_tail_with(is_lost_J, said.signals.temperatures)
        return cls(group_J[~is_lost_J], spelled_JP[~is_lost_J], likely.logprobs_J[~is_lost_J], log_tail_GT, true_GP)

    def at(self, place: int) -> tuple[Ints, Ints, Floats]:
        """Return chunk, student token and probability of the texts that agree with the true one before a place."""
        if place >= self.spelled_JP.shape[1]:
            return self.group_J[:0], self.group_J[:0], self.logprob_J[:0]
        true_JP = self.true_GP[self.group_J]
        is_said_J = (true_JP[:, place] >= 0) & (self.spelled_JP[:, place] >= 0)
        is_said_J &= (self.spelled_JP[:, :place] == true_JP[:, :place]).all(axis=1)
        return self.group_J[is_said_J], self.spelled_JP[is_said_J, place], np.exp(self.logprob_J[is_said_J])


def _padded(values_F: npt.NDArray[np.integer], sizes_X: npt.NDArray[np.integer], least: int = 1) -> Ints:
    """Return concatenated lists as rows of at least some places, -1 beyond each."""
    result_XP = np.full((len(sizes_X), int(sizes_X.max(initial=least))), -1, np.int64)
    result_XP[np.arange(result_XP.shape[1]) < sizes_X[:, None]] = values_F
    return result_XP


def _of_texts(texts: _Texts, place: int, row_G: Ints, signals: SignalsConfig) -> ProjectedTopK:
    """Return rows for the student tokens at a place of the chunks; a chunk without texts for it has none."""
    group_I, token_I, mass_I = texts.at(place)
    key_E, of_I = np.unique(group_I << 32 | token_I, return_inverse=True)
    mass_E = np.bincount(of_I, weights=mass_I, minlength=len(key_E))
    group_E, token_E = key_E >> 32, key_E & 0xFFFFFFFF
    is_there_E = mass_E > 0
    group_E, token_E, mass_E = group_E[is_there_E], token_E[is_there_E], mass_E[is_there_E]
    counts_G = np.bincount(group_E, minlength=len(row_G))
    log_tail_GT = texts.log_tail_GT
    if place:
        mass_E = mass_E / np.bincount(group_E, weights=mass_E, minlength=len(row_G))[group_E]
        log_tail_GT = np.full_like(log_tail_GT, -np.inf)
    order_E = np.lexsort((-mass_E, group_E))
    logprob_E = np.log(mass_E[order_E])
    log_partition_GT = np.zeros_like(log_tail_GT)
    for index, temperature in enumerate(signals.temperatures):
        if temperature != 1:
            sums_G = np.bincount(group_E[order_E], weights=np.exp(logprob_E / temperature), minlength=len(row_G))
            with np.errstate(divide="ignore"):
                log_partition_GT[:, index] = np.logaddexp(np.log(sums_G), log_tail_GT[:, index])
    every = ProjectedTopK(
        rows_R=row_G.astype(np.int32),
        counts_R=counts_G.astype(np.int32),
        ids_E=token_E[order_E].astype(np.uint32),
        logprobs_E=logprob_E.astype(np.float32),
        log_tail_RT=log_tail_GT.astype(np.float32),
        log_partition_RT=log_partition_GT.astype(np.float32),
    )
    return take(every, np.flatnonzero(counts_G > 0))
