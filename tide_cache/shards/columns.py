"""The two tables as numpy columns, between Arrow and the records; nothing here looks at single elements.

Shape suffixes: S rows of the table (samples, or views of samples); a `Ragged` column lays the S lists end to end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tide_cache.shards.schema import SignalParts

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Ragged:
    """S lists laid end to end: list s is `values[offsets[s]:offsets[s + 1]]`, and `offsets[0]` is 0."""

    offsets: npt.NDArray[np.int32]
    values: Array

    @classmethod
    def of(cls, lists: list[Array], dtype: npt.DTypeLike) -> Self:
        """Lay lists end to end; each must already be of `dtype`, so that nothing is rounded unseen."""
        if not all(one.dtype == dtype and one.ndim == 1 for one in lists):
            raise TypeError(f"expected flat arrays of {np.dtype(dtype)}")
        offsets = np.zeros(len(lists) + 1, np.int32)
        np.cumsum([len(one) for one in lists], out=offsets[1:])
        return cls(offsets, np.concatenate(lists) if lists else np.empty(0, dtype))

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Length of each list."""
        result: npt.NDArray[np.int32] = np.diff(self.offsets)
        return result

    @property
    def row_of_value(self) -> npt.NDArray[np.int64]:
        """The list that each value belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    def __getitem__(self, row: int) -> Array:
        result: Array = self.values[self.offsets[row] : self.offsets[row + 1]]
        return result


Column = Ragged | Array | list[str]


@dataclass(frozen=True, eq=False, slots=True)
class PairColumns:
    """The pairs table; names are those of the schema."""

    sample_index: npt.NDArray[np.int64]
    sample_id: list[str]
    student_ids: Ragged
    is_supervised: Ragged
    teacher_ids: Ragged
    chunks: Ragged


@dataclass(frozen=True, eq=False, slots=True)
class TopKColumns:
    """The `topk` columns of the signals table."""

    topk_rows: Ragged
    topk_counts: Ragged
    topk_ids: Ragged
    topk_logprobs: Ragged
    topk_log_tail: Ragged
    topk_log_partition: Ragged


@dataclass(frozen=True, eq=False, slots=True)
class TailColumns:
    """Ids drawn from the tails of the `topk` rows."""

    tail_counts: Ragged
    tail_ids: Ragged
    tail_logprobs: Ragged
    tail_draws: Ragged


@dataclass(frozen=True, eq=False, slots=True)
class ChunkColumns:
    """The `chunks` columns of the signals table."""

    chunk_rows: Ragged
    chunk_counts: Ragged
    chunk_ids: Ragged
    chunk_logprobs: Ragged
    chunk_log_tail: Ragged
    chunk_log_partition: Ragged


@dataclass(frozen=True, eq=False, slots=True)
class SignalColumns:
    """The signals table; names are those of the schema, and optional groups of columns have a class of their own."""

    sample_index: npt.NDArray[np.int64]
    sample_id: list[str]
    view: npt.NDArray[np.int32]
    t: npt.NDArray[np.float64]
    student_masked: Ragged
    teacher_masked: Ragged
    shown_first: Ragged | None
    truth_logprobs: Ragged
    is_top1: Ragged
    topk: TopKColumns | None
    tail: TailColumns | None = None
    chunks: ChunkColumns | None = None

    @property
    def parts(self) -> SignalParts:
        """Which optional columns are there."""
        return SignalParts(
            topk=self.topk is not None,
            tail=self.tail is not None,
            chunks=self.chunks is not None,
            split=self.shown_first is not None,
        )


_GROUPS: dict[str, type[TopKColumns | TailColumns | ChunkColumns]] = {
    "topk": TopKColumns,
    "tail": TailColumns,
    "chunks": ChunkColumns,
}
"""Optional groups of columns, by the field of `SignalColumns` that holds them."""


def pair_columns(table: pa.Table) -> PairColumns:
    """Read an Arrow table of the pairs schema; arrays are read-only views of its memory."""
    return PairColumns(**columns_of(table))


def signal_columns(found: Mapping[str, Any]) -> SignalColumns:
    """Gather plain columns by name; optional groups that are not there are None."""
    own: dict[str, Any] = {
        field.name: found.get(field.name) for field in fields(SignalColumns) if field.name not in _GROUPS
    }
    groups: dict[str, Any] = {}
    for group, holder in _GROUPS.items():
        names = [field.name for field in fields(holder)]
        groups[group] = holder(**{name: found[name] for name in names}) if names[0] in found else None
    return SignalColumns(**own, **groups)


def named(columns: PairColumns | SignalColumns) -> dict[str, Column]:
    """Give the columns that are there, by name."""
    holders = [columns, *(getattr(columns, group, None) for group in _GROUPS)]
    found = {f.name: getattr(holder, f.name) for holder in holders if holder is not None for f in fields(holder)}
    groups = (type(None), *_GROUPS.values())
    return {name: column for name, column in found.items() if not isinstance(column, groups)}


def table_of(columns: Mapping[str, Column], schema: pa.Schema) -> pa.Table:
    """Give columns as Arrow."""
    return pa.Table.from_arrays([_to_arrow(columns[field.name], field.type) for field in schema], schema=schema)


def columns_of(table: pa.Table) -> dict[str, Any]:
    """Invert `table_of`; arrays are read-only views of the table's memory."""
    return {name: _from_arrow(table.column(name)) for name in table.column_names}


def _to_arrow(column: Column, dtype: pa.DataType) -> pa.Array:
    if isinstance(column, Ragged) and pa.types.is_binary(dtype):
        buffers = [None, pa.py_buffer(column.offsets), pa.py_buffer(column.values)]
        return pa.Array.from_buffers(dtype, len(column.offsets) - 1, buffers)
    if isinstance(column, Ragged):
        return pa.ListArray.from_arrays(pa.array(column.offsets), pa.array(column.values), type=dtype)
    return pa.array(column, type=dtype)


def _from_arrow(column: pa.ChunkedArray) -> Any:
    """A `Ragged`, an array, or a list of strings, by the column's type."""
    # A row group is one chunk; several, or none for an empty table, are laid end to end.
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])
    if pa.types.is_string(array.type):
        return array.to_pylist()
    if pa.types.is_binary(array.type):
        return _from_binary(array)
    if not pa.types.is_list(array.type):
        return _to_numpy(array)
    offsets = array.offsets.to_numpy()
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return Ragged(offsets - offsets[0], _to_numpy(values))


def _from_binary(array: pa.Array) -> Ragged:
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    values = np.frombuffer(data if data is not None else b"", np.uint8)[ends[0] : ends[-1]]
    return Ragged(ends - ends[0], values)


def _to_numpy(array: pa.Array) -> Array:
    # Arrow packs booleans into bits, so they alone cannot be viewed.
    result: Array = array.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type))
    return result
