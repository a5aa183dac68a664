"""The laws that the values of a shard obey, checked on whole columns before a shard is written and at every read.

Impossible values from a teacher are refused before they are published, those in a shard before they are trained on.
Both sides use the same functions.

Shape suffixes: S rows of a row group, C chunks, R positions with a top-k row, E kept ids, T temperatures; all over the
whole row group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import sums_before
from tide_cache.config.settings import CodecName
from tide_cache.records import SamplePair
from tide_cache.shards.columns import Columns, Ragged, names_of, ragged, scalars
from tide_cache.shards.lists import lists_with_twins, probabilities, sums, unordered_items
from tide_cache.shards.record_columns import masks_of, repeats_of_candidates
from tide_cache.shards.schema import TableName
from tide_cache.shards.value_faults import Ints, ValueFault, require, require_lengths
from tide_cache.signal_table import CHUNKS, PARTS, PROJECTED, TAIL, TOPK, Part, PartName, parts_in

MASS_TOLERANCE = 1e-3
LOGPROB_SLACK = 1e-4
"""A log-prob may exceed zero by this: the float32 rounding of logits minus logsumexp."""
CLEAR_LISTS = 2048
"""In single precision, sums of at most this many probabilities are exact to a tenth of the tolerance."""
FLOAT16_HALF_STEP = 2.0**-11
"""Largest relative error of rounding to float16."""


@dataclass(frozen=True, slots=True)
class ShardRules:
    """What a shard's values are checked against; it follows from the cache identity.

    Attributes:
        num_views: Views of every sample.
        student_vocab_size: Student ids are below it.
        teacher_vocab_size: Teacher ids, including kept ones, are below it.
        temperatures: The T of tails and partitions, in stored order; includes 1.0.
        parts: What was captured besides `truth`: `topk`, `tail` (with it), `chunks`, `projected`, and `steps`.
        codec: How the candidates are stored.
    """

    num_views: int
    student_vocab_size: int
    teacher_vocab_size: int
    temperatures: tuple[float, ...]
    parts: frozenset[PartName] = frozenset()
    codec: CodecName = "plain"

    def parts_of(self, table: TableName) -> frozenset[PartName]:
        """Return the parts that the shards of a pass hold."""
        of_pass: tuple[PartName, ...] = ("truth", "split") if table == "compdemo" else ("truth",)
        return self.parts.union(of_pass)

    def codec_of(self, table: TableName) -> CodecName:
        """Return how a table is stored; pairs have nothing to pack."""
        return "plain" if table == "pairs" else self.codec


def check_pairs(columns: Columns, rules: ShardRules) -> None:
    """Check one row group of the pairs table.

    Raises:
        ValueFault: The first law that is broken, with column and row.
    """
    names = ("student_ids", "is_supervised", "teacher_ids", "chunks")
    student_ids, is_supervised, teacher_ids, chunks = (ragged(columns, name) for name in names)
    _check_indexes(scalars(columns, "sample_index"))
    require_lengths("is_supervised", is_supervised.lengths, student_ids.lengths, "student_ids")
    _check_ids("student_ids", student_ids, rules.student_vocab_size)
    _check_ids("teacher_ids", teacher_ids, rules.teacher_vocab_size)
    require("chunks", chunks.lengths % 4 == 0, None, "the length is not a multiple of 4")
    chunks_C4 = chunks.values.reshape(-1, 4)
    row_C = chunks.row_of_value[::4]
    is_first_C = np.diff(row_C, prepend=-1) != 0
    sides = (("teacher", 0, teacher_ids), ("student", 2, student_ids))
    for side, at, ids in sides:
        start_C, end_C = chunks_C4[:, at], chunks_C4[:, at + 1]
        previous_end_C = np.where(is_first_C, 0, np.concatenate([[0], end_C])[: len(end_C)])
        is_inside_C = (previous_end_C <= start_C) & (start_C < end_C) & (end_C <= ids.lengths[row_C])
        require("chunks", is_inside_C, row_C, f"{side} spans are not increasing, half-open and inside the sample")


def check_signals(columns: Columns, view: int, pairs: Sequence[SamplePair], rules: ShardRules, thorough: bool) -> None:
    """Check one row group of the signals table against its samples.

    Args:
        columns: The row group.
        view: The view that the row group must hold.
        pairs: The samples that the row group must hold, in order.
        rules: What the values are checked against.
        thorough: Also check that kept ids are distinct and in order of probability; costs a sort.

    Raises:
        ValueFault: The first law that is broken, with column and row.
    """
    _check_indexes(scalars(columns, "sample_index"))
    is_same_S = np.array([name == pair.sample_id for name, pair in zip(names_of(columns), pairs, strict=True)])
    require("sample_id", is_same_S, None, "not the sample that the pairs table has here")
    require("view", scalars(columns, "view") == view, None, f"expected view {view}")
    t = scalars(columns, "t")
    require("t", (t > 0) & (t <= 1), None, "diffusion time outside (0, 1]")
    student_masked, masked = ragged(columns, "student_masked"), ragged(columns, "teacher_masked")
    _check_masks(student_masked, masked, pairs)
    present = parts_in(columns)
    expected = {
        "position": (masked.lengths, "teacher_masked"),
        "row": (student_masked.lengths, "student_masked"),
    }
    for field in (field for part in PARTS if part.name in present for field in part.fields):
        if field.axis in expected:
            require_lengths(field.column, ragged(columns, field.column).lengths, *expected[field.axis])
        if field.rule == "logprob":
            _check_logprobs(field.column, ragged(columns, field.column))
        if field.rule == "steps":
            steps = ragged(columns, field.column)
            require(field.column, steps.values >= 1, steps.row_of_value, "a masked token was revealed before its view")
    if "split" in present:
        _check_split(ragged(columns, "shown_first"), masked, pairs)
    if "topk" in present:
        _check_tokens(TOPK, columns, masked.lengths, "the view's masked teacher positions", rules, thorough)
    if "tail" in present:
        _check_tail(columns, rules)
    if "chunks" in present:
        _check_chunks(columns, pairs, rules, thorough)
    if "projected" in present:
        _check_tokens(PROJECTED, columns, student_masked.lengths, "the view's masked student tokens", rules, thorough)


def _check_masks(student_masked: Ragged, teacher_masked: Ragged, pairs: Sequence[SamplePair]) -> None:
    student_lengths = np.array([len(pair.student_ids_L) for pair in pairs], np.int64)
    teacher_lengths = np.array([len(pair.teacher_ids_M) for pair in pairs], np.int64)
    _check_positions("student_masked", student_masked, student_lengths, "the student's tokens")
    _check_positions("teacher_masked", teacher_masked, teacher_lengths, "the teacher's tokens")
    student = masks_of(student_masked, student_lengths.tolist())
    teacher = masks_of(teacher_masked, teacher_lengths.tolist())
    is_unsupervised = Ragged(student.offsets, ~np.concatenate([pair.is_supervised_L for pair in pairs]))
    is_supervised_N = ~is_unsupervised.values[student.values]
    require("student_masked", is_supervised_N, student_masked.row_of_value, "an unsupervised token is masked")
    chunks_C4 = np.concatenate([pair.chunks_C4 for pair in pairs])
    row_C = np.repeat(np.arange(len(pairs)), [len(pair.chunks_C4) for pair in pairs])
    is_distillable_C = _masked_tokens(is_unsupervised, row_C, chunks_C4[:, 2:]) == 0
    teacher_C = _masked_tokens(teacher, row_C, chunks_C4[:, :2])
    student_C = _masked_tokens(student, row_C, chunks_C4[:, 2:])
    is_shown_C = (teacher_C == 0) & (student_C == 0)
    is_whole_C = (teacher_C == np.diff(chunks_C4[:, :2])[:, 0]) & (student_C == np.diff(chunks_C4[:, 2:])[:, 0])
    require("teacher_masked", ~is_distillable_C | is_shown_C | is_whole_C, row_C, "a chunk is masked in part")


def _check_split(shown_first: Ragged, masked: Ragged, pairs: Sequence[SamplePair]) -> None:
    """Check that a chunk's masked tokens are shown together: a teacher never sees a part of what it is asked for."""
    shown_S = np.bincount(masked.row_of_value[shown_first.values], minlength=len(pairs))
    shown = Ragged(sums_before(shown_S).astype(np.int32), masked.values[shown_first.values])
    lengths = [len(pair.teacher_ids_M) for pair in pairs]
    spans_C2 = np.concatenate([pair.chunks_C4 for pair in pairs])[:, :2]
    row_C = np.repeat(np.arange(len(pairs)), [len(pair.chunks_C4) for pair in pairs])
    masked_C, shown_C = (_masked_tokens(masks_of(column, lengths), row_C, spans_C2) for column in (masked, shown))
    require("shown_first", (shown_C == 0) | (shown_C == masked_C), row_C, "a chunk is shown in part")


def _masked_tokens(mask: Ragged, row_C: Ints, spans_C2: Ints) -> Ints:
    """Return the number of masked tokens in each span; spans count from the start of their row."""
    masked_before = sums_before(mask.values)
    start_C, end_C = (mask.offsets[row_C] + spans_C2[:, side] for side in (0, 1))
    result: Ints = masked_before[end_C] - masked_before[start_C]
    return result


def _check_tokens(
    part: Part, columns: Columns, num_masked_S: Ints, of_what: str, rules: ShardRules, thorough: bool
) -> None:
    """Check candidates for single tokens; the first field of their part says which tokens these are."""
    entries = part.fields[0].column
    _check_positions(entries, ragged(columns, entries), num_masked_S, of_what)
    _check_lists(part, columns, entries, rules)
    if thorough:
        (ids,), (logprobs,) = part.having("teacher id", "student id"), part.having("rounded logprob")
        _check_candidates(columns, part.counts.column, ids.column, logprobs.column)


def _check_lists(part: Part, columns: Columns, entries: str, rules: ShardRules, sizes_X: Ints | None = None) -> None:
    """Check what follows from the table of fields: first lengths, then values.

    Args:
        part: A part of entries with items.
        columns: The row group.
        entries: Column with one value for each entry.
        rules: What the values are checked against.
        sizes_X: Tokens of an item of each entry, if there are tokens.
    """
    num_T, entries_S = len(rules.temperatures), ragged(columns, entries).lengths
    counts = part.counts.column
    require_lengths(counts, ragged(columns, counts).lengths, entries_S, entries)
    counts_X, row_X = ragged(columns, counts).values, ragged(columns, counts).row_of_value
    problem = "a position keeps no id" if part.least else "a count is negative"
    require(counts, counts_X >= part.least, row_X, problem)
    expected = {
        "entry": (entries_S, entries),
        "temperature": (entries_S * num_T, f"{entries} times {num_T} temperatures"),
        "item": (_per_row(row_X, counts_X, len(entries_S)), f"the sum of {counts}"),
    }
    if sizes_X is not None:
        of_tokens = _per_row(row_X, counts_X * sizes_X, len(entries_S))
        expected["token"] = of_tokens, f"what {counts} and the chunks' sizes say"
    found = {field.rule: (field.column, ragged(columns, field.column)) for field in part.fields}
    for field in part.fields:
        require_lengths(field.column, ragged(columns, field.column).lengths, *expected[field.axis])
    if "teacher id" in found:
        _check_ids(*found["teacher id"], rules.teacher_vocab_size)
    if "student id" in found:
        _check_ids(*found["student id"], rules.student_vocab_size)
    _check_logprobs(*found["rounded logprob"])
    if "draws" in found:
        name, draws = found["draws"]
        require(name, draws.values >= 1, draws.row_of_value, "an id was drawn less than once")
    if "log tail" in found:
        _check_powers(found["log tail"], found["log partition"], row_X, rules)
        _check_mass(found["rounded logprob"], counts_X, found["log tail"][1], row_X, rules)


def _per_row(row_X: Ints, values_X: Ints, num_rows: int) -> Ints:
    """Return sums of the entries' values, by the row of the table that they belong to."""
    result: Ints = np.bincount(row_X, weights=values_X, minlength=num_rows).astype(np.int64)
    return result


def _check_powers(
    of_tail: tuple[str, Ragged], of_partition: tuple[str, Ragged], row_R: Ints, rules: ShardRules
) -> None:
    """Check tails and partitions, one per temperature: they are numbers, and the whole is 1 at T = 1."""
    num_T, (tail_name, log_tail), (partition_name, log_partition) = len(rules.temperatures), of_tail, of_partition
    row_RT = np.repeat(row_R, num_T)
    partition_R = log_partition.values.reshape(-1, num_T)[:, rules.temperatures.index(1.0)]
    require(tail_name, log_tail.values < np.inf, row_RT, "not a number, or infinite")
    require(partition_name, np.isfinite(log_partition.values), row_RT, "not finite")
    require(partition_name, np.abs(partition_R) <= MASS_TOLERANCE, row_R, "not 0 at T = 1")


def _check_mass(of_kept: tuple[str, Ragged], counts_R: Ints, log_tail: Ragged, row_R: Ints, rules: ShardRules) -> None:
    """Check that kept probabilities and tail sum to one, up to the tolerance and the rounding to float16."""
    name, logprobs = of_kept
    tail_R = log_tail.values.reshape(-1, len(rules.temperatures))[:, rules.temperatures.index(1.0)]
    if counts_R.max(initial=0) <= CLEAR_LISTS:  # almost always enough, and several times faster
        rough_R = probabilities(logprobs.values, counts_R) + np.exp(tail_R)
        if (np.abs(rough_R - 1) <= MASS_TOLERANCE / 2).all():
            return
    probs_E = np.exp(logprobs.values)
    mass_R = sums(probs_E, counts_R) + np.exp(tail_R)
    information_R = -sums(probs_E * logprobs.values, counts_R)
    excess_R = np.abs(mass_R - 1) - information_R * FLOAT16_HALF_STEP
    problem = "what is kept and the tail do not sum to probability 1"
    require(name, excess_R <= MASS_TOLERANCE, row_R, problem)


def _check_tail(columns: Columns, rules: ShardRules) -> None:
    _check_lists(TAIL, columns, "topk_rows", rules)
    kept_ids, drawn_ids = ragged(columns, "topk_ids"), ragged(columns, "tail_ids")
    kept_R, drawn_R = ragged(columns, "topk_counts").values, ragged(columns, "tail_counts").values
    kept_E = _keyed(kept_ids.values, np.repeat(np.arange(len(kept_R)), kept_R))
    drawn_S = _keyed(drawn_ids.values, np.repeat(np.arange(len(drawn_R)), drawn_R))
    row_S = drawn_ids.row_of_value
    require("tail_ids", np.diff(drawn_S.astype(np.int64), prepend=-1) > 0, row_S, "ids do not increase at a position")
    require("tail_ids", ~np.isin(drawn_S, kept_E), row_S, "an id is both kept and drawn from the rest")


def _check_chunks(columns: Columns, pairs: Sequence[SamplePair], rules: ShardRules, thorough: bool) -> None:
    rows = ragged(columns, "chunk_rows")
    _check_chunk_rows(ragged(columns, "student_masked"), rows, pairs)
    first_C = sums_before([len(pair.chunks_C4) for pair in pairs])
    spans_C2 = np.concatenate([pair.chunks_C4 for pair in pairs])[:, 2:]
    size_A = np.diff(spans_C2)[first_C[rows.row_of_value] + rows.values, 0]
    _check_lists(CHUNKS, columns, "chunk_rows", rules, size_A)
    if thorough:
        counts_A, logprobs = ragged(columns, "chunk_counts").values, ragged(columns, "chunk_logprobs")
        _check_order("chunk_logprobs", logprobs, counts_A, "candidates")
        ids_F, owner_J = ragged(columns, "chunk_ids").values, np.repeat(np.arange(len(counts_A)), counts_A)
        is_repeated_J = repeats_of_candidates(ids_F, np.repeat(size_A, counts_A), owner_J)
        if is_repeated_J.any():
            require("chunk_ids", ~is_repeated_J, logprobs.row_of_value, "a candidate occurs twice in a chunk")


def _check_chunk_rows(student_masked: Ragged, rows: Ragged, pairs: Sequence[SamplePair]) -> None:
    """Check that there is an entry for every active chunk, and for no other."""
    masks = masks_of(student_masked, [len(pair.student_ids_L) for pair in pairs])
    row_C = np.repeat(np.arange(len(pairs)), [len(pair.chunks_C4) for pair in pairs])
    masked_C = _masked_tokens(masks, row_C, np.concatenate([pair.chunks_C4 for pair in pairs])[:, 2:])
    is_active_C = (masked_C > 0) & np.concatenate([pair.is_distillable_C for pair in pairs])
    chunk_C = np.concatenate([np.arange(len(pair.chunks_C4)) for pair in pairs])
    active_S = np.bincount(row_C[is_active_C], minlength=len(pairs))
    require_lengths("chunk_rows", rows.lengths, active_S, "the number of active chunks")
    is_expected_A = rows.values == chunk_C[is_active_C]
    require("chunk_rows", is_expected_A, rows.row_of_value, "an entry is not the view's active chunk")


def _keyed(ids: npt.NDArray[np.uint32], owner: Ints) -> npt.NDArray[np.uint64]:
    """Return one number for each id at a position, ordered by position, then by id."""
    return owner.astype(np.uint64) << np.uint64(32) | ids


def _check_candidates(columns: Columns, of_counts: str, of_ids: str, of_logprobs: str) -> None:
    counts, ids, logprobs = (ragged(columns, name) for name in (of_counts, of_ids, of_logprobs))
    _check_order(of_logprobs, logprobs, counts.values, "ids")
    for first in lists_with_twins(ids.values, counts.values)[:1]:
        raise ValueFault(of_ids, int(counts.row_of_value[first]), "an id occurs twice at a position")


def _check_order(column: str, logprobs: Ragged, counts: Ints, what: str) -> None:
    rises = unordered_items(logprobs.values, counts)
    if rises.any():  # whose row a value is of takes longer to say than whether one is wrong
        require(column, ~rises, logprobs.row_of_value[1:], f"{what} are not in order of probability")


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
    if len(values) and not (values.min() > -np.inf and values.max() <= LOGPROB_SLACK):  # min propagates NaN
        is_lawful = np.isfinite(values) & (values <= LOGPROB_SLACK)
        require(name, is_lawful, logprobs.row_of_value, "a log-prob is not finite or above 0")


def _check_positions(name: str, positions: Ragged, limit_S: Ints, inside: str) -> None:
    row = positions.row_of_value
    is_first = np.diff(row, prepend=-1) != 0
    is_after_previous = is_first | (np.diff(positions.values, prepend=-1) > 0)
    require(name, is_after_previous, row, "positions do not increase")
    require(name, (positions.values >= 0) & (positions.values < limit_S[row]), row, f"a position is outside {inside}")
