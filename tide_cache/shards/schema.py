"""The columns of the two tables of format v1, and what a shard says about itself in its key-value metadata."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

FORMAT_VERSION = 1

CodecName = Literal["plain", "compact"]

PassName = Literal["plain", "compdemo"]
PASSES: tuple[PassName, ...] = get_args(PassName)

TableName = Literal["pairs", "plain", "compdemo"]
"""`pairs`, or the signals of a pass under the pass's name."""

SignalKind = Literal["truth", "topk", "chunks"]
"""What was stored of the teacher: `truth` always is; ids drawn from tails come with `topk`."""

METADATA_PREFIX = "tide_cache."


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
_SIGNALS = {
    "sample_index": pa.int64(),
    "sample_id": pa.string(),
    "view": pa.int32(),
    "t": pa.float64(),
    "student_masked": _list_of(pa.int32()),
    "teacher_masked": _list_of(pa.int32()),
    "shown_first": _list_of(pa.bool_()),
    "truth_logprobs": _list_of(pa.float32()),
    "is_top1": _list_of(pa.bool_()),
}
_TOPK = {
    "topk_rows": _list_of(pa.int32()),
    "topk_counts": _list_of(pa.int32()),
    "topk_ids": _list_of(pa.uint32()),
    "topk_logprobs": _list_of(pa.float32()),
    "topk_log_tail": _list_of(pa.float32()),
    "topk_log_partition": _list_of(pa.float32()),
}

_TAIL = {
    "tail_counts": _list_of(pa.int32()),
    "tail_ids": _list_of(pa.uint32()),
    "tail_logprobs": _list_of(pa.float32()),
    "tail_draws": _list_of(pa.int32()),
}
_CHUNKS = {
    "chunk_rows": _list_of(pa.int32()),
    "chunk_counts": _list_of(pa.int32()),
    "chunk_ids": _list_of(pa.uint32()),
    "chunk_logprobs": _list_of(pa.float32()),
    "chunk_log_tail": _list_of(pa.float32()),
    "chunk_log_partition": _list_of(pa.float32()),
}

PAIRS_SCHEMA = _schema(_PAIRS)

_PACKED: dict[CodecName, dict[str, dict[str, pa.DataType]]] = {
    "plain": {},
    "compact": {
        "ids": {"high": pa.binary(), "wide": _list_of(pa.uint32()), "low": pa.binary()},
        "logprobs": {"high": pa.binary(), "low": pa.binary()},
    },
}
"""For each codec, what is in the place of a column of candidates, by the end of its name."""


@dataclass(frozen=True, slots=True)
class SignalParts:
    """Which optional column groups a signals shard has.

    Attributes:
        topk: Candidates at aligned pairs.
        tail: Ids drawn from the rest of those; needs `topk`.
        chunks: Candidates of whole chunks.
        split: CompDemo's split.
    """

    topk: bool = False
    tail: bool = False
    chunks: bool = False
    split: bool = False


def signals_schema(parts: SignalParts, codec: CodecName = "plain") -> pa.Schema:
    """Columns of a signals shard."""
    columns = {name: dtype for name, dtype in _SIGNALS.items() if parts.split or name != "shown_first"}
    for is_there, group in ((parts.topk, _TOPK), (parts.tail, _TAIL), (parts.chunks, _CHUNKS)):
        columns |= _packed(group, codec) if is_there else {}
    return _schema(columns)


def _packed(group: Mapping[str, pa.DataType], codec: CodecName) -> dict[str, pa.DataType]:
    result: dict[str, pa.DataType] = {}
    for name, dtype in group.items():
        packed = _PACKED[codec].get(name.partition("_")[2])
        result |= {name: dtype} if packed is None else {f"{name}_{part}": of_part for part, of_part in packed.items()}
    return result


def byte_stream_split_leaves(schema: pa.Schema) -> list[str]:
    """Parquet paths of the columns whose bytes are split before compression: all numbers, not text, bytes or flags."""
    return [
        _leaf(field)
        for field in schema
        if pa.types.is_integer(_element(field)) or pa.types.is_floating(_element(field))
    ]


def compression_levels(schema: pa.Schema) -> dict[str, int]:
    """Zstandard level of every column, by Parquet path: 1, and 3 where it saves a tenth of the bytes."""
    return {_leaf(field): 3 if field.name == "topk_logprobs" else 1 for field in schema}


def _element(field: pa.Field) -> Any:
    return field.type.value_type if pa.types.is_list(field.type) else field.type


def _leaf(field: pa.Field) -> str:
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """Which shard of which cache a file is; stored inside the file, so that files cannot change places unseen."""

    cache_id: str
    plan_hash: str
    table: TableName
    shard: int
    format_version: int = FORMAT_VERSION

    def to_metadata(self, codec: CodecName = "plain") -> dict[str, str]:
        """Key-value pairs of the Parquet footer, for a table in this codec."""
        return {METADATA_PREFIX + name: str(value) for name, value in {**asdict(self), "codec": codec}.items()}
