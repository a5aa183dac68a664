"""The small document beside a shard that says: this shard is whole, and these are its bytes."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tide_cache.config.base import Frozen
from tide_cache.shards import FORMAT_VERSION, EncodedShard, ShardHeader, TableName

MAX_RECORD_BYTES = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShortHash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
MOST_COUNT = 2**53
"""Counts stay below it: a float holds them exactly, and sums over shards cannot overflow."""

Statistic = Annotated[int, Field(ge=-MOST_COUNT, le=MOST_COUNT)] | Annotated[float, Field(allow_inf_nan=False)]
Statistics = dict[str, int | float]
Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]


class CommitRecord(Frozen):
    """One committed shard; also its entry in the manifest.

    `statistics` are free counts for reports, such as masked positions or bytes of a column; nothing depends on them.
    """

    format_version: Annotated[int, Field(ge=1)] = FORMAT_VERSION
    cache_id: ShortHash
    plan_hash: ShortHash
    table: TableName
    shard: Count
    size: Annotated[int, Field(ge=12, le=MOST_COUNT)]
    sha256: Sha256
    footer_sha256: Sha256
    num_samples: Count
    num_rows: Count
    row_groups: tuple[Annotated[int, Field(ge=1, le=MOST_COUNT)], ...]
    statistics: dict[str, Statistic]

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if sum(self.row_groups) != self.num_rows:
            raise ValueError(f"row groups of {sum(self.row_groups)} rows in all, num_rows {self.num_rows}")
        return self

    @classmethod
    def of(cls, encoded: EncodedShard, statistics: Statistics) -> Self:
        """Describe a shard that was just encoded."""
        return cls(
            cache_id=encoded.header.cache_id,
            plan_hash=encoded.header.plan_hash,
            table=encoded.header.table,
            shard=encoded.header.shard,
            size=encoded.size,
            sha256=encoded.sha256,
            footer_sha256=encoded.footer_sha256,
            num_samples=encoded.num_samples,
            num_rows=sum(encoded.row_groups),
            row_groups=encoded.row_groups,
            statistics=statistics,
        )

    @property
    def header(self) -> ShardHeader:
        """What the file must say of itself."""
        return ShardHeader(self.cache_id, self.plan_hash, self.table, self.shard)
