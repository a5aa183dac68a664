"""Candidate chunks: the likeliest tuples of teacher tokens over a chunk's positions, spelled in student tokens.

`teacher/tuples.py` finds them. Candidates and tail make up the whole distribution.

Shape suffixes: N masked rows, A chunks of all views of a batch, G those with the same number of teacher tokens,
J candidates, K kept ids of a row, T temperatures, M teacher tokens of a chunk, P student tokens of a candidate,
F student tokens of all candidates, concatenated.
"""

from collections.abc import Sequence
from dataclasses import replace
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
from tide_cache.teacher.tuples import AskedChunks, Further, LikelyTuples, likely_tuples


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


def chunk_candidates(
    chunks: AskedChunks,
    true_ids_N: Int32s,
    rows: RowSignals,
    spelling: Speller,
    signals: SignalsConfig,
    further: Sequence[Further] = (),
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
        further: What forwards said that showed one, two, ... true tokens of chunks.
    """

    def of_size(size: int) -> ChunkCandidates:
        members_G = np.flatnonzero(chunks.teacher_size_A == size)
        likely = likely_tuples(members_G, size, chunks, true_ids_N, rows, signals, further)
        return _spelled_out(members_G, chunks, likely, spelling, signals)

    parts = [of_size(size) for size in np.unique(chunks.teacher_size_A).tolist()]
    joined = concat([empty(ChunkCandidates, len(signals.temperatures)), *parts])
    ordered = take(joined, np.argsort(joined.chunks_A), chunks.student_size_A[joined.chunks_A])
    return replace(ordered, chunks_A=chunks.index_A)


def _spelled_out(
    members_G: npt.NDArray[np.int64],
    chunks: AskedChunks,
    likely: LikelyTuples,
    spelling: Speller,
    signals: SignalsConfig,
) -> ChunkCandidates:
    """Return the candidates of some chunks; `chunks_A` of the result are places in `chunks`."""
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
        log_partition_AT=likely.log_partition_GT.astype(np.float32),
    )


def _end_to_end(spelled_JP: Int32s, sizes_J: Int32s) -> Int32s:
    """Return the first `sizes_J` ids of each row, concatenated."""
    if spelled_JP.shape[1] == 1:
        return spelled_JP[:, 0]
    return spelled_JP[np.arange(spelled_JP.shape[1]) < sizes_J[:, None]]


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
