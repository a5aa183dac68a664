"""What a cache holds, as numbers: from its manifest alone where that suffices, else from some of its views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.locations import CachePath
from tide_cache.manifest import Manifest
from tide_cache.records import TopK, ViewRecord
from tide_cache.shards import ShardLayout

NUM_BUCKETS = 10
GROUPS_READ = 64
"""Row groups that are read; each holds one view of up to 64 samples."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TeacherAtTime:
    """What the teacher knew on views with `t_from` <= t < `t_to`; 1 belongs to the last bucket.

    Attributes:
        t_from: Lower end.
        t_to: Upper end.
        num_views: Views read.
        num_positions: Their masked teacher positions.
        top1_accuracy: Share of positions whose true token is the most likely one; None without positions.
        mean_nll: Mean of -log p(true token), in nats; None without positions.
        kept_ids: Mean number of kept ids per row; None without rows.
        kept_mass: Mean probability of the kept ids at T = 1; None without rows.
    """

    t_from: float
    t_to: float
    num_views: int
    num_positions: int
    top1_accuracy: float | None
    mean_nll: float | None
    kept_ids: float | None
    kept_mass: float | None


@dataclass(frozen=True)
class SampledSignals:
    """Figures from views spread evenly over the cache."""

    num_views: int
    kept_mass: float | None
    kept_mass_p5: float | None
    by_time: tuple[TeacherAtTime, ...]


@dataclass(frozen=True)
class Inspection:
    """What a cache holds; `dataclasses.asdict` makes it ready for JSON.

    Attributes:
        cache: Its folder.
        cache_id: Its identity in 16 hex digits.
        tide_cache_version: The release that finished it.
        identity: What determines its numbers.
        plan: How it is cut.
        num_rows: Rows of the corpus.
        num_samples: Rows that became samples.
        num_views: Views of all samples.
        pairing: Counts of `PairingReport`.
        dropped: Rows that became no sample, by reason.
        coverage: Share of supervised tokens inside chunks.
        masked_student_positions: Over all views.
        masked_teacher_positions: Over all views.
        top1_accuracy: Share of masked teacher positions whose true token was the most likely one.
        topk_rows: Positions with kept ids.
        kept_ids_per_row: Their mean number; None when none were captured.
        cache_bytes: Of all shards.
        column_bytes: By table and column.
        bytes_per_position: `cache_bytes` over `masked_student_positions`.
        sampled: What takes reading views.
    """

    cache: CachePath
    cache_id: str
    tide_cache_version: str
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


def inspect(cache: CachePath) -> Inspection:
    """Describe a complete cache; reads its manifest and at most 64 row groups.

    Args:
        cache: Folder of the cache.

    Raises:
        TideCacheError: It is not complete, or damaged.
    """
    manifest = Manifest.load(cache)
    pairs, signals = manifest.totals["pairs"], manifest.totals[manifest.passes[0]]
    records = [record for table in manifest.shards.values() for record in table]
    masked, teacher_masked = int(signals["masked_student_positions"]), int(signals["masked_teacher_positions"])
    cache_bytes = sum(record.size for record in records)
    return Inspection(
        cache=cache,
        cache_id=manifest.identity.cache_id,
        tide_cache_version=manifest.tide_cache_version,
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
        sampled=_sampled(list(_spread_views(cache, manifest)), manifest.identity.signals.temperatures.index(1.0)),
    )


def _under(prefix: str, statistics: dict[str, int | float]) -> dict[str, int | float]:
    return {name.removeprefix(prefix): value for name, value in statistics.items() if name.startswith(prefix)}


def _spread_views(cache: CachePath, manifest: Manifest) -> Iterator[ViewRecord]:
    """Read views of row groups spread evenly over shards, groups and views."""
    num_views = manifest.identity.views.num_views
    layouts = [ShardLayout(record.num_samples, num_views) for record in manifest.shards["pairs"]]
    places = [(s, g, v) for s, layout in enumerate(layouts) for g in range(layout.num_groups) for v in range(num_views)]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), GROUPS_READ)).round().astype(int))
    for shard, group, view in (places[index] for index in chosen):
        pairs = manifest.reader(cache, "pairs", shard).read_pairs(group)
        yield from manifest.reader(cache, manifest.passes[0], shard).read_signals(view, group, pairs)


def _sampled(records: Sequence[ViewRecord], unit_temperature: int) -> SampledSignals:
    t_S = np.array([record.view.t for record in records])
    bucket_S = np.minimum((t_S * NUM_BUCKETS).astype(int), NUM_BUCKETS - 1)
    signals = [record.signal for record in records if record.signal is not None]
    topks = [signal.topk for signal in signals]
    edges = pairwise(index / NUM_BUCKETS for index in range(NUM_BUCKETS + 1))
    by_time = []
    for bucket, (t_from, t_to) in enumerate(edges):
        chosen = np.flatnonzero(bucket_S == bucket)
        logprobs_N = _joined([signals[i].truth_logprobs_N for i in chosen])
        kept_ids_R, mass_R = _kept([topks[i] for i in chosen], unit_temperature)
        by_time.append(
            TeacherAtTime(
                t_from=t_from,
                t_to=t_to,
                num_views=len(chosen),
                num_positions=len(logprobs_N),
                top1_accuracy=_mean(_joined([signals[i].is_top1_N for i in chosen])),
                mean_nll=_mean(-logprobs_N),
                kept_ids=_mean(kept_ids_R),
                kept_mass=_mean(mass_R),
            )
        )
    _, mass_R = _kept(topks, unit_temperature)
    return SampledSignals(
        num_views=len(records),
        kept_mass=_mean(mass_R),
        kept_mass_p5=float(np.percentile(mass_R, 5)) if len(mass_R) else None,
        by_time=tuple(by_time),
    )


def _kept(topks: Sequence[TopK | None], unit_temperature: int) -> tuple[Floats, Floats]:
    """Give for each row the number of kept ids and their mass at T = 1."""
    present = [topk for topk in topks if topk is not None]
    tail_R = _joined([topk.log_tail_RT[:, unit_temperature] for topk in present])
    return _joined([topk.counts_R for topk in present]), 1 - np.exp(tail_R)


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> Floats:
    return np.concatenate([np.zeros(0), *arrays]).astype(np.float64)


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
