"""From records to the bytes of a shard, in memory; the same records always give the same bytes.

Pages have checksums, but page headers do not. So the footer also holds the place and SHA-256 of every row group. With
the footer's own hash in the commit record, they cover every byte that a reader decodes.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from tide_cache.config.settings import LogprobDtype
from tide_cache.errors import TeacherOutputError
from tide_cache.records import SamplePair, ViewRecord
from tide_cache.shards.checks import ShardRules, check_pairs, check_signals
from tide_cache.shards.codecs import CODECS
from tide_cache.shards.columns import names_of, table_of
from tide_cache.shards.layout import ShardLayout
from tide_cache.shards.record_columns import pairs_to_columns, signals_to_columns
from tide_cache.shards.schema import (
    COMPRESSION_LEVEL,
    METADATA_PREFIX,
    PAIRS_SCHEMA,
    ShardHeader,
    TableName,
    byte_stream_split_leaves,
    former_compression_levels,
    signals_schema,
)
from tide_cache.shards.value_faults import ValueFault
from tide_cache.signal_table import parts_in

MAGIC = b"PAR1"
TRAILER_BYTES = 8
"""The end of a Parquet file: four bytes with the footer's length, then the magic."""

ROW_GROUPS_KEY = METADATA_PREFIX + "row_groups"
"""JSON list of [start, size, sha256] for each row group, in file order."""


@dataclass(frozen=True, eq=False)
class EncodedShard:
    """The bytes of a shard, ready to be published.

    Attributes:
        header: Identifies the shard.
        data: The Parquet file.
        num_samples: Number of its samples.
        row_groups: Number of rows of each row group.
        column_bytes: Compressed bytes of each column.
    """

    header: ShardHeader
    data: bytes
    num_samples: int
    row_groups: tuple[int, ...]
    column_bytes: dict[str, int]

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return len(self.data)

    @cached_property
    def sha256(self) -> str:
        """Hash of the whole file."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def footer_sha256(self) -> str:
        """Hash of the file's end: footer, its length, magic."""
        footer_size = int.from_bytes(self.data[-TRAILER_BYTES : -len(MAGIC)], "little")
        return hashlib.sha256(self.data[-TRAILER_BYTES - footer_size :]).hexdigest()


def encode_pairs(
    header: ShardHeader, indexes: Sequence[int], pairs: Sequence[SamplePair], rules: ShardRules
) -> EncodedShard:
    """Encode the pairs table of a shard.

    Args:
        header: Which shard this is; its table is `pairs`.
        indexes: Each sample's number in the corpus, increasing.
        pairs: The samples, in the same order; may be empty.
        rules: What the values are checked against.

    Raises:
        AssertionError: A sample breaks a law of the format, which is a bug in pairing.
    """
    assert header.table == "pairs", header
    layout = ShardLayout(len(pairs), num_views=1)

    tables = (
        _pairs_table([indexes[i] for i in members], [pairs[i] for i in members], rules)
        for members in map(layout.samples_of, range(layout.num_groups))
    )
    stored = header.to_metadata(rules.codec_of(header.table))
    return _encode(header, layout.num_samples, layout.rows, PAIRS_SCHEMA, stored, tables)


def encode_signals(
    header: ShardHeader,
    indexes: Sequence[int],
    records: Sequence[Sequence[ViewRecord]],
    rules: ShardRules,
    logprob_dtype: LogprobDtype,
) -> EncodedShard:
    """Encode one pass of a shard, after checking every value.

    Args:
        header: Which shard this is; its table is the pass.
        indexes: Each sample's number in the corpus, increasing.
        records: For each sample, in the order of `indexes`, the records of its views, with signals.
        rules: What the values are checked against.
        logprob_dtype: `float16` rounds the kept log-probs; see `signals_to_columns`.

    Raises:
        TeacherOutputError: The teacher said something impossible, such as NaN; names sample and view.
    """
    assert header.table != "pairs", header
    assert all(len(of_sample) == rules.num_views for of_sample in records), "a view is missing"
    layout = ShardLayout(len(indexes), rules.num_views)

    tables = (
        _signals_table(
            header.table, [indexes[i] for i in members], [records[i][view] for i in members], view, rules, logprob_dtype
        )
        for view in range(rules.num_views)
        for members in map(layout.samples_of, range(layout.num_groups))
    )
    schema = signals_schema(rules.parts_of(header.table), rules.codec)
    stored = header.to_metadata(rules.codec_of(header.table))
    return _encode(header, layout.num_samples, layout.rows, schema, stored, tables)


def _pairs_table(indexes: Sequence[int], pairs: Sequence[SamplePair], rules: ShardRules) -> pa.Table:
    columns = pairs_to_columns(indexes, pairs)
    try:
        check_pairs(columns, rules)
    except ValueFault as fault:
        raise AssertionError(f"sample {names_of(columns)[fault.row]!r}, {fault.column}: {fault.problem}") from fault
    return table_of(columns, PAIRS_SCHEMA)


def _signals_table(
    table: TableName,
    indexes: Sequence[int],
    records: Sequence[ViewRecord],
    view: int,
    rules: ShardRules,
    logprob_dtype: LogprobDtype,
) -> pa.Table:
    columns = signals_to_columns(indexes, records, logprob_dtype)
    assert parts_in(columns) == rules.parts_of(table), "signals differ from what the identity declares"
    try:
        check_signals(columns, view, [record.pair for record in records], rules, thorough=True)
    except ValueFault as fault:
        raise TeacherOutputError(
            f"sample {names_of(columns)[fault.row]!r}, view {view}, {fault.column}: {fault.problem}. "
            "Nothing of this shard was published.\n"
            "Check the teacher's weights and its dtype (float32 instead of bfloat16), then run the same command again."
        ) from fault
    return table_of(CODECS[rules.codec].pack(columns), signals_schema(rules.parts_of(table), rules.codec))


def _encode(
    header: ShardHeader,
    num_samples: int,
    row_groups: tuple[int, ...],
    schema: pa.Schema,
    metadata: Mapping[str, str],
    tables: Iterable[pa.Table],
    levels: Mapping[str, int] | int = COMPRESSION_LEVEL,
) -> EncodedShard:
    sink = io.BytesIO()
    ranges: list[tuple[int, int, str]] = []
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=levels,
        use_dictionary=False,
        use_byte_stream_split=byte_stream_split_leaves(schema),
        write_statistics=False,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        for table, rows in zip(tables, row_groups, strict=True):
            assert table.num_rows == rows, "a row group of another size"
            assert table.schema.equals(schema), "columns of another table"
            start = sink.tell()
            writer.write_table(table, row_group_size=rows)
            with sink.getbuffer() as written:
                digest = hashlib.sha256(written[start:]).hexdigest()
            ranges.append((start, sink.tell() - start, digest))
        writer.add_key_value_metadata({**metadata, ROW_GROUPS_KEY: json.dumps(ranges)})
    return EncodedShard(header, sink.getvalue(), num_samples, row_groups, _column_bytes(sink))


def at_former_levels(encoded: EncodedShard) -> EncodedShard:
    """Return a shard in the bytes of releases that packed it harder; its values are the same."""
    file = pq.ParquetFile(io.BytesIO(encoded.data))
    schema = file.schema_arrow.remove_metadata()
    codec = file.metadata.metadata[f"{METADATA_PREFIX}codec".encode()].decode()
    groups = (file.read_row_group(number, use_threads=False) for number in range(file.metadata.num_row_groups))
    tables = (table.replace_schema_metadata(None) for table in groups)
    what = encoded.header, encoded.num_samples, encoded.row_groups
    return _encode(*what, schema, encoded.header.to_metadata(codec), tables, former_compression_levels(schema))


def _column_bytes(file: io.BytesIO) -> dict[str, int]:
    metadata = pq.read_metadata(file)
    total: dict[str, int] = dict.fromkeys(metadata.schema.to_arrow_schema().names, 0)
    for row_group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(row_group).column(column)
            total[chunk.path_in_schema.partition(".")[0]] += chunk.total_compressed_size
    return total
