"""The steps of a build, from plan to manifest; each is safe to repeat, by any number of workers at once."""

import contextlib
import hashlib
from collections.abc import Collection
from functools import cached_property

from tide_cache.errors import CacheMismatchError, PairingError, ShardCorruptError, fault_list
from tide_cache.locations import CachePath
from tide_cache.manifest.commit import MAX_RECORD_BYTES, CommitRecord, Statistics
from tide_cache.manifest.documents import read_document
from tide_cache.manifest.finishing import make_document
from tide_cache.manifest.identity import CacheIdentity, require_same_identity
from tide_cache.manifest.manifest import (
    RECORD_NAME,
    Manifest,
    incomplete,
    read_plan,
    record_path,
    shard_path,
    table_folder,
    tables_of,
)
from tide_cache.manifest.parts import PARTS_FOLDER, ManifestHead
from tide_cache.manifest.plan import PlanDocument, ShardPlan
from tide_cache.shards import (
    EncodedShard,
    Files,
    OtherBytesError,
    PassName,
    ShardHeader,
    ShardReader,
    TableName,
    file_sha256,
    files_of,
    is_temporary,
    naming_refusals,
    publish,
    publish_json,
    replace_json,
)

QUARANTINE = "quarantine"
"""Folder of shards that two workers computed differently; nothing reads it."""


class CacheFolder:
    """A cache that is being built."""

    def __init__(self, root: CachePath, files: Files | None = None) -> None:
        self.root = root
        self._files = files or files_of(root)

    def begin(self, identity: CacheIdentity, plan: ShardPlan, passes: Collection[PassName]) -> None:
        """Write `plan.json`, or check that the build it describes is this one; then clear what dead writers left.

        Args:
            identity: What the shards will hold.
            plan: How they are cut.
            passes: The passes to build now; other existing passes are not touched.

        Raises:
            CacheMismatchError: The folder holds another build (lists every differing field), or something else.
        """
        declared = PlanDocument.of(identity, plan)
        path = self.root / "plan.json"
        if not self._is_begun():
            self._make_folder(self.root)
            with contextlib.suppress(OtherBytesError):  # another worker was faster; its plan is compared below
                publish_json(path, declared.model_dump(mode="json"), self._files)
        require_same_identity(path, self.plan_document, declared)
        self._files.remove_leftovers(self.root)
        for folder in self._table_folders(tables_of(passes)):
            self._make_folder(folder)
            self._files.remove_leftovers(folder)

    def require_exclusive(self) -> None:
        """Check, on `plan.json`, that this place refuses a taken name; called once, before anything is computed.

        Raises:
            RunFileError: Two writers could mix here.
        """
        path = self.root / "plan.json"
        with naming_refusals(path):
            self._files.prove_exclusive(path)

    def require_fits(self, identity: CacheIdentity, plan: ShardPlan) -> None:
        """Check, without writing, that `begin` would take this build; raises what it would raise."""
        path = self.root / "plan.json"
        if self._is_begun():
            require_same_identity(path, self.plan_document, PlanDocument.of(identity, plan))

    @cached_property
    def plan_document(self) -> PlanDocument:
        """What is being built."""
        return read_plan(self.root, self._files)

    def shard_path(self, table: TableName, shard: int) -> CachePath:
        """Return the file of a shard."""
        return shard_path(self.root, table, shard)

    def header(self, table: TableName, shard: int) -> ShardHeader:
        """Return a shard's header, as `encode_pairs` and `encode_signals` take it."""
        return ShardHeader(*self._ids, table, shard)

    @cached_property
    def _ids(self) -> tuple[str, str]:
        """Hashes of identity and plan; to compute them takes a quarter of the time of reading a commit record."""
        return self.plan_document.cache_id, self.plan_document.plan_hash

    def listed(self, table: TableName) -> set[int]:
        """Numbers of the shards of a table whose records and files are there, by their names alone."""
        names = set(self._files.list_folder(table_folder(self.root, table)))
        matches = (RECORD_NAME.fullmatch(name) for name in names)
        return {int(match[1]) for match in matches if match and match[0].replace(".json", ".parquet") in names}

    def is_committed(self, table: TableName, shard: int, is_hashed: bool = False) -> bool:
        """Return whether a shard needs no more work: its record exists, and its file has the recorded size.

        A record is written after its file is durable, so it is trusted; readers check the hashes of what they read.

        Args:
            table: `pairs`, or a pass.
            shard: Number of the shard.
            is_hashed: Also compare the hash of the file's bytes.

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
                found = file_sha256(path, self._files) if is_hashed else record.sha256
        except FileNotFoundError:
            found = "no file"
        except OSError as error:
            found = f"what {error.strerror}"
        if found != record.sha256:
            raise ShardCorruptError(
                f"{path}: found {found}, the commit record says {record.size} bytes with sha256 {record.sha256}.\n"
                f"Delete it and {record_path(self.root, table, shard).name} beside it, then run the same "
                "`tide-cache build-teacher-shards` command again: only what is missing is computed."
            )
        return True

    def reader(self, table: TableName, shard: int) -> ShardReader | None:
        """Return a reader of a shard; None where it is not committed."""
        record = self._record(table, shard)
        rules = self.plan_document.identity.shard_rules
        return None if record is None else ShardReader(self.shard_path(table, shard), record, rules, self._files)

    def statistics(self, table: TableName, shard: int) -> Statistics:
        """Return the statistics of a committed shard."""
        record = self._record(table, shard)
        assert record is not None, "a shard that is not committed"
        return record.statistics

    def commit(self, encoded: EncodedShard, statistics: Statistics) -> CommitRecord:
        """Publish a shard and then its commit record; committing the same bytes again changes nothing.

        Args:
            encoded: The shard; its header is one that `header` gave.
            statistics: Free counts for reports; the bytes of each column are added as `column_bytes.NAME`.

        Raises:
            ShardCorruptError: Another worker published other bytes for this shard. Both are kept in `quarantine/`, and
                the shard counts as missing.
            TideCacheError: The file system refused; nothing was published.
        """
        table, shard = encoded.header.table, encoded.header.shard
        assert encoded.header == self.header(table, shard), "a shard of another build"
        columns = {f"column_bytes.{name}": size for name, size in encoded.column_bytes.items()}
        record = CommitRecord.of(encoded, {**statistics, **columns})
        try:
            publish(self.shard_path(table, shard), encoded.data, self._files)
        except OtherBytesError:
            self._quarantine(encoded)
        publish_json(record_path(self.root, table, shard), record.model_dump(mode="json"), self._files)
        return record

    def finish(self, passes: Collection[PassName]) -> Manifest:
        """Write the manifest, once every planned shard is committed; a manifest that lacks a pass is replaced.

        Args:
            passes: What was built; passes that the manifest already lists stay in it.

        Raises:
            CacheIncompleteError: Shards are missing; says how many exist.
            PairingError: No row of the corpus became a sample; lists the reasons.
            ShardCorruptError: A manifest exists and describes other shards.
        """
        path = self.root / "manifest.json"
        is_there = path.name in self._files.list_folder(self.root)
        found = Manifest.load(self.root, self._files) if is_there else None
        tables = tables_of([*passes, *(found.passes if found else ())])
        document = make_document(self.root, self.plan_document, tables, self._existing_record, self._files)
        manifest = Manifest.of(document, self.root, self._files)
        if not any(manifest.num_samples):
            reasons = [f"{name.partition('.')[2]}: {count}" for name, count in manifest.dropped.items()]
            title = f"{self.root}: no row of the corpus became a sample:"
            raise PairingError(fault_list(title, reasons, "Raise max_length, or fix the corpus; give a new build.out."))
        self._sync_folders(tables, isinstance(document, ManifestHead))
        if found is None:
            try:
                publish_json(path, document.model_dump(mode="json"), self._files)
            except OtherBytesError:  # another worker was faster, and its manifest may list another pass
                return self.finish(passes)
            return manifest
        self._require_same_shards(found, manifest)
        if found.tables == manifest.tables:
            return found
        replace_json(path, document.model_dump(mode="json"), self._files)
        return manifest

    def _existing_record(self, table: TableName, shard: int) -> CommitRecord:
        record = self._record(table, shard)
        if record is None:
            raise incomplete(self.root, self.plan_document, self._files)
        return record

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
            if records == manifest.shards[table]:
                continue
            for one, other in zip(records, manifest.shards[table], strict=True):
                if one != other:
                    raise ShardCorruptError(
                        f"{self.root / 'manifest.json'}: its entry of {table} shard {one.shard} is not the commit "
                        f"record: found sha256 {one.sha256}, the record says {other.sha256}.\n"
                        "The shard was computed again with another result. Delete manifest.json and run the same "
                        "`tide-cache build-teacher-shards` again to accept it."
                    )

    def _quarantine(self, encoded: EncodedShard) -> None:
        """Set two byte strings of one shard aside; nobody can say which is right, so neither counts."""
        table, shard = encoded.header.table, encoded.header.shard
        path = self.shard_path(table, shard)
        with naming_refusals(path):
            published = self._files.read(path, 0, self._files.size(path))
            self._make_folder(self.root / QUARANTINE)
            kept = [
                self.root / QUARANTINE / f"{table}-shard-{shard:06d}-{hashlib.sha256(data).hexdigest()[:8]}.parquet"
                for data in (published, encoded.data)
            ]
            for name, data in zip(kept, (published, encoded.data), strict=True):
                publish(name, data, self._files)
            # in this order, a crash in between leaves a shard without a record, never a record without its shard
            for doomed in (self.root / "manifest.json", record_path(self.root, table, shard), path):
                self._files.remove(doomed)
                self._files.sync_folder(doomed.parent)
        raise ShardCorruptError(
            f"{path}: two workers computed different bytes for this shard; both are kept, and neither counts:\n"
            f"  {kept[0]}: was published\n  {kept[1]}: computed by this run\n"
            "A shard is a pure function of the cache's identity, so the workers differ in hardware, in a library or in "
            "health. Use workers of one kind, and run the same command again: the shard is computed anew."
        )

    def _table_folders(self, tables: Collection[TableName]) -> list[CachePath]:
        return [table_folder(self.root, table) for table in tables]

    def _sync_folders(self, tables: Collection[TableName], has_parts: bool) -> None:
        """Make every entry of the cache durable: another worker may have died between linking and syncing."""
        folders = [*self._table_folders(tables), *([self.root / PARTS_FOLDER] if has_parts else [])]
        for folder in dict.fromkeys([*folders, *(folder.parent for folder in folders), self.root]):
            with naming_refusals(folder):
                self._files.sync_folder(folder)
        with naming_refusals(self.root.parent), contextlib.suppress(PermissionError):  # it may belong to others
            self._files.sync_folder(self.root.parent)

    def _make_folder(self, folder: CachePath) -> None:
        with naming_refusals(folder):
            self._files.make_folder(folder)

    def _is_begun(self) -> bool:
        """Return whether there is a plan; raise an error for a folder with other things.

        The plan comes before everything else, so what is listed before it is missed is no part of a cache.
        """
        names = [name for name in self._files.list_folder(self.root) if not is_temporary(name)]
        try:
            self._files.size(self.root / "plan.json")
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            return True  # something else is there; whoever reads it says what
        else:
            return True
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise CacheMismatchError(
                f"{self.root}: found {shown}, but no plan.json: this folder is not a cache.\n"
                "Give build.out an empty or new folder."
            )
        return False
