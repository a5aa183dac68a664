"""Stage 1 as a whole, in this process: load the teacher once, then every missing shard, then the manifest."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tide_cache.building.prepare import PreparedBuild, prepare_build
from tide_cache.building.shard import SHOWINGS, build_shard
from tide_cache.config.build import BuildRun
from tide_cache.config.common import PassName
from tide_cache.interruption import StopRequest
from tide_cache.manifest import CacheFolder, Manifest, tables_of
from tide_cache.modeling.backbone import DTYPES, load_backbone, resolve_device
from tide_cache.shards import TableName
from tide_cache.teacher.capture import Teacher


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is; counts include shards that were already there.

    Attributes:
        shards_done: Shards committed.
        num_shards: Shards planned.
        views_done: Views shown to the teacher by this process, of shards not yet committed too.
        num_views: Views this process has to show, at most; the compdemo pass shows most of them twice, in parts.
        bytes_written: By this process.
    """

    shards_done: int
    num_shards: int
    views_done: int
    num_views: int
    bytes_written: int


OnProgress = Callable[[BuildProgress], None]


@dataclass(frozen=True)
class BuildSummary:
    """What a finished build leaves behind."""

    cache: Path
    cache_id: str
    passes: tuple[PassName, ...]
    num_shards: int
    shards_reused: int
    num_samples: int
    num_views: int
    masked_positions: int
    cache_bytes: int
    coverage: float
    dropped: dict[str, int]
    skipped_rows: tuple[str, ...]
    elapsed_s: float


def build_cache(run: BuildRun, on_progress: OnProgress | None = None) -> BuildSummary:
    """Build a cache, or what is missing of it.

    Args:
        run: The run file.
        on_progress: Called after every teacher forward and every shard.

    Raises:
        Interrupted: A stop was asked for; committed shards stay, the rest is computed by the same command.
        TideCacheError: See `prepare_build` and `build_shard`.
    """
    return build_prepared(run, prepare_build(run), on_progress)


def build_prepared(run: BuildRun, build: PreparedBuild, on_progress: OnProgress | None = None) -> BuildSummary:
    """Build the cache of a checked run; as `build_cache`."""
    started_s = time.monotonic()
    device = resolve_device(run.teacher.device)
    folder = CacheFolder(run.build.out)
    folder.begin(build.identity, build.plan, build.passes)
    shards = range(build.plan.num_shards)
    lacking = {s: [t for t in tables_of(build.passes) if not folder.is_committed(t, s)] for s in shards}
    missing = {shard: tables for shard, tables in lacking.items() if tables}
    if missing:
        _build_missing(run, build, folder, missing, device, on_progress)
    manifest = folder.finish(build.passes)
    return _summary(run, build, manifest, build.plan.num_shards - len(missing), time.monotonic() - started_s)


def load_teacher(run: BuildRun, build: PreparedBuild, device: str) -> Teacher:
    """Load the teacher's weights onto a device."""
    return Teacher(load_backbone(build.checkpoint, DTYPES[run.teacher.dtype], device), build.capture)


def _build_missing(
    run: BuildRun,
    build: PreparedBuild,
    folder: CacheFolder,
    missing: dict[int, list[TableName]],
    device: str,
    on_progress: OnProgress | None,
) -> None:
    showings = {shard: sum(SHOWINGS[table] for table in tables) for shard, tables in missing.items()}
    num_views = sum(len(build.plan.rows_of(shard)) * n for shard, n in showings.items()) * build.views.num_views
    done = {"shards": build.plan.num_shards - len(missing), "views": 0, "bytes": 0}

    def report() -> None:
        if on_progress is not None:
            on_progress(BuildProgress(done["shards"], build.plan.num_shards, done["views"], num_views, done["bytes"]))

    with StopRequest() as stop:

        def on_views(count: int) -> None:
            done["views"] += count
            if stop.is_set:
                stop.raise_interrupted(
                    f"Stopped with {done['shards']} of {build.plan.num_shards} shards committed in {folder.root}. "
                    "Run the same command again to continue."
                )
            report()

        on_views(0)
        teacher = load_teacher(run, build, device)
        for shard in missing:
            done["bytes"] += build_shard(build, teacher, folder, shard, on_views).num_bytes
            done["shards"] += 1
            on_views(0)


def _summary(
    run: BuildRun, build: PreparedBuild, manifest: Manifest, shards_reused: int, elapsed_s: float
) -> BuildSummary:
    pairs, signals = manifest.totals["pairs"], manifest.totals[manifest.passes[0]]
    records = [record for table in manifest.shards.values() for record in table]
    return BuildSummary(
        cache=run.build.out,
        cache_id=manifest.identity.cache_id,
        passes=manifest.passes,
        num_shards=build.plan.num_shards,
        shards_reused=shards_reused,
        num_samples=int(pairs["samples"]),
        num_views=build.views.num_views,
        masked_positions=int(signals["masked_student_positions"]),
        cache_bytes=sum(record.size for record in records),
        coverage=pairs["covered_tokens"] / max(pairs["supervised_tokens"], 1),
        dropped={name.removeprefix("dropped."): int(count) for name, count in manifest.dropped.items()},
        skipped_rows=build.corpus.skipped,
        elapsed_s=elapsed_s,
    )
