"""A table's columns as numpy arrays, between Arrow and the records; no loop here goes over single elements.

Shape suffixes: S rows of the table (samples, or views of samples); a `Ragged` column holds S concatenated lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tide_cache.arrays import sums_before

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Ragged:
    """S concatenated lists: list s is `values[offsets[s]:offsets[s + 1]]`, and `offsets[0]` is 0."""

    offsets: npt.NDArray[np.int32]
    values: Array

    @classmethod
    def of(cls, lists: list[Array], dtype: npt.DTypeLike) -> Self:
        """Concatenate lists; each must already be of `dtype`, so that nothing is rounded silently."""
        if not all(one.dtype == dtype and one.ndim == 1 for one in lists):
            raise TypeError(f"expected flat arrays of {np.dtype(dtype)}")
        offsets = sums_before([len(one) for one in lists]).astype(np.int32)
        return cls(offsets, np.concatenate(lists) if lists else np.empty(0, dtype))

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Lengths of the lists."""
        result: npt.NDArray[np.int32] = np.diff(self.offsets)
        return result

    @property
    def row_of_value(self) -> npt.NDArray[np.int64]:
        """Number of the list of each value."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    def lists(self) -> list[Array]:
        """Return all lists; faster than one by one."""
        return [self.values[start:end] for start, end in pairwise(self.offsets.tolist())]

    def __getitem__(self, row: int) -> Array:
        result: Array = self.values[self.offsets[row] : self.offsets[row + 1]]
        return result


Column = Ragged | Array | list[str]
Columns = Mapping[str, Column]
"""The columns of a row group of one of the tables, by the names of its schema."""


def ragged(columns: Columns, name: str) -> Ragged:
    """Return a column of lists."""
    column = columns[name]
    assert isinstance(column, Ragged), name
    return column


def scalars(columns: Columns, name: str) -> Array:
    """Return a column with one number per row."""
    column = columns[name]
    assert isinstance(column, np.ndarray), name
    return column


def rows_of(columns: Columns, row: int) -> dict[str, Column]:
    """Return one row of a table as a table; nothing is copied."""
    return {name: _row_of(column, row) for name, column in columns.items()}


def _row_of(column: Column, row: int) -> Column:
    if isinstance(column, Ragged):
        return Ragged(column.offsets[row : row + 2] - column.offsets[row], column[row])
    return column[row : row + 1]


def names_of(columns: Columns) -> list[str]:
    """Return the samples of the rows."""
    column = columns["sample_id"]
    assert isinstance(column, list)
    return column


def table_of(columns: Columns, schema: pa.Schema) -> pa.Table:
    """Return columns as Arrow."""
    return pa.Table.from_arrays([_to_arrow(columns[field.name], field.type) for field in schema], schema=schema)


def columns_of(table: pa.Table) -> dict[str, Column]:
    """Invert `table_of`; arrays are read-only views of the table's memory."""
    return {name: _from_arrow(table.column(name)) for name in table.column_names}


def _to_arrow(column: Column, dtype: pa.DataType) -> pa.Array:
    if isinstance(column, Ragged) and pa.types.is_binary(dtype):
        buffers = [None, pa.py_buffer(column.offsets), pa.py_buffer(column.values)]
        return pa.Array.from_buffers(dtype, len(column.offsets) - 1, buffers)
    if isinstance(column, Ragged):
        return pa.ListArray.from_arrays(pa.array(column.offsets), pa.array(column.values), type=dtype)
    return pa.array(column, type=dtype)


def _from_arrow(column: pa.ChunkedArray) -> Column:
    """Return a `Ragged`, an array, or a list of strings, depending on the column's type."""
    # a row group is one chunk; several, or none of an empty table, are concatenated
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])
    if pa.types.is_string(array.type):
        texts: list[str] = array.to_pylist()
        return texts
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
    # Arrow packs booleans into bits, so they cannot be viewed
    result: Array = array.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type))
    return result
