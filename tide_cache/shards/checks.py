"""The laws that the values of a shard obey, checked on whole columns: before a shard is written, and at every read.

A teacher that says something impossible is refused before it is published; a shard that says it is refused before it
is trained on. Both sides ask the same functions.

Shape suffixes: S rows of a row group, C chunks, R positions with a top-k row, E kept ids, T temperatures; all of them
over the whole row group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.records import SamplePair
from tide_cache.shards.codec import masks_of, repeats_of_candidates
from tide_cache.shards.columns import ChunkColumns, PairColumns, Ragged, SignalColumns, TailColumns, TopKColumns
from tide_cache.shards.laws import Ints, ValueFault, require, require_lengths
from tide_cache.shards.schema import CodecName, SignalParts, TableName

MASS_TOLERANCE = 1e-3
LOGPROB_SLACK = 1e-4
"""A log-prob may exceed zero by this: float32 rounding of logits minus logsumexp."""
CLEAR_LISTS = 2048
"""Sums of at most so many probabilities are exact to a tenth of the tolerance in single precision."""
FLOAT16_HALF_STEP = 2.0**-11
"""Largest relative error of rounding to float16."""


@dataclass(frozen=True, slots=True)
class ShardRules:
    """What a shard's values are checked against; the cache identity gives it.

    Attributes:
        num_views: Views of every sample.
        student_vocab_size: Student ids are below it.
        teacher_vocab_size: Teacher ids, kept ones included, are below it.
        temperatures: The T of tails and partitions, in stored order; 1.0 is among them.
        has_topk: Whether the `topk` signal was captured.
        has_tail: Whether ids were drawn from its tails.
        has_chunks: Whether the `chunks` signal was captured.
        codec: How the candidates are stored.
    """

    num_views: int
    student_vocab_size: int
    teacher_vocab_size: int
    temperatures: tuple[float, ...]
    has_topk: bool
    has_tail: bool = False
    has_chunks: bool = False
    codec: CodecName = "plain"

    def parts(self, table: TableName) -> SignalParts:
        """Which optional columns the shards of a pass have."""
        return SignalParts(self.has_topk, self.has_tail, self.has_chunks, split=table == "compdemo")

    def codec_of(self, table: TableName) -> CodecName:
        """How a table is stored; pairs have nothing to pack."""
        return "plain" if table == "pairs" else self.codec


def check_pairs(columns: PairColumns, rules: ShardRules) -> None:
    """Check one row group of the pairs table.

    Raises:
        ValueFault: The first law that is broken, with column and row.
    """
    _check_indexes(columns.sample_index)
    require_lengths("is_supervised", columns.is_supervised.lengths, columns.student_ids.lengths, "student_ids")
    _check_ids("student_ids", columns.student_ids, rules.student_vocab_size)
    _check_ids("teacher_ids", columns.teacher_ids, rules.teacher_vocab_size)
    require("chunks", columns.chunks.lengths % 4 == 0, None, "the length is no multiple of 4")
    chunks_C4 = columns.chunks.values.reshape(-1, 4)
    row_C = columns.chunks.row_of_value[::4]
    is_first_C = np.diff(row_C, prepend=-1) != 0
    sides = (("teacher", 0, columns.teacher_ids), ("student", 2, columns.student_ids))
    for side, at, ids in sides:
        start_C, end_C = chunks_C4[:, at], chunks_C4[:, at + 1]
        previous_end_C = np.where(is_first_C, 0, np.concatenate([[0], end_C])[: len(end_C)])
        is_inside_C = (previous_end_C <= start_C) & (start_C < end_C) & (end_C <= ids.lengths[row_C])
        require("chunks", is_inside_C, row_C, f"{side} spans are not increasing, half-open and inside the sample")


def check_signals(
    columns: SignalColumns, view: int, pairs: Sequence[SamplePair], rules: ShardRules, thorough: bool
) -> None:
    """Check one row group of the signals table against its samples.

    Args:
        columns: The row group.
        view: The view that it must hold.
        pairs: The samples that it must hold, in order.
        rules: What the values are checked against.
        thorough: Also check that kept ids are distinct and in order of probability; costs a sort.

    Raises:
        ValueFault: The first law that is broken, with column and row.
    """
    _check_indexes(columns.sample_index)
    is_same_S = np.array([name == pair.sample_id for name, pair in zip(columns.sample_id, pairs, strict=True)])
    require("sample_id", is_same_S, None, "not the sample that the pairs table has here")
    require("view", columns.view == view, None, f"expected view {view}")
    require("t", (columns.t > 0) & (columns.t <= 1), None, "diffusion time outside (0, 1]")
    _check_masks(columns, pairs)
    if columns.shown_first is not None:
        _check_split(columns, columns.shown_first, pairs)
    for name, column in (("truth_logprobs", columns.truth_logprobs), ("is_top1", columns.is_top1)):
        require_lengths(name, column.lengths, columns.teacher_masked.lengths, "teacher_masked")
    _check_logprobs("truth_logprobs", columns.truth_logprobs)
    if columns.topk is not None:
        _check_topk(columns.topk, columns.teacher_masked.lengths, rules)
        if thorough:
            _check_candidates(columns.topk)
        if columns.tail is not None:
            _check_tail(columns.tail, columns.topk, rules)
    if columns.chunks is not None:
        _check_chunks(columns, columns.chunks, pairs, rules, thorough)


def _check_masks(columns: SignalColumns, pairs: Sequence[SamplePair]) -> None:
    student_lengths = np.array([len(pair.student_ids_L) for pair in pairs], np.int64)
    teacher_lengths = np.array([len(pair.teacher_ids_M) for pair in pairs], np.int64)
    _check_positions("student_masked", columns.student_masked, student_lengths, "the student's tokens")
    _check_positions("teacher_masked", columns.teacher_masked, teacher_lengths, "the teacher's tokens")
    student = masks_of(columns.student_masked, student_lengths.tolist())
    teacher = masks_of(columns.teacher_masked, teacher_lengths.tolist())
    is_unsupervised = Ragged(student.offsets, ~np.concatenate([pair.is_supervised_L for pair in pairs]))
    is_supervised_N = ~is_unsupervised.values[student.values]
    require("student_masked", is_supervised_N, columns.student_masked.row_of_value, "an unsupervised token is masked")
    chunks_C4 = np.concatenate([pair.chunks_C4 for pair in pairs])
    row_C = np.repeat(np.arange(len(pairs)), [len(pair.chunks_C4) for pair in pairs])
    is_distillable_C = _masked_tokens(is_unsupervised, row_C, chunks_C4[:, 2:]) == 0
    teacher_C = _masked_tokens(teacher, row_C, chunks_C4[:, :2])
    student_C = _masked_tokens(student, row_C, chunks_C4[:, 2:])
    is_shown_C = (teacher_C == 0) & (student_C == 0)
    is_whole_C = (teacher_C == np.diff(chunks_C4[:, :2])[:, 0]) & (student_C == np.diff(chunks_C4[:, 2:])[:, 0])
    require("teacher_masked", ~is_distillable_C | is_shown_C | is_whole_C, row_C, "a chunk is masked in part")


def _check_split(columns: SignalColumns, shown_first: Ragged, pairs: Sequence[SamplePair]) -> None:
    """A chunk's masked tokens are shown together, so that a teacher never sees a part of what it is asked for."""
    masked = columns.teacher_masked
    require_lengths("shown_first", shown_first.lengths, masked.lengths, "teacher_masked")
    shown_S = np.bincount(masked.row_of_value[shown_first.values], minlength=len(pairs))
    shown = Ragged(np.concatenate([[0], np.cumsum(shown_S)]).astype(np.int32), masked.values[shown_first.values])
    lengths = [len(pair.teacher_ids_M) for pair in pairs]
    spans_C2 = np.concatenate([pair.chunks_C4 for pair in pairs])[:, :2]
    row_C = np.repeat(np.arange(len(pairs)), [len(pair.chunks_C4) for pair in pairs])
    masked_C, shown_C = (_masked_tokens(masks_of(column, lengths), row_C, spans_C2) for column in (masked, shown))
    require("shown_first", (shown_C == 0) | (shown_C == masked_C), row_C, "a chunk is shown in part")


def _masked_tokens(mask: Ragged, row_C: Ints, spans_C2: Ints) -> Ints:
    """Masked tokens inside each span; spans count from the start of their row."""
    masked_before = np.concatenate([[0], np.cumsum(mask.values)])
    start_C, end_C = (mask.offsets[row_C] + spans_C2[:, side] for side in (0, 1))
    result: Ints = masked_before[end_C] - masked_before[start_C]
    return result


def _check_topk(topk: TopKColumns, num_masked_S: Ints, rules: ShardRules) -> None:
    _check_positions("topk_rows", topk.topk_rows, num_masked_S, "the view's masked teacher positions")
    require_lengths("topk_counts", topk.topk_counts.lengths, topk.topk_rows.lengths, "topk_rows")
    counts_R, row_R = topk.topk_counts.values, topk.topk_counts.row_of_value
    require("topk_counts", counts_R >= 1, row_R, "a position keeps no id")
    kept_S = np.bincount(row_R, weights=counts_R, minlength=len(num_masked_S)).astype(np.int64)
    require_lengths("topk_ids", topk.topk_ids.lengths, kept_S, "the sum of topk_counts")
    require_lengths("topk_logprobs", topk.topk_logprobs.lengths, kept_S, "the sum of topk_counts")
    _check_ids("topk_ids", topk.topk_ids, rules.teacher_vocab_size)
    _check_logprobs("topk_logprobs", topk.topk_logprobs)
    num_T = len(rules.temperatures)
    for name, column in (("topk_log_tail", topk.topk_log_tail), ("topk_log_partition", topk.topk_log_partition)):
        require_lengths(name, column.lengths, topk.topk_rows.lengths * num_T, f"topk_rows times {num_T} temperatures")
    _check_powers("topk", topk.topk_log_tail, topk.topk_log_partition, row_R, rules)
    _check_mass("topk", topk.topk_logprobs, counts_R, topk.topk_log_tail, row_R, rules)


def _check_powers(prefix: str, log_tail: Ragged, log_partition: Ragged, row_R: Ints, rules: ShardRules) -> None:
    """Tails and partitions, one per temperature: numbers, and the whole is 1 at T = 1."""
    num_T = len(rules.temperatures)
    row_RT = np.repeat(row_R, num_T)
    partition_R = log_partition.values.reshape(-1, num_T)[:, rules.temperatures.index(1.0)]
    require(f"{prefix}_log_tail", log_tail.values < np.inf, row_RT, "not a number, or infinite")
    require(f"{prefix}_log_partition", np.isfinite(log_partition.values), row_RT, "not finite")
    require(f"{prefix}_log_partition", np.abs(partition_R) <= MASS_TOLERANCE, row_R, "not 0 at T = 1")


def _check_mass(
    prefix: str, logprobs: Ragged, counts_R: Ints, log_tail: Ragged, row_R: Ints, rules: ShardRules
) -> None:
    """Kept probabilities and tail sum to one, up to the tolerance and what rounding to float16 can move."""
    tail_R = log_tail.values.reshape(-1, len(rules.temperatures))[:, rules.temperatures.index(1.0)]
    probs_E = np.exp(logprobs.values)
    if counts_R.max(initial=0) <= CLEAR_LISTS:  # nearly always enough, and several times faster
        rough_R = _rough_sums(probs_E, counts_R) + np.exp(tail_R)
        if (np.abs(rough_R - 1) <= MASS_TOLERANCE / 2).all():
            return
    mass_R = _sums(probs_E, counts_R) + np.exp(tail_R)
    information_R = -_sums(probs_E * logprobs.values, counts_R)
    excess_R = np.abs(mass_R - 1) - information_R * FLOAT16_HALF_STEP
    problem = "what is kept and the tail do not sum to probability 1"
    require(f"{prefix}_logprobs", excess_R <= MASS_TOLERANCE, row_R, problem)


def _sums(values_E: npt.NDArray[np.float32], counts_R: Ints, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """Sum each list of values laid end to end."""
    sums_R = np.zeros(len(counts_R), dtype)
    if len(values_E):
        starts_R = np.cumsum(counts_R) - counts_R
        # An empty list would get the first value of the next one.
        sums_R[counts_R > 0] = np.add.reduceat(values_E, starts_R[counts_R > 0], dtype=dtype)
    return sums_R


def _rough_sums(values_E: npt.NDArray[np.float32], counts_R: Ints) -> npt.NDArray[Any]:
    """Sum each list in single precision; lists of one length, as at a fixed k, as the rows of a matrix.

    Not by a product with ones: the threads of a BLAS wait for each other at full load, which doubled the time.
    """
    size = int(counts_R.max(initial=0))
    if size and (counts_R == size).all():
        result: npt.NDArray[Any] = values_E.reshape(-1, size).sum(axis=1)
        return result
    return _sums(values_E, counts_R, np.float32)


def _check_tail(tail: TailColumns, topk: TopKColumns, rules: ShardRules) -> None:
    require_lengths("tail_counts", tail.tail_counts.lengths, topk.topk_rows.lengths, "topk_rows")
    counts_R, row_R = tail.tail_counts.values, tail.tail_counts.row_of_value
    require("tail_counts", counts_R >= 0, row_R, "a count is negative")
    drawn_S = np.bincount(row_R, weights=counts_R, minlength=len(topk.topk_rows.lengths)).astype(np.int64)
    for name, column in (
        ("tail_ids", tail.tail_ids),
        ("tail_logprobs", tail.tail_logprobs),
        ("tail_draws", tail.tail_draws),
    ):
        require_lengths(name, column.lengths, drawn_S, "the sum of tail_counts")
    _check_ids("tail_ids", tail.tail_ids, rules.teacher_vocab_size)
    _check_logprobs("tail_logprobs", tail.tail_logprobs)
    require("tail_draws", tail.tail_draws.values >= 1, tail.tail_draws.row_of_value, "an id was drawn less than once")
    kept_E = _keyed(topk.topk_ids.values, np.repeat(np.arange(len(counts_R)), topk.topk_counts.values))
    drawn_E = _keyed(tail.tail_ids.values, np.repeat(np.arange(len(counts_R)), counts_R))
    row_E = tail.tail_ids.row_of_value
    require("tail_ids", np.diff(drawn_E.astype(np.int64), prepend=-1) > 0, row_E, "ids do not increase at a position")
    require("tail_ids", ~np.isin(drawn_E, kept_E), row_E, "an id is both kept and drawn from the rest")


def _check_chunks(
    columns: SignalColumns, chunks: ChunkColumns, pairs: Sequence[SamplePair], rules: ShardRules, thorough: bool
) -> None:
    _check_chunk_rows(columns, chunks, pairs)
    counts_A, row_A = chunks.chunk_counts.values, chunks.chunk_counts.row_of_value
    require("chunk_counts", counts_A >= 0, row_A, "a count is negative")
    first_C = np.cumsum([0, *(len(pair.chunks_C4) for pair in pairs)])
    spans_C2 = np.concatenate([pair.chunks_C4 for pair in pairs])[:, 2:]
    size_A = np.diff(spans_C2)[first_C[row_A] + chunks.chunk_rows.values, 0]
    sums = ((chunks.chunk_logprobs, "chunk_logprobs", counts_A), (chunks.chunk_ids, "chunk_ids", counts_A * size_A))
    for column, name, values_A in sums:
        expected_S = np.bincount(row_A, weights=values_A, minlength=len(pairs)).astype(np.int64)
        require_lengths(name, column.lengths, expected_S, "what chunk_counts and the chunks' sizes say")
    num_T = len(rules.temperatures)
    for name, column in (
        ("chunk_log_tail", chunks.chunk_log_tail),
        ("chunk_log_partition", chunks.chunk_log_partition),
    ):
        require_lengths(name, column.lengths, chunks.chunk_rows.lengths * num_T, f"chunk_rows times {num_T}")
    _check_ids("chunk_ids", chunks.chunk_ids, rules.student_vocab_size)
    _check_logprobs("chunk_logprobs", chunks.chunk_logprobs)
    _check_powers("chunk", chunks.chunk_log_tail, chunks.chunk_log_partition, row_A, rules)
    _check_mass("chunk", chunks.chunk_logprobs, counts_A, chunks.chunk_log_tail, row_A, rules)
    if thorough:
        owner_J = np.repeat(np.arange(len(counts_A)), counts_A)
        row_J = chunks.chunk_logprobs.row_of_value
        falls_J = np.diff(chunks.chunk_logprobs.values, prepend=np.inf) <= 0
        is_first_J = np.diff(owner_J, prepend=-1) != 0
        require("chunk_logprobs", falls_J | is_first_J, row_J, "candidates are not in order of probability")
        is_repeated_J = repeats_of_candidates(chunks.chunk_ids.values, np.repeat(size_A, counts_A), owner_J)
        require("chunk_ids", ~is_repeated_J, row_J, "a candidate occurs twice in a chunk")


def _check_chunk_rows(columns: SignalColumns, chunks: ChunkColumns, pairs: Sequence[SamplePair]) -> None:
    """There is an entry for every active chunk, and for no other."""
    masks = masks_of(columns.student_masked, [len(pair.student_ids_L) for pair in pairs])
    row_C = np.repeat(np.arange(len(pairs)), [len(pair.chunks_C4) for pair in pairs])
    masked_C = _masked_tokens(masks, row_C, np.concatenate([pair.chunks_C4 for pair in pairs])[:, 2:])
    is_active_C = (masked_C > 0) & np.concatenate([pair.is_distillable_C for pair in pairs])
    chunk_C = np.concatenate([np.arange(len(pair.chunks_C4)) for pair in pairs])
    active_S = np.bincount(row_C[is_active_C], minlength=len(pairs))
    require_lengths("chunk_rows", chunks.chunk_rows.lengths, active_S, "the number of active chunks")
    require(
        "chunk_rows", chunks.chunk_rows.values == chunk_C[is_active_C], chunks.chunk_rows.row_of_value,
        "an entry is not the view's active chunk",
    )  # fmt: skip
    require_lengths("chunk_counts", chunks.chunk_counts.lengths, chunks.chunk_rows.lengths, "chunk_rows")


def _keyed(ids: npt.NDArray[np.uint32], owner: Ints) -> npt.NDArray[np.uint64]:
    """One number for an id at a position, in the order of positions, then ids."""
    return owner.astype(np.uint64) << np.uint64(32) | ids


def _check_candidates(topk: TopKColumns) -> None:
    position_E = np.repeat(np.arange(len(topk.topk_counts.values)), topk.topk_counts.values)
    row_E = topk.topk_ids.row_of_value
    is_same_position_E = np.diff(position_E) == 0
    falls_E = np.diff(topk.topk_logprobs.values) <= 0
    require("topk_logprobs", falls_E | ~is_same_position_E, row_E, "ids are not in order of probability")
    keys_E = np.sort(_keyed(topk.topk_ids.values, position_E))
    repeats = np.flatnonzero(np.diff(keys_E) == 0)
    if len(repeats):
        position = int(keys_E[repeats[0]] >> np.uint64(32))
        raise ValueFault("topk_ids", int(topk.topk_counts.row_of_value[position]), "an id occurs twice at a position")


def _check_indexes(index_S: Ints) -> None:
    require("sample_index", np.diff(index_S, prepend=-1) > 0, None, "sample indexes do not increase")


def _check_ids(name: str, ids: Ragged, vocab_size: int) -> None:
    values = ids.values
    can_be_negative = not np.issubdtype(values.dtype, np.unsignedinteger)
    if len(values) and (values.max() >= vocab_size or (can_be_negative and values.min() < 0)):
        is_inside = (values >= 0) & (values < vocab_size)
        require(name, is_inside, ids.row_of_value, f"an id is outside the vocabulary of {vocab_size}")


def _check_logprobs(name: str, logprobs: Ragged) -> None:
    values = logprobs.values
    if len(values) and not (values.min() > -np.inf and values.max() <= LOGPROB_SLACK):  # NaN comes through min
        is_lawful = np.isfinite(values) & (values <= LOGPROB_SLACK)
        require(name, is_lawful, logprobs.row_of_value, "a log-prob is not finite or above 0")


def _check_positions(name: str, positions: Ragged, limit_S: Ints, inside: str) -> None:
    row = positions.row_of_value
    is_first = np.diff(row, prepend=-1) != 0
    is_after_previous = is_first | (np.diff(positions.values, prepend=-1) > 0)
    require(name, is_after_previous, row, "positions do not increase")
    require(name, (positions.values >= 0) & (positions.values < limit_S[row]), row, f"a position is outside {inside}")
