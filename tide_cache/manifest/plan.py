"""How a corpus is cut into shards; with the identity it determines every shard's bytes."""

import hashlib
from typing import Annotated, Self

from pydantic import Field, model_validator

from tide_cache.config.base import Frozen
from tide_cache.manifest.identity import CacheIdentity
from tide_cache.shards import FORMAT_VERSION, ShardLayout, canonical_json

MAX_SHARDS = 1_000_000
"""File names have six digits."""

Positive = Annotated[int, Field(ge=1)]


class ShardPlan(Frozen):
    """The cut of a build.

    `batch_tokens`, `head_rows` and `views_per_forward` shape the teacher's batches: in bfloat16 they can change the
    last bits of what it says, so a build cannot change them halfway.
    """

    num_rows: Positive
    samples_per_shard: Positive
    batch_tokens: Positive
    head_rows: Positive
    views_per_forward: Positive

    @model_validator(mode="after")
    def _nameable(self) -> Self:
        if self.num_shards > MAX_SHARDS:
            raise ValueError(f"{self.num_shards} shards, at most {MAX_SHARDS}; raise samples_per_shard")
        return self

    @property
    def num_shards(self) -> int:
        """Number of shards of each table."""
        return -(-self.num_rows // self.samples_per_shard)

    def most_row_groups(self, stored_views: int) -> int:
        """Return the row groups of the largest possible shard.

        Args:
            stored_views: Views of each sample that the shards hold.
        """
        return ShardLayout(min(self.samples_per_shard, self.num_rows), stored_views).num_row_groups

    def rows_of(self, shard: int) -> range:
        """Return the rows of the corpus that a shard covers; rows that could not be paired have no sample."""
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard {shard} of a plan with {self.num_shards} shards")
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, self.num_rows))

    def plan_hash(self, cache_id: str) -> str:
        """Return the hash of this cut of that cache, 16 hex digits."""
        document = {"cache_id": cache_id, "plan": self.model_dump(mode="json")}
        return hashlib.sha256(canonical_json(document)).hexdigest()[:16]


class PlanDocument(Frozen):
    """`plan.json`: what is being built. Written first, so that an interrupted build can be resumed or refused."""

    format_version: Annotated[int, Field(ge=1)] = FORMAT_VERSION
    identity: CacheIdentity
    plan: ShardPlan

    @classmethod
    def of(cls, identity: CacheIdentity, plan: ShardPlan) -> Self:
        """Return the document of a build, in the version that its identity needs."""
        return cls(format_version=identity.format_version, identity=identity, plan=plan)

    @model_validator(mode="after")
    def _one_corpus(self) -> Self:
        if self.format_version != self.identity.format_version:
            raise ValueError(
                f"the document has version {self.format_version}, its identity {self.identity.format_version}"
            )
        if self.plan.num_rows != self.identity.num_rows:
            raise ValueError(f"the plan covers {self.plan.num_rows} rows, the corpus has {self.identity.num_rows}")
        return self

    @property
    def cache_id(self) -> str:
        """Hash of the identity, 16 hex digits."""
        return self.identity.cache_id

    @property
    def plan_hash(self) -> str:
        """Hash of identity and cut, 16 hex digits."""
        return self.plan.plan_hash(self.cache_id)
