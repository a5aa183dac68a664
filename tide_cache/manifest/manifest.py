"""`manifest.json`: the proof that a cache is whole, and all that a reader needs to find its way.

It repeats every commit record, in itself (`whole.py`) or in hashed parts beside it (`parts.py`), so a reader lists no
folder and opens no commit record. Tables that it does not list may lie next to it, whole or in part: a pass that is
being added.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from tide_cache.errors import CacheIncompleteError, CacheMismatchError, RunFileError, ShardCorruptError
from tide_cache.locations import CachePath, RemotePath
from tide_cache.manifest.commit import CommitRecord, Statistics
from tide_cache.manifest.documents import read_document
from tide_cache.manifest.entries import EntryRules
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.manifest.parts import PARTS_FOLDER, ManifestHead, RecordParts
from tide_cache.manifest.plan import MAX_SHARDS, PlanDocument, ShardPlan
from tide_cache.manifest.whole import WholeManifest
from tide_cache.places import no_cache
from tide_cache.shards import PARTS_VERSION, PASSES, Files, PassName, ShardReader, TableName, files_of

MAX_PLAN_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 64 << 20

_SIGNALS_FOLDER = "signals"
AnyPath = TypeVar("AnyPath", Path, RemotePath, CachePath)
RECORD_NAME = re.compile(r"shard-(\d{6})\.json")


def tables_of(passes: Collection[PassName]) -> tuple[TableName, ...]:
    """Return the tables of a cache with these passes, in the order in which they are listed."""
    return ("pairs", *(name for name in PASSES if name in passes))


def table_folder(root: AnyPath, table: TableName) -> AnyPath:
    """Return the folder of a table's shards."""
    return root / table if table == "pairs" else root / _SIGNALS_FOLDER / table


def shard_path(root: AnyPath, table: TableName, shard: int) -> AnyPath:
    """Return the file of a shard."""
    assert 0 <= shard < MAX_SHARDS, shard
    return table_folder(root, table) / f"shard-{shard:06d}.parquet"


def record_path(root: AnyPath, table: TableName, shard: int) -> AnyPath:
    """Return the path of the commit record of a shard."""
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


@dataclass(frozen=True)
class Manifest:
    """A complete cache, whichever form its manifest has.

    Attributes:
        tide_cache_version: The release that finished the build; for information.
        identity: What the shards hold.
        plan: How they are cut.
        num_samples: Samples of each shard.
        shards: Commit records of each table, by shard number; those of many shards are read when they are asked for.
        shard_bytes: Bytes of all shards of each table.
        totals: Statistics of each table, summed over its shards.
    """

    tide_cache_version: str
    identity: CacheIdentity
    plan: ShardPlan
    num_samples: tuple[int, ...]
    shards: Mapping[TableName, Sequence[CommitRecord]]
    shard_bytes: Mapping[TableName, int]
    totals: dict[TableName, Statistics]

    @classmethod
    def load(cls, root: CachePath, files: Files | None = None) -> Self:
        """Read the manifest of a complete cache; everything that reads one comes through here.

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
            document = read_document(path, _model_of, MAX_MANIFEST_BYTES, files)
        except (FileNotFoundError, NotADirectoryError):
            raise incomplete(root, read_plan(root, files), files) from None
        if problem := document.contradiction():
            raise ShardCorruptError(
                f"{path}: {problem}.\nDelete it and run the same `tide-cache build-teacher-shards` again: "
                "it is written anew from the commit records."
            )
        manifest = cls.of(document, root, files)
        folders = {root / _SIGNALS_FOLDER, *(table_folder(root, table) for table in manifest.tables)}
        for folder in folders | ({root / PARTS_FOLDER} if isinstance(document, ManifestHead) else set()):
            if isinstance(folder, Path) and folder.is_symlink():
                raise CacheMismatchError(
                    f"{folder}: is a symbolic link; a cache ends at its own folder.\n"
                    "Put the folder itself here, or keep the whole cache there and link to that."
                )
        return manifest

    @classmethod
    def of(cls, document: WholeManifest | ManifestHead, root: CachePath, files: Files) -> Self:
        """Make it of a document that does not contradict itself.

        Args:
            document: What `manifest.json` holds.
            root: Folder of the cache.
            files: The file system.
        """
        shards: Mapping[TableName, Sequence[CommitRecord]]
        if isinstance(document, ManifestHead):
            num_samples, shard_bytes = document.num_samples, document.shard_bytes
            rules = EntryRules.of(document.identity, document.plan)
            shards = {t: RecordParts(root / PARTS_FOLDER, document, t, rules, files) for t in document.parts}
        else:
            shards = document.shards
            num_samples = tuple(record.num_samples for record in shards["pairs"])
            shard_bytes = {table: sum(record.size for record in records) for table, records in shards.items()}
        version, identity, plan, totals = (
            document.tide_cache_version,
            document.identity,
            document.plan,
            document.totals,
        )
        return cls(version, identity, plan, num_samples, shards, shard_bytes, totals)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(self.shard_bytes.values())

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
        """Return a reader of one shard; nothing is opened yet.

        Args:
            root: Folder of the cache.
            table: `pairs`, or a pass.
            shard: Number of the shard.
            files: The file system.
        """
        records = self.shards[table]
        facts = records.facts(shard) if isinstance(records, RecordParts) else records[shard]
        return ShardReader(shard_path(root, table, shard), facts, self.identity.shard_rules, files or files_of(root))


def _model_of(version: int) -> type[WholeManifest] | type[ManifestHead]:
    """Return the model of a `manifest.json` of this format version."""
    return ManifestHead if version == PARTS_VERSION else WholeManifest


def incomplete(root: CachePath, document: PlanDocument, files: Files) -> CacheIncompleteError:
    """Return the error that says how far a build has come."""
    begun = tables_of([name for name in PASSES if name in files.list_folder(root / _SIGNALS_FOLDER)])
    committed = {
        table: sum(bool(RECORD_NAME.fullmatch(name)) for name in files.list_folder(table_folder(root, table)))
        for table in begun
    }
    counts = ", ".join(f"{table} {count} of {document.plan.num_shards}" for table, count in committed.items())
    return CacheIncompleteError(
        f"{root}: the build has not finished: shards committed: {counts}.\n"
        "Run the same `tide-cache build-teacher-shards` command again: it continues where it stopped."
    )
