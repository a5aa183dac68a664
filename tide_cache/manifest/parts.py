"""The manifest of a cache of many shards: a small head, and the commit records in hashed parts next to it.

A part holds the records of some successive shards of a table, one line each. Its name has the first digits of its
hash, so a manifest that replaces another never changes a part of it. The head says how many samples each shard has, so
opening a cache reads no part; one is read, once, when a shard of it is.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, overload

import numpy as np
from pydantic import Field, ValidationError

from tide_cache.config.base import Frozen
from tide_cache.errors import ShardCorruptError
from tide_cache.locations import CachePath
from tide_cache.manifest.commit import MOST_COUNT, CommitRecord, Count, Sha256, Statistics, most_record_bytes
from tide_cache.manifest.entries import EntryRules
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.manifest.plan import ShardPlan
from tide_cache.manifest.whole import tables_fault, temperatures_fault, unequal_samples
from tide_cache.shards import Files, ShardHeader, TableName, canonical_json

PARTS_FOLDER = "manifest"
RECORDS_PER_PART = 1024
"""About 1.6 MB: one read from a store, and 40 ms to check."""
MAX_PART_BYTES = 64 << 20

_FACTS = np.dtype([("size", np.int64), ("footer_sha256", "V32"), ("is_known", np.bool_)])


class Part(Frozen):
    """One file of commit records.

    Attributes:
        size: Bytes of it.
        sha256: Of these bytes.
    """

    size: Annotated[int, Field(ge=1, le=MAX_PART_BYTES)]
    sha256: Sha256


class ManifestHead(Frozen):
    """A manifest of format version 4.

    Attributes:
        tide_cache_version: The release that finished the build; for information.
        num_samples: Samples of each shard.
        records_per_part: Shards of every part but the last.
        parts: Parts of each table.
        shard_bytes: Bytes of all shards of each table.
        totals: Statistics of each table, summed over its shards.
    """

    format_version: Literal[4] = 4
    tide_cache_version: str
    identity: CacheIdentity
    plan: ShardPlan
    complete: Literal[True]
    num_samples: tuple[Count, ...]
    records_per_part: Annotated[int, Field(ge=1, le=RECORDS_PER_PART)]
    parts: dict[TableName, tuple[Part, ...]]
    shard_bytes: dict[TableName, Annotated[int, Field(ge=0, le=MOST_COUNT)]]
    totals: dict[TableName, Statistics]

    def contradiction(self) -> str | None:
        """Say what the head says against itself, if anything."""
        if problem := tables_fault(self.parts) or temperatures_fault(self.identity):
            return problem
        if len(self.num_samples) != self.plan.num_shards:
            return f"found samples of {len(self.num_samples)} shards, the plan says {self.plan.num_shards}"
        if (most := max(self.num_samples)) > self.plan.samples_per_shard:
            return f"found {most} samples in a shard, the plan allows {self.plan.samples_per_shard}"
        expected = -(-self.plan.num_shards // self.records_per_part)
        for table, parts in self.parts.items():
            if len(parts) != expected:
                return f"{table}: found {len(parts)} parts, expected {expected}"
        if not self.parts.keys() == self.shard_bytes.keys() == self.totals.keys():
            return f"found totals of {sorted(self.totals)}, bytes of {sorted(self.shard_bytes)}; expected each table"
        return None


class PartFacts:
    """What a reader knows of a shard before it opens it; see `ShardFacts`."""

    __slots__ = ("footer_sha256", "header", "num_samples", "size")

    def __init__(self, header: ShardHeader, size: int, footer_sha256: str, num_samples: int) -> None:
        self.header, self.size, self.footer_sha256, self.num_samples = header, size, footer_sha256, num_samples


class RecordParts(Sequence[CommitRecord]):
    """The commit records of a table, read part by part; of those that were read, only what readers need is kept."""

    def __init__(self, folder: CachePath, head: ManifestHead, table: TableName, rules: EntryRules, files: Files):
        """Read nothing yet.

        Args:
            folder: Of the parts.
            head: Says which they are.
            table: Of the records.
            rules: Which entries belong to this cache.
            files: The file system.
        """
        self._folder, self._table, self._rules, self._files = folder, table, rules, files
        self._parts, self._num_samples, self._per_part = head.parts[table], head.num_samples, head.records_per_part
        self._facts_S: Any = None
        self._last: tuple[int, tuple[CommitRecord, ...]] | None = None

    def __len__(self) -> int:
        return len(self._num_samples)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordParts) and (self._table, self._per_part, self._parts) == (
            other._table,
            other._per_part,
            other._parts,
        )

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> CommitRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CommitRecord]: ...
    def __getitem__(self, index: int | slice) -> CommitRecord | Sequence[CommitRecord]:
        """Return a record, or some; a part that was not the last one read is read again."""
        if isinstance(index, slice):
            return [self[shard] for shard in range(len(self))[index]]
        number, place = divmod(range(len(self))[index], self._per_part)
        return self.part(number)[place]

    def __iter__(self) -> Iterator[CommitRecord]:
        for number in range(self.num_parts):
            yield from self.part(number)

    @property
    def num_parts(self) -> int:
        """How many files the records lie in."""
        return len(self._parts)

    def shards_of(self, number: int) -> range:
        """Return the shards whose records are in a part."""
        first = number * self._per_part
        return range(first, min(first + self._per_part, len(self)))

    def path(self, number: int) -> CachePath:
        """Return the file of a part."""
        return self._folder / part_name(self._table, number, self._parts[number].sha256)

    def part(self, number: int) -> tuple[CommitRecord, ...]:
        """Read a part, or return the one that was read last.

        Raises:
            ShardCorruptError: It is not what the head says.
            UnreadableError: It cannot be read now.
        """
        last = self._last
        if last is None or last[0] != number:
            self._last = last = number, self._read(number)
        return last[1]

    def facts(self, shard: int) -> PartFacts:
        """Return what a reader needs of a record; a part is read once for all its shards."""
        if self._facts_S is None:
            self._facts_S = np.zeros(len(self), _FACTS)
        if not self._facts_S[shard]["is_known"]:
            number = shard // self._per_part
            for record in self._read(number):
                self._facts_S[record.shard] = record.size, bytes.fromhex(record.footer_sha256), True
        size, footer_sha256, _ = self._facts_S[shard]
        header = ShardHeader(self._rules.cache_id, self._rules.plan_hash, self._table, shard)
        return PartFacts(header, int(size), bytes(footer_sha256).hex(), self._num_samples[shard])

    def _read(self, number: int) -> tuple[CommitRecord, ...]:
        path, part = self.path(number), self._parts[number]
        try:
            size = self._files.size(path)
            data = self._files.read(path, 0, part.size) if size == part.size else b""
        except (FileNotFoundError, NotADirectoryError):
            raise _damaged(path, "found no file, the manifest lists it") from None
        except OSError as error:
            raise _damaged(path, f"cannot be read: {error.strerror}") from None
        if size != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise _damaged(path, f"found {size} bytes, not the {part.size} bytes that the manifest lists")
        shards = self.shards_of(number)
        lines = data.splitlines()
        if len(lines) != len(shards):
            raise _damaged(path, f"found {len(lines)} records, expected {len(shards)}")
        return tuple(self._record(path, line, shard) for line, shard in zip(lines, shards, strict=True))

    def _record(self, path: CachePath, line: bytes, shard: int) -> CommitRecord:
        try:
            record = CommitRecord.model_validate_json(line, strict=True)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise _damaged(path, f"shard {shard}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
        problem = self._rules.foreign(record, self._table, shard) or self._rules.impossible(record)
        if problem is None and record.num_samples != self._num_samples[shard]:
            problem = unequal_samples(shard, self._num_samples[shard], self._table, record.num_samples)
        if problem is not None:
            raise _damaged(path, problem)
        return record


def part_name(table: TableName, number: int, sha256: str) -> str:
    """Return the name of a part in its folder."""
    return f"{table}-{number:06d}-{sha256[:16]}.jsonl"


def part_bytes(records: Sequence[CommitRecord]) -> bytes:
    """Return the content of a part: the documents of its records, end to end."""
    return b"".join(canonical_json(record.model_dump(mode="json")) + b"\n" for record in records)


def records_per_part(plan: ShardPlan, identity: CacheIdentity) -> int:
    """Return how many records of a cache share a file."""
    return max(
        1, min(RECORDS_PER_PART, MAX_PART_BYTES // 8 // most_record_bytes(plan.most_row_groups(identity.stored_views)))
    )


def _damaged(path: CachePath, problem: str) -> ShardCorruptError:
    return ShardCorruptError(
        f"{path}: {problem}.\nRun the same `tide-cache build-teacher-shards` again: it is written anew from the commit "
        "records."
    )
