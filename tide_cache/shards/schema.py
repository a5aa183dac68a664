"""The columns of the two tables of format v1, and a shard's key-value metadata."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from tide_cache.config.settings import CodecName, PassName
from tide_cache.signal_table import PARTS, TRUTH, Field, PartName, Rule

FORMAT_VERSION = 1
"""Version of every shard, and of a cache's documents unless they need a newer one."""
SHARED_VIEWS_VERSION = 2
"""Version of identity, plan and manifest of a cache whose one stored view serves all views of training."""
PROJECTED_VERSION = 3
"""Version of the same documents of a cache that holds the signal `projected`."""
PARTS_VERSION = 4
"""Version of a manifest whose entries are in separate files; identity, plan and shards keep theirs."""
TRAJECTORY_VERSION = 5
"""Version of identity, plan and manifest of a cache whose views are steps of a decoding."""
CONDITIONAL_VERSION = 6
"""Version of the same documents of a cache whose chunks were asked for token after token."""
NEWEST_VERSION = CONDITIONAL_VERSION
"""The newest version that this release reads."""

PASSES: tuple[PassName, ...] = get_args(PassName)

TableName = Literal["pairs", "plain", "compdemo"]
"""`pairs`, or the signals of a pass under the pass's name."""

METADATA_PREFIX = "tide_cache."

COMPRESSION_LEVEL = 1
"""Of Zstandard; 3 saves 5 % of the bytes in twice the time."""


def _list_of(element: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", element, nullable=False))


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, dtype, nullable=False) for name, dtype in columns.items()])


_PAIRS = {
    "sample_index": pa.int64(),
    "sample_id": pa.string(),
    "student_ids": _list_of(pa.int32()),
    "is_supervised": _list_of(pa.bool_()),
    "teacher_ids": _list_of(pa.int32()),
    "chunks": _list_of(pa.int32()),
}
_VIEWS = {
    "sample_index": pa.int64(),
    "sample_id": pa.string(),
    "view": pa.int32(),
    "t": pa.float64(),
    "student_masked": _list_of(pa.int32()),
    "teacher_masked": _list_of(pa.int32()),
}
"""Columns of the view itself; those of the teacher's signals are in `signal_table`."""

PAIRS_SCHEMA = _schema(_PAIRS)

_PACKED: dict[CodecName, dict[Rule, dict[str, pa.DataType]]] = {
    "plain": {},
    "compact": {
        "teacher id": {"high": pa.binary(), "wide": _list_of(pa.uint32()), "low": pa.binary()},
        "student id": {"high": pa.binary(), "wide": _list_of(pa.uint32()), "low": pa.binary()},
        "rounded logprob": {"high": pa.binary(), "low": pa.binary()},
    },
}
"""For each codec, what replaces a column, by the rule of its values."""


def signals_schema(parts: Collection[PartName], codec: CodecName = "plain") -> pa.Schema:
    """Return the columns of a signals shard; its parts always include `truth`."""
    columns = dict(_VIEWS)
    for part in PARTS:
        if part.name in parts or part is TRUTH:
            for field in part.fields:
                columns |= _stored(field, codec)
    return _schema(columns)


def _stored(field: Field, codec: CodecName) -> dict[str, pa.DataType]:
    packed = _PACKED[codec].get(field.rule)
    if packed is None:
        return {field.column: _list_of(pa.type_for_alias(field.dtype))}
    return {f"{field.column}_{part}": of_part for part, of_part in packed.items()}


def byte_stream_split_leaves(schema: pa.Schema) -> list[str]:
    """Return the Parquet paths of columns whose bytes are split before compression: all columns of numbers."""
    return [
        _leaf(field)
        for field in schema
        if pa.types.is_integer(_element(field)) or pa.types.is_floating(_element(field))
    ]


def former_compression_levels(schema: pa.Schema) -> dict[str, int]:
    """Return the levels of all columns, by Parquet path, of caches written before: a repair must give their bytes."""
    return {_leaf(field): 3 if field.name == "topk_logprobs" else COMPRESSION_LEVEL for field in schema}


def _element(field: pa.Field) -> Any:
    return field.type.value_type if pa.types.is_list(field.type) else field.type


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """Which shard of which cache a file is; stored inside the file, so that swapped files are noticed."""

    cache_id: str
    plan_hash: str
    table: TableName
    shard: int
    format_version: int = FORMAT_VERSION

    def to_metadata(self, codec: CodecName = "plain") -> dict[str, str]:
        """Return the key-value pairs of the Parquet footer, for a table in this codec."""
        return {METADATA_PREFIX + name: str(value) for name, value in {**asdict(self), "codec": codec}.items()}
