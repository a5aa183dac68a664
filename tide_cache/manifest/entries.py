"""Checks that a manifest's entry of a shard belongs to its cache."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from tide_cache.manifest.commit import CommitRecord, Statistics
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.manifest.plan import ShardPlan
from tide_cache.shards import ShardLayout, TableName


@dataclass(frozen=True)
class EntryRules:
    """The entries that identity and plan allow.

    Attributes:
        cache_id: Hash of the identity.
        plan_hash: Hash of identity and plan.
        samples_per_shard: As in the plan.
        stored_views: As in the identity.
    """

    cache_id: str
    plan_hash: str
    samples_per_shard: int
    stored_views: int

    @classmethod
    def of(cls, identity: CacheIdentity, plan: ShardPlan) -> Self:
        """Return the rules of an identity and a plan; both hashes are computed once here."""
        cache_id = identity.cache_id
        return cls(cache_id, plan.plan_hash(cache_id), plan.samples_per_shard, identity.stored_views)

    def foreign(self, record: CommitRecord, table: TableName, shard: int) -> str | None:
        """Return a fault if an entry belongs elsewhere."""
        found = record.cache_id, record.plan_hash, record.table, record.shard
        if found == (self.cache_id, self.plan_hash, table, shard):
            return None
        return f"the entry of {table} shard {shard} belongs to another cache, plan or shard"

    def impossible(self, record: CommitRecord) -> str | None:
        """Return a fault if a count contradicts the plan: readers take their sizes from the counts."""
        problem, most = None, self.samples_per_shard
        if record.num_samples > most:
            problem = f"found {record.num_samples} samples, the plan allows {most}"
        else:
            layout = ShardLayout(record.num_samples, 1 if record.table == "pairs" else self.stored_views)
            # the number comes first: few row groups are listed, but billions may be declared
            if len(record.row_groups) != layout.num_row_groups or record.row_groups != layout.rows:
                problem = f"found {len(record.row_groups)} row groups, not those of {layout.num_samples} samples"
        return None if problem is None else f"the entry of {record.table} shard {record.shard}: {problem}"


def sum_statistics(records: Collection[CommitRecord]) -> Statistics:
    """Return the sum of each statistic over shards; a shard without it counts as zero."""
    names = sorted({name for record in records for name in record.statistics})
    return {name: sum(record.statistics.get(name, 0) for record in records) for name in names}


def add_statistics(sums: Statistics, more: Statistics) -> None:
    """Add the statistics of one more shard to sums.

    Args:
        sums: Changed in place.
        more: Statistics of the shard.
    """
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value
