"""The contents of a cache as numbers: from its manifest if that suffices, otherwise from some of its views."""

from dataclasses import dataclass
from typing import Any

from tide_cache.building.run_record import read_record
from tide_cache.errors import CacheMismatchError
from tide_cache.inspecting.sampling import ChunkShapes, OnGroups, SampledSignals, sample_cache
from tide_cache.locations import CachePath
from tide_cache.manifest import Manifest
from tide_cache.shards import PassName


@dataclass(frozen=True)
class Inspection:
    """The contents of a cache; `dataclasses.asdict` makes it JSON-ready.

    Attributes:
        cache: Its folder.
        cache_id: Its identity in 16 hex digits.
        tide_cache_version: Release that finished it.
        first_pass: The pass of those figures that concern a single pass.
        identity: What determines its numbers.
        plan: How it is cut into shards.
        num_rows: Rows of the corpus.
        num_samples: Rows that became samples.
        num_views: Number of views of all samples.
        pairing: Counts of `PairingReport`.
        dropped: Rows that became no sample, by reason.
        coverage: Share of supervised tokens inside chunks.
        masked_student_positions: Number over all views.
        masked_teacher_positions: Number over all views.
        top1_accuracy: Share of masked teacher positions whose true token was the most likely one.
        topk_rows: Number of positions with kept ids.
        kept_ids_per_row: Mean number of kept ids; None if none were captured.
        cache_bytes: Size of all shards.
        column_bytes: Size by table and column.
        bytes_per_position: `cache_bytes` over `masked_student_positions`.
        sampled: Figures of the first pass that need views to be read.
        other_passes: The same of the other passes.
        chunk_shapes: How the samples read are cut into chunks.
        remarks: Remarks of the build about the corpus: rows left out or cut, fields and files that were not read.
    """

    cache: CachePath
    cache_id: str
    tide_cache_version: str
    first_pass: PassName
    identity: dict[str, Any]
    plan: dict[str, Any]
    num_rows: int
    num_samples: int
    num_views: int
    pairing: dict[str, int | float]
    dropped: dict[str, int | float]
    coverage: float
    masked_student_positions: int
    masked_teacher_positions: int
    top1_accuracy: float
    topk_rows: int
    kept_ids_per_row: float | None
    cache_bytes: int
    column_bytes: dict[str, dict[str, int]]
    bytes_per_position: float
    sampled: SampledSignals
    other_passes: dict[PassName, SampledSignals]
    chunk_shapes: ChunkShapes
    remarks: tuple[str, ...]

    @property
    def by_pass(self) -> dict[PassName, SampledSignals]:
        """Figures of every pass that need views to be read."""
        return {self.first_pass: self.sampled, **self.other_passes}


_OF_PAIRS = {"samples", "covered_tokens", "supervised_tokens"}
_OF_SIGNALS = {"views", "masked_student_positions", "masked_teacher_positions", "top1_correct", "topk_rows", "topk_ids"}
"""What the figures are made of, by table."""


def inspect(cache: CachePath, on_groups: OnGroups | None = None) -> Inspection:
    """Return the contents of a complete cache; reads its manifest and at most 64 row groups of each pass.

    Args:
        cache: Folder of the cache.
        on_groups: Called with the number of row groups read and of all to read.

    Raises:
        CacheMismatchError: Another program wrote the cache, and did not count what a build counts.
        TideCacheError: The cache is incomplete or damaged.
    """
    manifest = Manifest.load(cache)
    pairs, signals = manifest.totals["pairs"], manifest.totals[manifest.passes[0]]
    if missing := sorted(_OF_PAIRS - pairs.keys()) + sorted(_OF_SIGNALS - signals.keys()):
        raise CacheMismatchError(
            f"{cache}: its commit records do not say {', '.join(missing)}; expected what `tide-cache "
            "build-teacher-shards` counts. The shards can be read and verified, but not described."
        )
    masked, teacher_masked = int(signals["masked_student_positions"]), int(signals["masked_teacher_positions"])
    cache_bytes = manifest.cache_bytes
    sample = sample_cache(cache, manifest, on_groups)
    record = read_record(cache)
    return Inspection(
        cache=cache,
        cache_id=manifest.identity.cache_id,
        tide_cache_version=manifest.tide_cache_version,
        first_pass=manifest.passes[0],
        identity=manifest.identity.model_dump(mode="json"),
        plan=manifest.plan.model_dump(mode="json") | {"num_shards": manifest.plan.num_shards},
        num_rows=manifest.identity.num_rows,
        num_samples=int(pairs["samples"]),
        num_views=int(signals["views"]),
        pairing={name: count for name, count in pairs.items() if "." not in name},
        dropped=_under("dropped.", pairs),
        coverage=pairs["covered_tokens"] / max(pairs["supervised_tokens"], 1),
        masked_student_positions=masked,
        masked_teacher_positions=teacher_masked,
        top1_accuracy=signals["top1_correct"] / max(teacher_masked, 1),
        topk_rows=int(signals["topk_rows"]),
        kept_ids_per_row=signals["topk_ids"] / signals["topk_rows"] if signals["topk_rows"] else None,
        cache_bytes=cache_bytes,
        column_bytes={
            table: {name: int(count) for name, count in _under("column_bytes.", totals).items()}
            for table, totals in manifest.totals.items()
        },
        bytes_per_position=cache_bytes / max(masked, 1),
        sampled=sample.signals[manifest.passes[0]],
        other_passes={name: sample.signals[name] for name in manifest.passes[1:]},
        chunk_shapes=sample.chunks,
        remarks=() if record is None else record.remarks,
    )


def _under(prefix: str, statistics: dict[str, int | float]) -> dict[str, int | float]:
    return {name.removeprefix(prefix): value for name, value in statistics.items() if name.startswith(prefix)}
