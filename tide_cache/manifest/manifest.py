"""`manifest.json`: the proof that a cache is whole, and the one document a reader needs to find its way.

It repeats every commit record, so a reader lists no folder and opens no other document. Tables that it does not list
may lie beside it, whole or in part: a pass that is being added.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field

from tide_cache.config.base import Frozen
from tide_cache.errors import CacheIncompleteError, CacheMismatchError, RunFileError, ShardCorruptError
from tide_cache.locations import CachePath, RemotePath
from tide_cache.manifest.commit import CommitRecord, Statistics
from tide_cache.manifest.documents import read_document
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.manifest.plan import MAX_SHARDS, PlanDocument, ShardPlan
from tide_cache.places import no_cache
from tide_cache.shards import FORMAT_VERSION, PASSES, Files, PassName, ShardLayout, ShardReader, TableName, files_of

MAX_PLAN_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 64 << 20

_SIGNALS_FOLDER = "signals"
AnyPath = TypeVar("AnyPath", Path, RemotePath, CachePath)
_RECORD_NAME = re.compile(r"shard-\d{6}\.json")


def tables_of(passes: Collection[PassName]) -> tuple[TableName, ...]:
    """Tables of a cache with these passes, in the order in which they are listed."""
    return ("pairs", *(name for name in PASSES if name in passes))


def table_folder(root: AnyPath, table: TableName) -> AnyPath:
    """Folder of a table's shards."""
    return root / table if table == "pairs" else root / _SIGNALS_FOLDER / table


def shard_path(root: AnyPath, table: TableName, shard: int) -> AnyPath:
    """File of a shard."""
    assert 0 <= shard < MAX_SHARDS, shard
    return table_folder(root, table) / f"shard-{shard:06d}.parquet"


def record_path(root: AnyPath, table: TableName, shard: int) -> AnyPath:
    """Commit record of a shard."""
    return shard_path(root, table, shard).with_suffix(".json")


def read_plan(root: CachePath, files: Files | None = None) -> PlanDocument:
    """Read `plan.json`.

    Raises:
        CacheIncompleteError: The folder is no cache.
    """
    try:
        return read_document(root / "plan.json", PlanDocument, MAX_PLAN_BYTES, files or files_of(root))
    except (FileNotFoundError, NotADirectoryError):
        raise no_cache(root) from None


class Manifest(Frozen):
    """A complete cache.

    Attributes:
        tide_cache_version: The release that finished the build; for information.
        shards: Commit records of each table, by shard number.
        totals: Statistics of each table, summed over its shards.
    """

    format_version: Annotated[int, Field(ge=1)] = FORMAT_VERSION
    tide_cache_version: str
    identity: CacheIdentity
    plan: ShardPlan
    complete: Literal[True]
    shards: dict[TableName, tuple[CommitRecord, ...]]
    totals: dict[TableName, Statistics]

    @classmethod
    def load(cls, root: CachePath, files: Files | None = None) -> Self:
        """Read the manifest of a complete cache.

        Args:
            root: Folder of the cache.
            files: The file system.

        Raises:
            CacheIncompleteError: The build has not finished, or the folder is no cache.
            CacheMismatchError: It was written in a newer format, or its folders are links.
            ShardCorruptError: It contradicts itself, or is no manifest.
        """
        path, files = root / "manifest.json", files or files_of(root)
        try:
            manifest = read_document(path, cls, MAX_MANIFEST_BYTES, files)
        except (FileNotFoundError, NotADirectoryError):
            raise incomplete(root, read_plan(root, files), files) from None
        if problem := manifest.contradiction():
            raise ShardCorruptError(
                f"{path}: {problem}.\nDelete it and run the same `tide-cache build-teacher-shards` again: "
                "it is written anew from the commit records."
            )
        for folder in {root / _SIGNALS_FOLDER, *(table_folder(root, table) for table in manifest.tables)}:
            if isinstance(folder, Path) and folder.is_symlink():
                raise CacheMismatchError(
                    f"{folder}: is a symbolic link; a cache ends at its own folder.\n"
                    "Put the folder itself here, or keep the whole cache there and link to that."
                )
        return manifest

    def contradiction(self) -> str | None:
        """What the manifest says against itself, if anything."""
        if self.format_version != self.identity.format_version:
            return f"found format_version {self.format_version}, and {self.identity.format_version} in the identity"
        cache_id = self.identity.cache_id
        plan_hash = self.plan.plan_hash(cache_id)
        if "pairs" not in self.shards or not self.passes:
            return f"found tables {sorted(self.shards)}, expected pairs and one of {', '.join(PASSES)}"
        if "topk" in self.identity.signals.kinds and 1.0 not in self.identity.signals.temperatures:
            return f"found temperatures {list(self.identity.signals.temperatures)}, 1.0 is missing"
        for table, records in self.shards.items():
            if len(records) != self.plan.num_shards:
                return f"{table}: found {len(records)} shards, the plan says {self.plan.num_shards}"
            for shard, record in enumerate(records):
                if (record.cache_id, record.plan_hash, record.table, record.shard) != (
                    cache_id,
                    plan_hash,
                    table,
                    shard,
                ):
                    return f"the entry of {table} shard {shard} belongs to another cache, plan or shard"
            if self.totals.get(table) != sum_statistics(records):
                return f"{table}: totals are not the sums of the shards' statistics"
        for name in self.passes:
            for one, other in zip(self.shards["pairs"], self.shards[name], strict=True):
                if one.num_samples != other.num_samples:
                    return (
                        f"shard {one.shard}: found {one.num_samples} pairs and {name} signals of "
                        f"{other.num_samples} samples"
                    )
        for record in (record for records in self.shards.values() for record in records):
            if problem := self._impossible_counts(record):
                return f"the entry of {record.table} shard {record.shard}: {problem}"
        return None

    def _impossible_counts(self, record: CommitRecord) -> str | None:
        """Counts that the plan does not allow: readers take their sizes from them."""
        most = self.plan.samples_per_shard
        if record.num_samples > most:
            return f"found {record.num_samples} samples, the plan allows {most}"
        layout = ShardLayout(record.num_samples, 1 if record.table == "pairs" else self.identity.stored_views)
        # The number comes first: row groups that are listed are few, those that are declared may be billions.
        if len(record.row_groups) != layout.num_row_groups or record.row_groups != layout.rows:
            return f"found {len(record.row_groups)} row groups, not those of {layout.num_samples} samples"
        return None

    @property
    def dropped(self) -> Statistics:
        """Statistics `dropped.REASON` of the pairs: rows of the corpus that left no sample."""
        return {name: count for name, count in self.totals["pairs"].items() if name.startswith("dropped.")}

    @property
    def passes(self) -> tuple[PassName, ...]:
        """The passes that the cache holds; there is at least one, and `plain` comes first."""
        return tuple(name for name in PASSES if name in self.shards)

    def require_pass(self, root: CachePath, wanted: PassName | None) -> PassName:
        """Return the pass to read: the wanted one, or the first.

        Args:
            root: Folder of the cache, for the message.
            wanted: Its name, or None.

        Raises:
            RunFileError: The cache has no such pass.
        """
        if wanted is not None and wanted not in self.passes:
            raise RunFileError(f"{root}: found no pass {wanted!r}; expected one of {', '.join(self.passes)}")
        return wanted or self.passes[0]

    @property
    def tables(self) -> tuple[TableName, ...]:
        """The pairs, and every pass."""
        return tables_of(self.passes)

    def reader(self, root: CachePath, table: TableName, shard: int, files: Files | None = None) -> ShardReader:
        """A reader of one shard; nothing is opened yet.

        Args:
            root: Folder of the cache.
            table: `pairs`, or a pass.
            shard: Number of the shard.
            files: The file system.
        """
        path, record = shard_path(root, table, shard), self.shards[table][shard]
        return ShardReader(path, record, self.identity.shard_rules, files or files_of(root))


def sum_statistics(records: tuple[CommitRecord, ...]) -> Statistics:
    """Sum each statistic over shards; a shard without it counts as zero."""
    names = sorted({name for record in records for name in record.statistics})
    return {name: sum(record.statistics.get(name, 0) for record in records) for name in names}


def incomplete(root: CachePath, document: PlanDocument, files: Files) -> CacheIncompleteError:
    """The error that says how far a build has come."""
    begun = tables_of([name for name in PASSES if name in files.list_folder(root / _SIGNALS_FOLDER)])
    committed = {
        table: sum(bool(_RECORD_NAME.fullmatch(name)) for name in files.list_folder(table_folder(root, table)))
        for table in begun
    }
    counts = ", ".join(f"{table} {count} of {document.plan.num_shards}" for table, count in committed.items())
    return CacheIncompleteError(
        f"{root}: the build has not finished: shards committed: {counts}.\n"
        "Run the same `tide-cache build-teacher-shards` command again: it continues where it stopped."
    )
