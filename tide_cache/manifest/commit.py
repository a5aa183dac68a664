"""The small document next to a shard that says: this shard is complete, and these are its bytes."""

import hashlib
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tide_cache.config.base import Frozen
from tide_cache.shards import FORMAT_VERSION, EncodedShard, ShardHeader, TableName, canonical_json

MAX_RECORD_BYTES = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShortHash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
MOST_COUNT = 2**53
"""Counts stay below it: a float holds them exactly, and sums over shards cannot overflow."""

Statistic = Annotated[int, Field(ge=-MOST_COUNT, le=MOST_COUNT)] | Annotated[float, Field(allow_inf_nan=False)]
Statistics = dict[str, int | float]
Count = Annotated[int, Field(ge=0, le=MOST_COUNT)]


def most_record_bytes(row_groups: int) -> int:
    """Return the approximate size of the longest commit record; most of a long one are the rows of its row groups.

    Args:
        row_groups: Row groups of the shard.
    """
    return 4096 + 4 * row_groups


class CommitRecord(Frozen):
    """One committed shard; also its entry in the manifest.

    `statistics` are free counts for reports, such as masked positions or bytes of a column. Nothing else would notice
    a bit that flips in them, so the record holds a `checksum` of itself: the first 16 hex digits of the SHA-256 of all
    other fields as canonical JSON. The first caches were written without it, and are read so.
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
    checksum: ShortHash | None = None

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if sum(self.row_groups) != self.num_rows:
            raise ValueError(f"row groups of {sum(self.row_groups)} rows in all, num_rows {self.num_rows}")
        return self

    @model_validator(mode="after")
    def _is_unchanged(self) -> Self:
        if self.checksum is not None and self.checksum != (found := self._checksum()):
            raise ValueError(f"its fields have the checksum {found}, it says {self.checksum}: something in it changed")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_checksum(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if name != "checksum" or value is not None}

    @classmethod
    def of(cls, encoded: EncodedShard, statistics: Statistics) -> Self:
        """Return the record of a shard that was just encoded."""
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
        ).sealed()

    def sealed(self) -> Self:
        """Return the same record with its checksum."""
        return self.model_copy(update={"checksum": self._checksum()})

    def _checksum(self) -> str:
        content = self.model_dump(mode="json", exclude={"checksum"})
        return hashlib.sha256(canonical_json(content)).hexdigest()[:16]

    @property
    def header(self) -> ShardHeader:
        """What the file must say about itself."""
        return ShardHeader(self.cache_id, self.plan_hash, self.table, self.shard)
