"""Checks of what a row group claims to decode to, before anything is decoded.

A hash proves that bytes are the committed ones, not that they are harmless: a few kilobytes may declare billions of
values, or unpack to gigabytes. Pyarrow allocates what page headers and footer declare. So both are read here first, and
must agree with each other, with the rows of the layout, and with the number of bytes on disk.

Source: the Parquet format, parquet.thrift (PageHeader), and the compact protocol of Thrift.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

MOST_UNPACKED_BYTES = 16 << 20
MOST_UNPACKED_RATIO = 200
"""A row group may unpack to this size or this multiple of its bytes, whichever is larger; real ones unpack to 2x."""

DATA_PAGE = 0
PLAIN, RLE, BYTE_STREAM_SPLIT = 0, 3, 9
BITS = {"BOOLEAN": 1, "INT32": 32, "INT64": 64, "FLOAT": 32, "DOUBLE": 64, "BYTE_ARRAY": 32}
"""Fewest bits that a value of a column takes."""

Struct = dict[int, Any]


class PageFault(Exception):
    """A row group declares something impossible; `column` says where."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(problem)
        self.column = column
        self.problem = problem


@dataclass(frozen=True, slots=True)
class _Page:
    num_values: int
    header_bytes: int
    packed_bytes: int
    unpacked_bytes: int


def check_pages(metadata: pq.FileMetaData, row_group: int, data: bytes, start: int) -> None:
    """Check that a row group is safe to decode.

    Args:
        metadata: The file's footer; its columns and row counts are known to be the expected ones.
        row_group: Number of the row group.
        data: Its bytes.
        start: Their offset in the file.

    Raises:
        PageFault: Counts or sizes contradict each other, or are larger than the row group can hold.
    """
    group = metadata.row_group(row_group)
    limit = max(MOST_UNPACKED_BYTES, MOST_UNPACKED_RATIO * len(data))
    most_listed, unpacked, end, flags = 0, 0, 0, []
    for index in range(metadata.num_columns):
        chunk, column = group.column(index), metadata.schema.column(index)
        name = column.path.partition(".")[0]
        unpacked += chunk.total_uncompressed_size
        if chunk.total_uncompressed_size < 0 or unpacked > limit:
            raise PageFault(name, f"unpacks to {unpacked} bytes or more, {len(data)} bytes may unpack to {limit}")
        if chunk.has_dictionary_page or chunk.data_page_offset - start != end:
            raise PageFault(name, "its pages do not follow those of the column before")
        is_list = column.max_repetition_level > 0
        _check_count(name, chunk, group.num_rows, is_list, BITS.get(column.physical_type, 8))
        end += chunk.total_compressed_size
        _check_chunk(name, chunk, list(_pages(name, data, end - chunk.total_compressed_size, end)))
        if is_list and column.physical_type == "BOOLEAN":
            flags.append((name, chunk.num_values))
        elif is_list:
            most_listed = max(most_listed, chunk.num_values)
    for name, count in flags:  # every flag belongs to a number, which takes more bytes
        if count > most_listed:
            raise PageFault(name, f"declares {count} flags for at most {most_listed} numbers")
    if end != len(data):
        raise PageFault(name, f"the columns end at byte {end} of {len(data)}")


def damaged_column(metadata: pq.FileMetaData, row_group: int, data: bytes, start: int) -> str | None:
    """Return the first column of a damaged row group with a page whose checksum fails; nothing is unpacked.

    Args:
        metadata: As for `check_pages`.
        row_group: Number of the row group.
        data: Its bytes, damaged.
        start: Their offset in the file.
    """
    for index in range(metadata.num_columns):
        chunk = metadata.row_group(row_group).column(index)
        name: str = metadata.schema.column(index).path.partition(".")[0]
        at = chunk.data_page_offset - start
        try:
            pages = list(_pages(name, data, at, at + chunk.total_compressed_size, check_sums=True))
            _check_chunk(name, chunk, pages)
        except PageFault:
            return name
    return None


def _check_count(name: str, chunk: Any, num_rows: int, is_list: bool, bits: int) -> None:
    """Check the declared number of values: each takes some bits, except an empty list, which counts as one value."""
    most = num_rows + 8 * chunk.total_uncompressed_size // bits if is_list else num_rows
    if not num_rows <= chunk.num_values <= most:
        raise PageFault(name, f"declares {chunk.num_values} values, expected {num_rows} to {most}")


def _check_chunk(name: str, chunk: Any, pages: list[_Page]) -> None:
    found = (
        sum(page.num_values for page in pages),
        sum(page.header_bytes + page.packed_bytes for page in pages),
        sum(page.header_bytes + page.unpacked_bytes for page in pages),
    )
    expected = (chunk.num_values, chunk.total_compressed_size, chunk.total_uncompressed_size)
    if found != expected:
        raise PageFault(name, f"its pages say {found} values, bytes and unpacked bytes, the footer says {expected}")


def _pages(name: str, data: bytes, start: int, end: int, check_sums: bool = False) -> Iterator[_Page]:
    """Read the page headers of a column; the bytes between them are not read."""
    if not 0 <= start <= end <= len(data):
        raise PageFault(name, f"lies at bytes {start} to {end} of a row group of {len(data)} bytes")
    while start < end:
        try:
            header, after = _struct(data, start, end, depth=0)
            inner = header[5]
            page = _Page(inner[1], after - start, header[3], header[2])
            is_ours = header[1] == DATA_PAGE and inner[2] in (PLAIN, BYTE_STREAM_SPLIT) and inner[3] == inner[4] == RLE
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PageFault(name, f"a page header cannot be read: {error!r}") from None
        if not is_ours:
            raise PageFault(name, "a page is not of a kind that the format has")
        if min(page.num_values, page.packed_bytes, page.unpacked_bytes) < 0 or after + page.packed_bytes > end:
            raise PageFault(name, "a page reaches beyond its column")
        start = after + page.packed_bytes
        if check_sums and zlib.crc32(data[after:start]) != header.get(4, -1) & 0xFFFFFFFF:
            raise PageFault(name, "the checksum of a page is wrong")
        yield page


def _struct(data: bytes, at: int, end: int, depth: int) -> tuple[Struct, int]:
    """Read a Thrift struct; only the place is kept of binary fields, which statistics have."""
    if depth > 4:
        raise ValueError("structs are nested too deep")
    fields: Struct = {}
    number = 0
    while True:
        if at >= end:
            raise ValueError("the header does not end")
        byte, at = data[at], at + 1
        if byte == 0:
            return fields, at
        step, kind = byte >> 4, byte & 15
        if step:
            number += step
        else:
            number, at = _signed(data, at, end)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (5, 6):
            fields[number], at = _signed(data, at, end)
        elif kind == 8:
            length, at = _varint(data, at, end)
            fields[number], at = None, at + length
        elif kind == 12:
            fields[number], at = _struct(data, at, end, depth + 1)
        else:
            raise ValueError(f"a field of type {kind}")


def _signed(data: bytes, at: int, end: int) -> tuple[int, int]:
    value, at = _varint(data, at, end)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("the header does not end")
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")
