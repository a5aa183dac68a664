"""The table of signal fields: what a teacher says of one view, array by array, and the generic operations on them.

A field has an attribute of its record, a column of a signals shard, an element type, an axis and a rule. Shards, their
checks, CompDemo, joining and export read this table, so a new field is a line here and an attribute in `records.py`.

A part of a signal is stored as a whole or not at all. Parts of lists have **entries** (masked positions, or chunks),
each of which has **items** (kept ids, draws, candidates); the items of all entries are concatenated.

Shape suffixes: X entries of a part, I items of all of them, else as in `tide_cache.records`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import places_in_lists
from tide_cache.records import Bools, ChunkCandidates, ProjectedTopK, TailSamples, TeacherSignal, TopK

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.integer[Any]]
Temperatures = tuple[float, ...]

Axis = Literal["position", "row", "entry", "temperature", "item", "token"]
"""What a field has one value per: a masked teacher position; a masked student token; an entry of its part; each
temperature of an entry; an item of an entry; each student token of an item."""

Rule = Literal[
    "flag", "logprob", "masked position", "masked token", "chunk", "count", "teacher id", "student id",
    "rounded logprob", "draws", "log tail", "log partition", "steps",
]  # fmt: skip
"""What a field's values are, and so how they are checked; `rounded logprob` may be stored as float16."""

PartName = Literal["truth", "topk", "tail", "chunks", "projected", "split", "steps"]


@dataclass(frozen=True, slots=True)
class Field:
    """One array of what the teacher says.

    Attributes:
        name: Attribute of its record.
        column: Column of a signals shard; holds the flattened array.
        dtype: Of its elements.
        axis: What it has one value for.
        rule: What its values are.
        exported: Column of an exported view; counts have none, since there lists are nested.
    """

    name: str
    column: str
    dtype: Literal["bool", "int32", "uint16", "uint32", "float32"]
    axis: Axis
    rule: Rule
    exported: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Fields that are stored together.

    Attributes:
        name: Of the part.
        record: Type that has the fields as attributes.
        fields: In the order of a shard's columns; of a part with entries, the one that says which they are comes first.
        least: Minimum number of items of an entry.
    """

    name: PartName
    record: type[TeacherSignal | TopK | TailSamples | ChunkCandidates | ProjectedTopK]
    fields: tuple[Field, ...]
    least: int = 0

    def having(self, *rules: Rule) -> tuple[Field, ...]:
        """Return the fields whose values are of these kinds."""
        return tuple(field for field in self.fields if field.rule in rules)

    @property
    def counts(self) -> Field:
        """The field that holds the number of items of each entry."""
        (counts,) = self.having("count")
        return counts


SPLIT = Part(
    "split", TeacherSignal,
    (Field("is_shown_first_N", "shown_first", "bool", "position", "flag", "is_shown_first"),),
)  # fmt: skip
STEPS = Part(
    "steps", TeacherSignal,
    (Field("steps_to_reveal_N", "steps_to_reveal", "uint16", "row", "steps", "steps_to_reveal"),),
)  # fmt: skip
TRUTH = Part(
    "truth", TeacherSignal,
    (
        Field("truth_logprobs_N", "truth_logprobs", "float32", "position", "logprob", "truth_logprobs"),
        Field("is_top1_N", "is_top1", "bool", "position", "flag", "is_top1"),
    ),
)  # fmt: skip


def _single_tokens(prefix: str, tokens: Rule, ids: Rule) -> tuple[Field, ...]:
    """Return the fields of candidates for single tokens, in columns with a prefix.

    Args:
        prefix: Of the columns.
        tokens: Which tokens they are for.
        ids: Whose ids they are.
    """
    return (
        Field("rows_R", f"{prefix}_rows", "int32", "entry", tokens, f"{prefix}_positions"),
        Field("counts_R", f"{prefix}_counts", "int32", "entry", "count"),
        Field("ids_E", f"{prefix}_ids", "uint32", "item", ids, f"{prefix}_ids"),
        Field("logprobs_E", f"{prefix}_logprobs", "float32", "item", "rounded logprob", f"{prefix}_logprobs"),
        Field("log_tail_RT", f"{prefix}_log_tail", "float32", "temperature", "log tail", f"{prefix}_log_tail"),
        Field("log_partition_RT", f"{prefix}_log_partition", "float32", "temperature", "log partition",
              f"{prefix}_log_partition"),
    )  # fmt: skip


TOPK = Part("topk", TopK, _single_tokens("topk", "masked position", "teacher id"), least=1)
TAIL = Part(
    "tail", TailSamples,
    (
        Field("counts_R", "tail_counts", "int32", "entry", "count"),
        Field("ids_S", "tail_ids", "uint32", "item", "teacher id", "tail_ids"),
        Field("logprobs_S", "tail_logprobs", "float32", "item", "rounded logprob", "tail_logprobs"),
        Field("draws_S", "tail_draws", "int32", "item", "draws", "tail_draws"),
    ),
)  # fmt: skip
CHUNKS = Part(
    "chunks", ChunkCandidates,
    (
        Field("chunks_A", "chunk_rows", "int32", "entry", "chunk", "candidate_chunks"),
        Field("counts_A", "chunk_counts", "int32", "entry", "count"),
        Field("ids_F", "chunk_ids", "uint32", "token", "student id", "candidate_ids"),
        Field("logprobs_J", "chunk_logprobs", "float32", "item", "rounded logprob", "candidate_logprobs"),
        Field("log_tail_AT", "chunk_log_tail", "float32", "temperature", "log tail", "candidate_log_tail"),
        Field("log_partition_AT", "chunk_log_partition", "float32", "temperature", "log partition",
              "candidate_log_partition"),
    ),
)  # fmt: skip

PROJECTED = Part(
    "projected", ProjectedTopK, _single_tokens("projected", "masked token", "student id"), least=1,
)  # fmt: skip

PARTS = (SPLIT, STEPS, TRUTH, TOPK, TAIL, CHUNKS, PROJECTED)
"""In the order of a shard's columns."""

NESTED: dict[type, dict[str, type]] = {
    TeacherSignal: {"topk": TopK, "chunks": ChunkCandidates, "projected": ProjectedTopK},
    TopK: {"tail": TailSamples},
}
"""Attributes that hold a nested record; the entries of a tail are those of its `topk`."""

_PARTS: dict[type, tuple[Part, ...]] = {
    record: tuple(part for part in PARTS if part.record is record)
    for record in (TeacherSignal, TopK, TailSamples, ChunkCandidates, ProjectedTopK)
}
_FIELDS: dict[type, tuple[Field, ...]] = {
    record: tuple(field for part in parts for field in part.fields) for record, parts in _PARTS.items()
}

Said = TypeVar("Said", TeacherSignal, TopK, TailSamples, ChunkCandidates, ProjectedTopK)
Lists = TypeVar("Lists", TopK, TailSamples, ChunkCandidates, ProjectedTopK)


def parts_in(columns: Mapping[str, Any]) -> frozenset[PartName]:
    """Return the parts that a table has, from its columns, packed or not."""
    return frozenset(part.name for part in PARTS if part.fields[0].column in columns)


def to_columns(said: TeacherSignal | TopK | TailSamples | ChunkCandidates | ProjectedTopK) -> dict[str, Array]:
    """Return the arrays that are present, by column; arrays by temperature are flattened."""
    result: dict[str, Array] = {}
    for field in _FIELDS[type(said)]:
        if (array := getattr(said, field.name)) is not None:
            result[field.column] = array.reshape(-1) if field.axis == "temperature" else array
    for name in NESTED.get(type(said), {}):
        if (nested := getattr(said, name)) is not None:
            result |= to_columns(nested)
    return result


def from_columns(record: type[Said], columns: Mapping[str, Array], num_temperatures: int) -> Said | None:
    """Invert `to_columns`.

    Args:
        record: Type of the record wanted.
        columns: Its arrays by column; others are ignored.
        num_temperatures: Of tails and partitions.

    Returns:
        The record, or None where none of its columns is present.
    """
    found: dict[str, Any] = {}
    for part in _PARTS[record]:
        if part.fields[0].column in columns:
            for field in part.fields:
                array = columns[field.column]
                found[field.name] = array.reshape(-1, num_temperatures) if field.axis == "temperature" else array
    if not found:
        return None
    for name, nested in NESTED.get(record, {}).items():
        found[name] = from_columns(nested, columns, num_temperatures)
    return record(**found)


def empty(record: type[Lists], num_temperatures: int, num_entries: int = 0) -> Lists:
    """Return lists without items.

    Args:
        record: Their type.
        num_temperatures: Of tails and partitions.
        num_entries: Number of entries, all without items.
    """
    columns = {
        field.column: np.zeros(num_entries if field.axis == "entry" else 0, field.dtype) for field in _FIELDS[record]
    }
    made = from_columns(record, columns, num_temperatures)
    assert made is not None
    return made


def concat(several: Sequence[Said], first: Mapping[Rule, Sequence[int]] | None = None) -> Said:
    """Concatenate the signals of several views.

    A part is that of the views that have it. A field of positions that some lack is left out, and tails that some lack
    are without items there.

    Args:
        several: At least one.
        first: By "masked position" and "chunk": the number of each view's first one, where these are numbered.
    """
    record = type(several[0])
    made: dict[str, Any] = {}
    for field in _FIELDS[record]:
        arrays = [getattr(one, field.name) for one in several]
        if first is not None and field.rule in first:
            arrays = [array + np.int32(start) for array, start in zip(arrays, first[field.rule], strict=True)]
        made[field.name] = None if any(array is None for array in arrays) else np.concatenate(arrays)
    for name, part in NESTED.get(record, {}).items():
        made[name] = _concat_part(several, name, part, first)
    return record(**made)


def _concat_part(several: Sequence[Any], name: str, record: type, first: Mapping[Rule, Sequence[int]] | None) -> Any:
    found = [getattr(one, name) for one in several]
    having = [i for i, part in enumerate(found) if part is not None]
    if not having:
        return None
    if _FIELDS[record][0].rule == "count":  # its entries are those of the whole, and none may be missing
        parts = [empty(record, 0, len(one.counts_R)) if part is None else part
                 for one, part in zip(several, found, strict=True)]  # fmt: skip
        return concat(parts)
    starts = None if first is None else {rule: [values[i] for i in having] for rule, values in first.items()}
    return concat([found[i] for i in having], starts)


def take(lists: Lists, chosen_X: Ints, sizes_X: Ints | None = None) -> Lists:
    """Return some entries with their items, in the order asked for.

    Args:
        lists: Of any entries.
        chosen_X: Indices of the entries wanted.
        sizes_X: Tokens of an item of each entry of `lists`; needed where there are tokens.
    """
    counts_X = getattr(lists, _counts_name(lists))
    places = {"entry": chosen_X, "temperature": chosen_X, "item": places_in_lists(counts_X, chosen_X)}
    if sizes_X is not None:
        places["token"] = places_in_lists(counts_X * sizes_X, chosen_X)
    made = {field.name: getattr(lists, field.name)[places[field.axis]] for field in _FIELDS[type(lists)]}
    for name in NESTED.get(type(lists), {}):
        if (nested := getattr(lists, name)) is not None:
            made[name] = take(nested, chosen_X)
    return type(lists)(**made)


def take_positions(signal: TeacherSignal, chosen_N: Ints) -> TeacherSignal:
    """Return a signal whose fields of masked positions are some of them, in the order asked for; parts stay."""
    fields = [field for field in _FIELDS[TeacherSignal] if field.axis == "position"]
    own = {field.name: getattr(signal, field.name) for field in fields}
    return replace(signal, **{name: array[chosen_N] for name, array in own.items() if array is not None})


def keep_items(lists: Lists, is_kept_I: Bools) -> Lists:
    """Return lists of single items without some of these; nested lists stay."""
    counts, fields = _counts_name(lists), _FIELDS[type(lists)]
    entry_I = np.repeat(np.arange(len(getattr(lists, counts))), getattr(lists, counts))
    made: dict[str, Any] = {
        field.name: getattr(lists, field.name)[is_kept_I] for field in fields if field.axis == "item"
    }
    made[counts] = np.bincount(entry_I[is_kept_I], minlength=len(getattr(lists, counts))).astype(np.int32)
    return replace(lists, **made)


def _counts_name(lists: TopK | TailSamples | ChunkCandidates | ProjectedTopK) -> str:
    (name,) = (field.name for field in _FIELDS[type(lists)] if field.rule == "count")
    return name


def at_temperatures(lists: Lists, own: Temperatures, wanted: Temperatures) -> Lists:
    """Return lists whose tails and partitions are at other temperatures, nan at those that they lack."""
    if own == wanted:
        return lists
    made: dict[str, Any] = {}
    for field in _FIELDS[type(lists)]:
        if field.axis == "temperature":
            values_XT = getattr(lists, field.name)
            made[field.name] = np.full((len(values_XT), len(wanted)), np.nan, np.float32)
            for index, temperature in enumerate(own):
                made[field.name][:, wanted.index(temperature)] = values_XT[:, index]
    return replace(lists, **made)
