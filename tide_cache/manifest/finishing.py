"""The manifest of a finished build, made from its commit records in the form that its number of shards needs."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tide_cache.errors import ShardCorruptError
from tide_cache.locations import CachePath
from tide_cache.manifest.commit import CommitRecord, Statistics, most_record_bytes
from tide_cache.manifest.entries import add_statistics, sum_statistics
from tide_cache.manifest.parts import (
    PARTS_FOLDER,
    ManifestHead,
    Part,
    part_bytes,
    part_name,
    records_per_part,
)
from tide_cache.manifest.plan import PlanDocument
from tide_cache.manifest.whole import WholeManifest, unequal_samples
from tide_cache.shards import PASSES, Files, OtherBytesError, TableName, naming_refusals, publish, reads_at_once
from tide_cache.version import __version__

MOST_SHARDS_IN_ONE_FILE = 4096
"""About 13 MB with two tables, which take half a second to read and check."""
MOST_BYTES_IN_ONE_FILE = 60 << 20

RecordOf = Callable[[TableName, int], CommitRecord]
"""Reads the commit record of a shard; raises if it is missing."""


def make_document(
    root: CachePath, document: PlanDocument, tables: Collection[TableName], record_of: RecordOf, files: Files
) -> WholeManifest | ManifestHead:
    """Return the manifest; the parts of a large one are published here, the document by the caller.

    Args:
        root: Folder of the cache.
        document: What was built.
        tables: Tables to list; all of their shards are committed.
        record_of: Reads a commit record.
        files: The file system.

    Raises:
        ShardCorruptError: Two tables of a shard differ in their samples.
    """
    if is_in_parts(document):
        return _make_head(root, document, tables, record_of, files)
    shards = {table: _records(root, table, range(document.plan.num_shards), record_of) for table in tables}
    return WholeManifest(
        format_version=document.identity.format_version,
        tide_cache_version=__version__,
        identity=document.identity,
        plan=document.plan,
        complete=True,
        shards=shards,
        totals={table: sum_statistics(records) for table, records in shards.items()},
    )


def is_in_parts(document: PlanDocument) -> bool:
    """Return whether the records of a cache are in separate parts; the same for any number of passes."""
    plan = document.plan
    row_groups = plan.most_row_groups(document.identity.stored_views)
    most_bytes = plan.num_shards * most_record_bytes(row_groups) * (1 + len(PASSES))
    return plan.num_shards > MOST_SHARDS_IN_ONE_FILE or most_bytes > MOST_BYTES_IN_ONE_FILE


def _make_head(
    root: CachePath, document: PlanDocument, tables: Collection[TableName], record_of: RecordOf, files: Files
) -> ManifestHead:
    """Publish part after part, with the records of one part in memory."""
    num_shards, per_part = document.plan.num_shards, records_per_part(document.plan, document.identity)
    parts: dict[TableName, list[Part]] = {table: [] for table in tables}
    totals: dict[TableName, Statistics] = {table: {} for table in tables}
    shard_bytes: dict[TableName, int] = dict.fromkeys(tables, 0)
    num_samples: list[int] = []
    folder = root / PARTS_FOLDER
    with naming_refusals(folder):
        files.make_folder(folder)
        files.remove_leftovers(folder)
    for table in tables:
        for number, first in enumerate(range(0, num_shards, per_part)):
            records = _records(root, table, range(first, min(first + per_part, num_shards)), record_of)
            for record in records:
                add_statistics(totals[table], record.statistics)
                shard_bytes[table] += record.size
            if table == "pairs":
                num_samples += [record.num_samples for record in records]
            _require_samples(root, num_samples, records)
            parts[table].append(_publish_part(folder, table, number, records, files))
    return ManifestHead(
        tide_cache_version=__version__,
        identity=document.identity,
        plan=document.plan,
        complete=True,
        num_samples=tuple(num_samples),
        records_per_part=per_part,
        parts={table: tuple(of_table) for table, of_table in parts.items()},
        shard_bytes=shard_bytes,
        totals=totals,
    )


def _records(root: CachePath, table: TableName, shards: range, record_of: RecordOf) -> tuple[CommitRecord, ...]:
    if (num_threads := reads_at_once(root)) == 1:
        return tuple(record_of(table, shard) for shard in shards)
    with ThreadPoolExecutor(num_threads, "finish") as pool:
        return tuple(pool.map(partial(record_of, table), shards))


def _publish_part(
    folder: CachePath, table: TableName, number: int, records: Sequence[CommitRecord], files: Files
) -> Part:
    data = part_bytes(records)
    part = Part(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    path = folder / part_name(table, number, part.sha256)
    try:
        publish(path, data, files)
    except OtherBytesError:  # the name belongs to these bytes, so the existing file is damaged
        with naming_refusals(path):
            files.replace(path, data)
    return part


def _require_samples(root: CachePath, num_samples: Sequence[int], records: Sequence[CommitRecord]) -> None:
    for record in records:
        if record.num_samples != (expected := num_samples[record.shard]):
            problem = unequal_samples(record.shard, expected, record.table, record.num_samples)
            raise ShardCorruptError(f"{root}: {problem}; `tide-cache verify {root} --deep` names the bad one.")
