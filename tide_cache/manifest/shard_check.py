"""What is wrong with one shard and the commit record beside it; one process or many ask this, shard by shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tide_cache.config.base import Frozen
from tide_cache.errors import CacheMismatchError, ShardCorruptError
from tide_cache.locations import CachePath
from tide_cache.manifest.commit import MAX_RECORD_BYTES, CommitRecord
from tide_cache.manifest.documents import read_document
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.manifest.manifest import record_path, shard_path
from tide_cache.shards import Files, ShardReader, file_sha256


class Problem(Frozen):
    """One thing that is wrong.

    Attributes:
        shard: Path inside the cache of the shard (or document) that it concerns.
        file: Path inside the cache of the file that is at fault: the shard, or the commit record beside it.
        problem: What was found.
    """

    shard: str
    file: str
    problem: str


@dataclass(frozen=True)
class ShardCheck:
    """Checks shards of one cache.

    Attributes:
        root: Folder of the cache.
        identity: Of the cache.
        deep: Whether every row is decoded and checked.
        files: The file system.
    """

    root: CachePath
    identity: CacheIdentity
    deep: bool
    files: Files

    def problems(self, record: CommitRecord, pairs: CommitRecord | None) -> Iterator[Problem]:
        """Check one shard and its record.

        Args:
            record: What the manifest says of the shard.
            pairs: What it says of the pairs of the same number; None where that cannot be read, and is named already.

        Raises:
            UnreadableError: A file cannot be read now.
        """
        shard = shard_path(Path(), record.table, record.shard)
        beside = shard.with_suffix(".json").as_posix()
        for problem in self._of_record(record):
            yield Problem(shard=shard.as_posix(), file=beside, problem=problem)
        for problem in self._of_shard(record, pairs):
            yield Problem(shard=shard.as_posix(), file=shard.as_posix(), problem=problem)

    def _of_record(self, record: CommitRecord) -> Iterator[str]:
        beside = record_path(self.root, record.table, record.shard)
        try:
            if read_document(beside, CommitRecord, MAX_RECORD_BYTES, self.files) != record:
                yield f"{beside.name} differs from its entry in manifest.json"
        except FileNotFoundError:
            yield f"{beside.name} is missing"
        except (ShardCorruptError, CacheMismatchError) as error:
            yield str(error)

    def _of_shard(self, record: CommitRecord, pairs: CommitRecord | None) -> Iterator[str]:
        reader = self._reader(record)
        try:
            reader.check_footer()
        except (ShardCorruptError, CacheMismatchError) as error:
            yield str(error)
            return
        found = file_sha256(shard_path(self.root, record.table, record.shard), self.files)
        if found != record.sha256:
            yield f"found sha256 {found}, the commit record says {record.sha256}"
        if self.deep and pairs is not None:
            yield from self._of_rows(reader, record, pairs)

    def _of_rows(self, reader: ShardReader, record: CommitRecord, pairs_record: CommitRecord) -> Iterator[str]:
        """Decode every row group; the views of samples that cannot be read are left out, their pairs are named."""
        pairs_reader = self._reader(pairs_record)
        for group in range(reader.layout.num_groups):
            try:
                pairs = pairs_reader.read_pairs(group)
            except ShardCorruptError as error:
                if record.table == "pairs":
                    yield str(error)
                continue
            if record.table == "pairs":
                continue
            for view in range(self.identity.stored_views):
                try:
                    reader.check_signals(view, group, pairs)
                except ShardCorruptError as error:
                    yield str(error)

    def _reader(self, record: CommitRecord) -> ShardReader:
        path = shard_path(self.root, record.table, record.shard)
        return ShardReader(path, record, self.identity.shard_rules, self.files)
