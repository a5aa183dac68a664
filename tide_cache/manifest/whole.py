"""`manifest.json` of a cache of few shards: every commit record is in it."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from tide_cache.config.base import Frozen
from tide_cache.manifest.commit import CommitRecord, Statistics
from tide_cache.manifest.entries import EntryRules, sum_statistics
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.manifest.plan import ShardPlan
from tide_cache.shards import FORMAT_VERSION, PASSES, TableName


class WholeManifest(Frozen):
    """A manifest of format version 1 to 3.

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

    def contradiction(self) -> str | None:
        """Say what the manifest says against itself, if anything."""
        if self.format_version != self.identity.format_version:
            return f"found format_version {self.format_version}, and {self.identity.format_version} in the identity"
        if problem := tables_fault(self.shards) or temperatures_fault(self.identity):
            return problem
        rules = EntryRules.of(self.identity, self.plan)
        for table, records in self.shards.items():
            if len(records) != self.plan.num_shards:
                return f"{table}: found {len(records)} shards, the plan says {self.plan.num_shards}"
            for shard, record in enumerate(records):
                if problem := rules.foreign(record, table, shard):
                    return problem
            if self.totals.get(table) != sum_statistics(records):
                return f"{table}: totals are not the sums of the shards' statistics"
        for name in (name for name in PASSES if name in self.shards):
            for one, other in zip(self.shards["pairs"], self.shards[name], strict=True):
                if one.num_samples != other.num_samples:
                    return unequal_samples(one.shard, one.num_samples, name, other.num_samples)
        faults = (rules.impossible(record) for records in self.shards.values() for record in records)
        return next((fault for fault in faults if fault), None)


def unequal_samples(shard: int, num_pairs: int, table: TableName, found: int) -> str:
    """Say that two tables of one shard differ in their samples."""
    return f"shard {shard}: found {num_pairs} pairs and {table} signals of {found} samples"


def tables_fault(tables: Collection[TableName]) -> str | None:
    """Say which tables are missing, if any."""
    if "pairs" in tables and any(name in tables for name in PASSES):
        return None
    return f"found tables {sorted(tables)}, expected pairs and one of {', '.join(PASSES)}"


def temperatures_fault(identity: CacheIdentity) -> str | None:
    """Say that T = 1 is missing where top-k rows need it."""
    if "topk" in identity.signals.kinds and 1.0 not in identity.signals.temperatures:
        return f"found temperatures {list(identity.signals.temperatures)}, 1.0 is missing"
    return None
