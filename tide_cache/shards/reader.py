"""From a shard on disk to records: the right ones, or an error that says what is wrong and where.

Nothing is decoded before its bytes are known to be the committed ones: the file's size and footer are checked against
the commit record, each row group against the hash in the footer. Then the values are checked against the laws of the
format. A reader keeps no file open, so it can be sent to worker processes.
"""

import hashlib
import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from tide_cache.config.settings import SignalKind
from tide_cache.errors import CacheMismatchError, ShardCorruptError
from tide_cache.locations import CachePath
from tide_cache.records import SamplePair, ViewRecord
from tide_cache.shards.checks import ShardRules, check_pairs, check_signals
from tide_cache.shards.codecs import CODECS
from tide_cache.shards.columns import Columns, columns_of, names_of, scalars
from tide_cache.shards.files import LOCAL_FILES, Files
from tide_cache.shards.layout import ShardLayout
from tide_cache.shards.pages import PageFault, check_pages, damaged_column
from tide_cache.shards.record_columns import columns_to_pairs, columns_to_views
from tide_cache.shards.schema import (
    FORMAT_VERSION,
    METADATA_PREFIX,
    PAIRS_SCHEMA,
    ShardHeader,
    signals_schema,
)
from tide_cache.shards.value_faults import ValueFault
from tide_cache.shards.writer import MAGIC, ROW_GROUPS_KEY, TRAILER_BYTES

WAY_OUT = "`tide-cache repair CACHE` moves it aside and computes only it again."

MOST_FOOTER_BYTES = 64 << 10
MOST_FOOTER_BYTES_PER_ROW_GROUP = 16 << 10
"""A footer is read as a whole, so a longer one is refused unread; a real one has about 2 KB per row group."""


class ShardFacts(Protocol):
    """What a reader knows about a shard before it opens it; a commit record is one."""

    @property
    def header(self) -> ShardHeader:
        """Identifies the shard."""

    @property
    def size(self) -> int:
        """Size of the file in bytes."""

    @property
    def footer_sha256(self) -> str:
        """Hash of the file's end: footer, its length, magic."""

    @property
    def num_samples(self) -> int:
        """Number of its samples."""


_RANGES = TypeAdapter(list[tuple[int, int, str]])


@dataclass(frozen=True, slots=True)
class _Footer:
    metadata: pq.FileMetaData
    ranges: list[tuple[int, int, str]]  # start, size and SHA-256 of each row group


class ShardReader:
    """Reads row groups of one shard. Nothing is read before the first request."""

    def __init__(self, path: CachePath, facts: ShardFacts, rules: ShardRules, files: Files = LOCAL_FILES) -> None:
        self.path = path
        self.layout = ShardLayout(facts.num_samples, 1 if facts.header.table == "pairs" else rules.num_views)
        self._facts = facts
        self._rules = rules
        self._files = files

    @property
    def content(self) -> str:
        """Hash of the shard's footer, which holds those of all row groups."""
        return self._facts.footer_sha256

    def read_pairs(self, group: int) -> list[SamplePair]:
        """Return the samples of a group; arrays are read-only.

        Args:
            group: Group of samples.

        Raises:
            ShardCorruptError: The bytes are not the committed ones, or a value breaks a law of the format.
            CacheMismatchError: The shard was written in a newer format.
        """
        return columns_to_pairs(self.pair_columns(group))

    def read_indexed_pairs(self, group: int) -> tuple[list[int], list[SamplePair]]:
        """Read the samples of a group, and each one's row number in the corpus; raises as `read_pairs`."""
        columns = self.pair_columns(group)
        return scalars(columns, "sample_index").tolist(), columns_to_pairs(columns)

    def pair_columns(self, group: int) -> Columns:
        """Return the samples of a group as columns, checked; raises as `read_pairs`."""
        assert self._facts.header.table == "pairs"
        row_group = self.layout.row_group(0, group)
        columns = self._columns(row_group)
        with self._naming(row_group, names_of(columns)):
            check_pairs(columns, self._rules)
        return columns

    def read_signals(
        self,
        view: int,
        group: int,
        pairs: Sequence[SamplePair],
        thorough: bool = False,
        signals: Collection[SignalKind] | None = None,
    ) -> list[ViewRecord]:
        """Return one view of the samples of a group; arrays other than masks are read-only.

        Args:
            view: Number of the view.
            group: Group of samples.
            pairs: The same group, from the pairs shard of the same number.
            thorough: Also check that kept ids are distinct and in order of probability.
            signals: Which signals to decode and check, by default all that are stored; always includes `truth`.

        Raises:
            ShardCorruptError: The bytes are not the committed ones, or a value breaks a law of the format.
            CacheMismatchError: The shard was written in a newer format.
        """
        columns = self.signal_columns(view, group, pairs, thorough, signals)
        return columns_to_views(columns, pairs, len(self._rules.temperatures))

    def check_signals(self, view: int, group: int, pairs: Sequence[SamplePair]) -> None:
        """Check one view of the samples of a group, thoroughly, and make no records; raises as `read_signals`."""
        self.signal_columns(view, group, pairs, thorough=True)

    def signal_columns(
        self,
        view: int,
        group: int,
        pairs: Sequence[SamplePair],
        thorough: bool = False,
        signals: Collection[SignalKind] | None = None,
    ) -> Columns:
        """Return one view of the samples of a group as columns, checked; arguments and errors as in `read_signals`."""
        assert self._facts.header.table != "pairs"
        assert len(pairs) == len(self.layout.samples_of(group)), "pairs of another group"
        row_group = self.layout.row_group(view, group)
        found = self._columns(row_group, self._columns_of_signals(signals))
        with self._naming(row_group, names_of(found)):
            columns = CODECS[self._rules.codec].unpack(found)
            check_signals(columns, view, pairs, self._rules, thorough)
        return columns

    def _columns_of_signals(self, signals: Collection[SignalKind] | None) -> list[str] | None:
        if signals is None:
            return None
        wanted = {"split", "steps", *signals, *(("tail",) if "topk" in signals else ())}
        wanted &= self._rules.parts_of(self._facts.header.table)
        names: list[str] = signals_schema(wanted, self._rules.codec).names
        return names

    def check_footer(self) -> None:
        """Check size, footer, schema and row counts against the commit record, without reading any row.

        Raises:
            ShardCorruptError: They differ.
            CacheMismatchError: The shard was written in a newer format.
        """
        _ = self._footer

    @cached_property
    def _footer(self) -> _Footer:
        data = self._read_footer()
        try:
            metadata = pq.read_metadata(pa.BufferReader(MAGIC + data))
            stored = {key.decode(): value.decode() for key, value in (metadata.metadata or {}).items()}
            ranges = _RANGES.validate_json(stored.get(ROW_GROUPS_KEY, "[]"), strict=True)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._corrupt(f"the footer cannot be decoded: {error}") from error
        self._check_header(stored)
        footer = _Footer(metadata, ranges)
        self._check_row_groups(footer, end=self._facts.size - len(data))
        return footer

    def _read_footer(self) -> bytes:
        """Return the end of the file, once it is known to be the committed one."""
        try:
            found_size = self._files.size(self.path)
            if found_size != self._facts.size:
                raise self._corrupt(f"found {found_size} bytes, the commit record says {self._facts.size}")
            trailer = self._files.read(self.path, found_size - TRAILER_BYTES, TRAILER_BYTES)
            footer_size = int.from_bytes(trailer[:4], "little") + TRAILER_BYTES
            most = MOST_FOOTER_BYTES + self.layout.num_row_groups * MOST_FOOTER_BYTES_PER_ROW_GROUP
            if footer_size > most:
                raise self._corrupt(f"found a footer of {footer_size} bytes, expected at most {most}")
            start = max(len(MAGIC), found_size - footer_size)
            footer = self._files.read(self.path, start, found_size - start)
            head = self._files.read(self.path, 0, len(MAGIC))
        except OSError as error:
            raise self._corrupt(f"cannot be read: {error.strerror}") from error
        if head != MAGIC:
            raise self._corrupt(f"found {head!r} at the start of the file, expected {MAGIC!r}")
        found, expected = hashlib.sha256(footer).hexdigest(), self._facts.footer_sha256
        if found != expected:
            raise self._corrupt(f"the footer is not the committed one: found sha256 {found}, expected {expected}")
        return footer

    def _check_header(self, stored: dict[str, str]) -> None:
        version = stored.get(METADATA_PREFIX + "format_version", "none")
        if version.isdigit() and int(version) > FORMAT_VERSION:
            raise CacheMismatchError(
                f"{self.path}: format version {version}; this release reads up to version {FORMAT_VERSION}.\n"
                f"Install a release of tide-cache that reads format version {version}."
            )
        header = self._facts.header
        for name, expected in header.to_metadata(self._rules.codec_of(header.table)).items():
            if stored.get(name) != expected:
                raise self._corrupt(
                    f"belongs elsewhere: {name.removeprefix(METADATA_PREFIX)} is {stored.get(name)!r} in the file, "
                    f"{expected!r} in the cache's documents"
                )

    def _check_row_groups(self, footer: _Footer, end: int) -> None:
        table = self._facts.header.table
        expected = PAIRS_SCHEMA if table == "pairs" else signals_schema(self._rules.parts_of(table), self._rules.codec)
        try:
            found = footer.metadata.schema.to_arrow_schema()
        except pa.ArrowException as error:
            raise self._corrupt(f"the footer's columns cannot be decoded: {error}") from error
        if not found.equals(expected):
            raise self._corrupt(f"found columns {_named(found)}, expected {_named(expected)}")
        rows = tuple(footer.metadata.row_group(i).num_rows for i in range(footer.metadata.num_row_groups))
        if rows != self.layout.rows:
            raise self._corrupt(f"found row groups of {rows} rows, expected {self.layout.rows}")
        starts = [start for start, _, _ in footer.ranges]
        ends = [start + size for start, size, _ in footer.ranges]
        if len(starts) != len(rows) or [*starts, end] != [len(MAGIC), *ends]:
            raise self._corrupt("the row groups do not lie end to end between magic and footer")

    def _columns(self, row_group: int, names: list[str] | None = None) -> Columns:
        try:
            return columns_of(self._read(row_group, names))
        except UnicodeDecodeError as error:
            raise self._corrupt(f"{self._where(row_group)}, column sample_id: not UTF-8: {error}") from None

    def _read(self, row_group: int, names: list[str] | None) -> pa.Table:
        """Return columns of a row group, by default all, once its bytes are known to be the committed ones."""
        start, size, expected = self._footer.ranges[row_group]
        try:
            data = self._files.read(self.path, start, size)
        except OSError as error:
            raise self._corrupt(f"{self._where(row_group)} cannot be read: {error.strerror}") from error
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            column = damaged_column(self._footer.metadata, row_group, data, start)
            place = "a page header" if column is None else f"column {column}"
            raise self._corrupt(
                f"{self._where(row_group)}, {place}: the bytes are not the committed ones: found sha256 {found}, "
                f"the footer says {expected}"
            )
        try:
            check_pages(self._footer.metadata, row_group, data, start)
            return self._open(row_group, data).read_row_group(row_group, names, use_threads=False)
        except PageFault as fault:
            raise self._corrupt(f"{self._where(row_group)}, column {fault.column}: {fault.problem}") from fault
        except (OSError, pa.ArrowException) as error:
            raise self._corrupt(f"{self._where(row_group)} cannot be decoded: {error}") from error

    def _open(self, row_group: int, data: bytes) -> pq.ParquetFile:
        window = _Window(data, self._footer.ranges[row_group][0], self._facts.size)
        return pq.ParquetFile(window, metadata=self._footer.metadata, page_checksum_verification=True, pre_buffer=False)

    @contextmanager
    def _naming(self, row_group: int, sample_ids: list[str]) -> Iterator[None]:
        try:
            yield
        except ValueFault as fault:
            raise self._corrupt(
                f"{self._where(row_group)}, column {fault.column}, sample {sample_ids[fault.row]!r}: {fault.problem}"
            ) from fault

    def _where(self, row_group: int) -> str:
        view, group = divmod(row_group, self.layout.num_groups)
        samples = self.layout.samples_of(group)
        view_name = "" if self._facts.header.table == "pairs" else f"view {view}, "
        return f"row group {row_group} ({view_name}samples {samples.start} to {samples.stop - 1} of the shard)"

    def _corrupt(self, problem: str) -> ShardCorruptError:
        return ShardCorruptError(f"{self.path}: {problem}.\n{WAY_OUT}")


class _Window(io.RawIOBase):
    """A file with one range in memory; pyarrow addresses it by offsets into the whole file."""

    def __init__(self, data: bytes, start: int, file_size: int) -> None:
        self._data = data
        self._start = start
        self._file_size = file_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file_size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        at = self._position - self._start
        if at < 0 or size < 0 or at + size > len(self._data):
            raise OSError(f"{size} bytes at {self._position} lie outside the row group")
        self._position += size
        return self._data[at : at + size]


def _named(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
