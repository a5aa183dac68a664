"""What a manifest's entry of a shard must say to belong to its cache."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from tide_cache.manifest.commit import CommitRecord, Statistics
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.manifest.plan import ShardPlan
from tide_cache.shards import ShardLayout, TableName


@dataclass(frozen=True)
class EntryRules:
    """Which entries identity and plan allow.

    Attributes:
        cache_id: Of the identity.
        plan_hash: Of identity and plan.
        samples_per_shard: Of the plan.
        stored_views: Of the identity.
    """

    cache_id: str
    plan_hash: str
    samples_per_shard: int
    stored_views: int

    @classmethod
    def of(cls, identity: CacheIdentity, plan: ShardPlan) -> Self:
        """Take them from identity and plan; both hashes are computed once here."""
        cache_id = identity.cache_id
        return cls(cache_id, plan.plan_hash(cache_id), plan.samples_per_shard, identity.stored_views)

    def foreign(self, record: CommitRecord, table: TableName, shard: int) -> str | None:
        """Say that an entry belongs elsewhere, if it does."""
        found = record.cache_id, record.plan_hash, record.table, record.shard
        if found == (self.cache_id, self.plan_hash, table, shard):
            return None
        return f"the entry of {table} shard {shard} belongs to another cache, plan or shard"

    def impossible(self, record: CommitRecord) -> str | None:
        """Say which count the plan does not allow: readers take their sizes from them."""
        problem, most = None, self.samples_per_shard
        if record.num_samples > most:
            problem = f"found {record.num_samples} samples, the plan allows {most}"
        else:
            layout = ShardLayout(record.num_samples, 1 if record.table == "pairs" else self.stored_views)
            # The number comes first: row groups that are listed are few, those that are declared may be billions.
            if len(record.row_groups) != layout.num_row_groups or record.row_groups != layout.rows:
                problem = f"found {len(record.row_groups)} row groups, not those of {layout.num_samples} samples"
        return None if problem is None else f"the entry of {record.table} shard {record.shard}: {problem}"


def sum_statistics(records: Collection[CommitRecord]) -> Statistics:
    """Sum each statistic over shards; a shard without it counts as zero."""
    names = sorted({name for record in records for name in record.statistics})
    return {name: sum(record.statistics.get(name, 0) for record in records) for name in names}


def add_statistics(sums: Statistics, more: Statistics) -> None:
    """Add the statistics of one more shard to sums.

    Args:
        sums: Changed in place.
        more: Of the shard.
    """
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value
