"""The steps of a build, from plan to manifest; each is safe to repeat, by any number of workers at once."""

import contextlib
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from tide_cache import __version__
from tide_cache.errors import CacheMismatchError, PairingError, ShardCorruptError, fault_list
from tide_cache.manifest.commit import MAX_RECORD_BYTES, CommitRecord, Statistics
from tide_cache.manifest.documents import read_document
from tide_cache.manifest.identity import CacheIdentity, require_same_identity
from tide_cache.manifest.manifest import (
    Manifest,
    incomplete,
    read_plan,
    record_path,
    shard_path,
    sum_statistics,
    table_folder,
    tables_of,
)
from tide_cache.manifest.plan import PlanDocument, ShardPlan
from tide_cache.shards import (
    LOCAL_FILES,
    EncodedShard,
    LocalFiles,
    PassName,
    ShardHeader,
    TableName,
    file_sha256,
    publish,
    publish_json,
    remove_leftovers,
    replace_json,
)


class CacheFolder:
    """A cache that is being built."""

    def __init__(self, root: Path, files: LocalFiles = LOCAL_FILES) -> None:
        self.root = root
        self._files = files

    def begin(self, identity: CacheIdentity, plan: ShardPlan, passes: Collection[PassName]) -> None:
        """Write `plan.json`, or check that the build it describes is this one; then clear what dead writers left.

        Args:
            identity: What the shards will hold.
            plan: How they are cut.
            passes: What of it is to be built now; other passes that are there are left alone.

        Raises:
            CacheMismatchError: The folder holds another build (lists every differing field), or something else.
        """
        declared = PlanDocument(identity=identity, plan=plan)
        path = self.root / "plan.json"
        if "plan.json" not in self._files.list_folder(self.root):
            self._require_unused()
            self._files.make_folder(self.root)
            with contextlib.suppress(ShardCorruptError):  # another worker was faster; its plan is compared below
                publish_json(path, declared.model_dump(mode="json"), self._files)
        require_same_identity(path, self.plan_document, declared)
        remove_leftovers(self.root, self._files)
        for table in tables_of(passes):
            self._files.make_folder(table_folder(self.root, table))
            remove_leftovers(table_folder(self.root, table), self._files)

    def require_fits(self, identity: CacheIdentity, plan: ShardPlan) -> None:
        """Check, without writing, that `begin` would take this build; raises what it would raise."""
        path = self.root / "plan.json"
        if "plan.json" in self._files.list_folder(self.root):
            require_same_identity(path, self.plan_document, PlanDocument(identity=identity, plan=plan))
        else:
            self._require_unused()

    @cached_property
    def plan_document(self) -> PlanDocument:
        """What is being built."""
        return read_plan(self.root, self._files)

    def shard_path(self, table: TableName, shard: int) -> Path:
        """File of a shard."""
        return shard_path(self.root, table, shard)

    def header(self, table: TableName, shard: int) -> ShardHeader:
        """What a shard of this build says of itself; `encode_pairs` and `encode_signals` take it."""
        return ShardHeader(self.plan_document.cache_id, self.plan_document.plan_hash, table, shard)

    def is_committed(self, table: TableName, shard: int) -> bool:
        """Whether a shard needs no more work: its record is there, and its file has the recorded hash.

        Raises:
            ShardCorruptError: There is a record, but not the file it describes.
        """
        record = self._record(table, shard)
        if record is None:
            return False
        path = self.shard_path(table, shard)
        try:
            found: object = self._files.size(path)
            if found == record.size:
                found = file_sha256(path, self._files)
        except FileNotFoundError:
            found = "no file"
        if found != record.sha256:
            raise ShardCorruptError(
                f"{path}: found {found}, the commit record says {record.size} bytes with sha256 {record.sha256}.\n"
                f"Delete it and {record_path(self.root, table, shard).name} beside it, then run the same "
                "`tide-cache build-teacher-shards` command again: only what is missing is computed."
            )
        return True

    def commit(self, encoded: EncodedShard, statistics: Statistics) -> CommitRecord:
        """Publish a shard and then its commit record; committing the same bytes again changes nothing.

        Args:
            encoded: The shard; its header is one that `header` gave.
            statistics: Free counts for reports; the bytes of each column are added as `column_bytes.NAME`.

        Raises:
            ShardCorruptError: The shard is already there with other bytes.
            TideCacheError: The file system refused; nothing was published.
        """
        table, shard = encoded.header.table, encoded.header.shard
        assert encoded.header == self.header(table, shard), "a shard of another build"
        columns = {f"column_bytes.{name}": size for name, size in encoded.column_bytes.items()}
        record = CommitRecord.of(encoded, {**statistics, **columns})
        publish(self.shard_path(table, shard), encoded.data, self._files)
        publish_json(record_path(self.root, table, shard), record.model_dump(mode="json"), self._files)
        return record

    def finish(self, passes: Collection[PassName]) -> Manifest:
        """Write the manifest, once every planned shard is committed; one that lacks a pass is replaced by another.

        Args:
            passes: What was built; passes that the manifest already lists stay in it.

        Raises:
            CacheIncompleteError: Shards are missing; says how many are there.
            PairingError: No row of the corpus became a sample; lists the reasons.
            ShardCorruptError: A manifest is already there and describes other shards.
        """
        path = self.root / "manifest.json"
        is_there = path.name in self._files.list_folder(self.root)
        found = Manifest.load(self.root, self._files) if is_there else None
        manifest = self._manifest(tables_of([*passes, *(found.passes if found else ())]))
        if not any(record.num_samples for record in manifest.shards["pairs"]):
            reasons = [f"{name.partition('.')[2]}: {count}" for name, count in manifest.dropped.items()]
            title = f"{self.root}: no row of the corpus became a sample:"
            raise PairingError(
                fault_list(title, reasons, "Raise max_length, or mend the corpus; give a new build.out.")
            )
        if found is None:
            publish_json(path, manifest.model_dump(mode="json"), self._files)
            return manifest
        self._require_same_shards(found, manifest)
        if found.tables == manifest.tables:
            return found
        replace_json(path, manifest.model_dump(mode="json"), self._files)
        return manifest

    def _manifest(self, tables: Collection[TableName]) -> Manifest:
        document = self.plan_document
        shards: dict[TableName, tuple[CommitRecord, ...]] = {}
        for table in tables:
            records = [self._record(table, shard) for shard in range(document.plan.num_shards)]
            shards[table] = tuple(record for record in records if record is not None)
            if len(shards[table]) < len(records):
                raise incomplete(self.root, document, self._files)
        return Manifest(
            tide_cache_version=__version__,
            identity=document.identity,
            plan=document.plan,
            complete=True,
            shards=shards,
            totals={table: sum_statistics(records) for table, records in shards.items()},
        )

    def _record(self, table: TableName, shard: int) -> CommitRecord | None:
        path = record_path(self.root, table, shard)
        try:
            record = read_document(path, CommitRecord, MAX_RECORD_BYTES, self._files)
        except FileNotFoundError:
            return None
        if record.header != self.header(table, shard):
            raise ShardCorruptError(
                f"{path}: found the record of {record.header}, expected {self.header(table, shard)}.\n"
                "Delete it and the .parquet beside it, then run the same `tide-cache build-teacher-shards` again."
            )
        return record

    def _require_same_shards(self, found: Manifest, manifest: Manifest) -> None:
        for table, records in found.shards.items():
            for one, other in zip(records, manifest.shards[table], strict=True):
                if one != other:
                    raise ShardCorruptError(
                        f"{self.root / 'manifest.json'}: its entry of {table} shard {one.shard} is not the commit "
                        f"record: found sha256 {one.sha256}, the record says {other.sha256}.\n"
                        "The shard was computed again with another result. Delete manifest.json and run the same "
                        "`tide-cache build-teacher-shards` again to accept it."
                    )

    def _require_unused(self) -> None:
        names = [name for name in self._files.list_folder(self.root) if not name.endswith(".tmp")]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise CacheMismatchError(
                f"{self.root}: found {shown}, but no plan.json: this folder is not a cache.\n"
                "Give build.out an empty or new folder."
            )
