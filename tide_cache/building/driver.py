"""Stage 1 as a whole: find what is missing, let an executor's workers build it, then write the manifest."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from tide_cache.building.estimate import require_disk
from tide_cache.building.executors import Executor, InProcess
from tide_cache.building.prepare import prepare_build
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.published_pairs import has_all_pairs, known_corpus, publish_pairs
from tide_cache.building.run_record import keep_record, require_same_tokens
from tide_cache.building.shard import SHOWINGS, BuiltShard
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.config.settings import PassName
from tide_cache.interruption import StopRequest
from tide_cache.locations import CachePath
from tide_cache.manifest import CacheFolder, Manifest, record_path, tables_of
from tide_cache.manifest.manifest import table_folder
from tide_cache.progress import doing
from tide_cache.shards import TableName, files_of, reads_at_once

__all__ = [
    "BuildProgress",
    "BuildSummary",
    "OnProgress",
    "PartialBuild",
    "build_cache",
    "build_prepared",
    "build_shards",
    "load_teacher",
    "prepare_with_room",
]


STOP_WITHIN_S = 8.0
"""Loading a teacher or encoding a shard may take longer; both can be cut off anywhere."""


@dataclass(frozen=True)
class BuildProgress:
    """Progress of a build; counts include shards that already existed.

    Attributes:
        shards_done: Number of shards committed.
        num_shards: Shards that this run is to leave committed.
        views_done: Views shown to the teacher by this run's workers, also for shards not yet committed; views
            lost with a dead worker are subtracted again.
        num_views: Views this run has to show, at most; the compdemo pass shows most of them twice, in parts.
        bytes_written: Bytes written by this run.
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

    cache: CachePath
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


@dataclass(frozen=True)
class PartialBuild:
    """What a run leaves behind that built its part of a cache, while other shards are missing.

    Attributes:
        cache: Folder of the cache.
        cache_id: Its identity in 16 hex digits.
        passes: What was captured.
        num_shards: Shards planned.
        shards_committed: How many of them exist, whoever built them.
        first_shard: The first of this run.
        end_shard: One past its last.
        shards_reused: How many of this run's shards already existed.
        elapsed_s: Seconds that this run took.
    """

    cache: CachePath
    cache_id: str
    passes: tuple[PassName, ...]
    num_shards: int
    shards_committed: int
    first_shard: int
    end_shard: int
    shards_reused: int
    elapsed_s: float


def build_cache(run: BuildRun, on_progress: OnProgress | None = None, executor: Executor | None = None) -> BuildSummary:
    """Build a cache, or what is missing of it.

    Args:
        run: The run file.
        on_progress: Called after every teacher forward and every shard.
        executor: Where to build; by default in this process.

    Raises:
        Interrupted: A stop was asked for; committed shards stay, the rest is computed by the same command.
        TideCacheError: See `prepare_build` and `build_shard`.
    """
    executor = executor or InProcess()
    executor.check(run)  # before weights are fetched and hashed, and rows are paired
    return build_prepared(run, prepare_with_room(run), on_progress, executor)


def prepare_with_room(
    run: BuildRun, choose: Callable[[int], range] = range, check_disk: bool = True, is_verified: bool = False
) -> PreparedBuild:
    """Check a build, and whether it fits on the disk, before the teacher's weights are fetched and hashed.

    Args:
        run: The run file.
        choose: Returns the shards to build, given the number of all.
        check_disk: As for `build_shards`.
        is_verified: Read the corpus, also where its samples are published and its files are those that they are of.

    Raises:
        WriteError: It may not fit on the disk.
        TideCacheError: See `prepare_build`.
    """

    def require_room(build: PreparedBuild) -> None:
        if check_disk:
            _require_room(run, build, choose(build.plan.num_shards))

    return prepare_build(run, before_weights=require_room, known=None if is_verified else known_corpus(run))


def _require_room(run: BuildRun, build: PreparedBuild, shards: range) -> None:
    num_committed = _num_committed(CacheFolder(run.build.out), build, shards)
    if num_committed < len(shards):
        require_disk(build, run.build.out, len(shards) - num_committed)


def build_prepared(
    run: BuildRun,
    build: PreparedBuild,
    on_progress: OnProgress | None = None,
    executor: Executor | None = None,
    is_verified: bool = False,
) -> BuildSummary:
    """Build the cache of a checked run; as `build_cache`, and `build_shards` for `is_verified`."""
    all_shards = range(build.plan.num_shards)
    summary = build_shards(run, build, all_shards, on_progress, executor, is_verified=is_verified)
    assert isinstance(summary, BuildSummary), "all shards were asked for"
    return summary


def build_shards(
    run: BuildRun,
    build: PreparedBuild,
    shards: range,
    on_progress: OnProgress | None = None,
    executor: Executor | None = None,
    check_disk: bool = True,
    is_verified: bool = False,
) -> BuildSummary | PartialBuild:
    """Build some shards of a cache; whichever run completes the plan writes the manifest.

    Args:
        run: The run file.
        build: The same, checked.
        shards: Which shards; any number of runs may build in one folder at once.
        on_progress: As for `build_cache`.
        executor: As for `build_cache`.
        check_disk: Whether to refuse a build that may not fit on the disk.
        is_verified: Hash the files of shards that are committed, in place of trusting their records.
    """
    started_s = time.monotonic()
    executor = executor or InProcess()
    executor.check(run)
    folder = CacheFolder(run.build.out)
    folder.require_fits(build.identity, build.plan)
    require_same_tokens(run, build)
    if check_disk:
        _require_room(run, build, shards)
    folder.begin(build.identity, build.plan, build.passes)
    lacking = _lacking(folder, tables_of(build.passes), shards, is_verified)
    if lacking:
        folder.require_exclusive()
    keep_record(run, build)
    if build.paired is not None and (lacking or not has_all_pairs(folder)):
        with StopRequest(STOP_WITHIN_S) as stop:
            publish_pairs(run, build, folder, shards.start, partial(_stop_here, stop, folder))
        lacking = {shard: [table for table in tables if table != "pairs"] for shard, tables in lacking.items()}
    missing = {shard: tables for shard, tables in lacking.items() if tables}
    if missing:
        with StopRequest(STOP_WITHIN_S) as stop:
            log = _Log(build, folder, len(shards), missing, stop, on_progress)
            log.on_views(0)
            executor.build(run, build, list(missing), log)
        folder.begin(build.identity, build.plan, build.passes)  # clears what dead workers left behind
    num_reused, elapsed_s = len(shards) - len(missing), time.monotonic() - started_s
    num_committed = _num_committed(folder, build, range(build.plan.num_shards))
    if num_committed == build.plan.num_shards:
        return _summary(run, build, folder.finish(build.passes), num_reused, elapsed_s)
    return PartialBuild(
        cache=run.build.out,
        cache_id=build.identity.cache_id,
        passes=build.passes,
        num_shards=build.plan.num_shards,
        shards_committed=num_committed,
        first_shard=shards.start,
        end_shard=shards.stop,
        shards_reused=num_reused,
        elapsed_s=elapsed_s,
    )


def _lacking(
    folder: CacheFolder, tables: Sequence[TableName], shards: range, is_hashed: bool
) -> dict[int, list[TableName]]:
    """Return the tables that shards lack, by shard.

    Hashing uses all cores, since it runs outside of Python; of a store many records are asked for at once.
    """

    def is_committed(place: tuple[TableName, int]) -> bool:
        return folder.is_committed(*place, is_hashed)

    places = [(table, shard) for shard in shards for table in tables]
    lacking: dict[int, list[TableName]] = {}
    num_threads = max(reads_at_once(folder.root), len(os.sched_getaffinity(0)) if is_hashed else 1)
    with (
        doing("Checking the shards that are there", len(places), "files") as phase,
        ThreadPoolExecutor(num_threads, "check") as pool,
    ):
        for (table, shard), is_there in zip(places, pool.map(is_committed, places), strict=True):
            if not is_there:
                lacking.setdefault(shard, []).append(table)
            phase.advance()
    return lacking


def _stop_here(stop: StopRequest, folder: CacheFolder) -> None:
    if stop.is_set:
        stop.raise_interrupted(
            f"Stopped before the first forward; the pairs that are published in {folder.root} stay. Run the same "
            "command again to continue."
        )


class _Log:
    """Adds up the workers' reports, tells the user, and stops the build when a signal asked for it."""

    def __init__(
        self,
        build: PreparedBuild,
        folder: CacheFolder,
        num_shards: int,
        missing: Mapping[int, Sequence[TableName]],
        stop: StopRequest,
        on_progress: OnProgress | None,
    ) -> None:
        showings = {shard: sum(SHOWINGS[table] for table in tables) for shard, tables in missing.items()}
        num_views = sum(_most_samples(build, shard) * n for shard, n in showings.items()) * build.identity.stored_views
        self._folder, self._stop, self._on_progress = folder, stop, on_progress
        self._num_shards, self._num_views = num_shards, num_views
        self._shards, self._views, self._bytes = num_shards - len(missing), 0, 0

    def on_views(self, count: int) -> None:
        """Hear that views were captured; see `BuildLog`."""
        self._views += count
        if self._stop.is_set:
            self._stop.raise_interrupted(
                f"Stopped with {self._shards} of {self._num_shards} shards committed in {self._folder.root}. "
                "Run the same command again to continue."
            )
        if self._on_progress is not None:
            self._on_progress(BuildProgress(self._shards, self._num_shards, self._views, self._num_views, self._bytes))

    def on_shard(self, built: BuiltShard) -> None:
        """Hear that a shard is committed; see `BuildLog`."""
        self._bytes += built.num_bytes
        self._shards += 1
        self.on_views(0)


def _most_samples(build: PreparedBuild, shard: int) -> int:
    """Return the number of samples of a shard, or of its rows where they were paired elsewhere."""
    if build.paired is None:
        return len(build.plan.rows_of(shard))
    return build.paired.starts[shard + 1] - build.paired.starts[shard]


def _num_committed(folder: CacheFolder, build: PreparedBuild, shards: range) -> int:
    """Count shards whose records are there; listing is cheap, and `finish` reads them."""
    tables, files = tables_of(build.passes), files_of(folder.root)
    names = {table: set(files.list_folder(table_folder(folder.root, table))) for table in tables}
    return sum(all(record_path(folder.root, table, shard).name in names[table] for table in tables) for shard in shards)


def _summary(
    run: BuildRun, build: PreparedBuild, manifest: Manifest, shards_reused: int, elapsed_s: float
) -> BuildSummary:
    pairs, signals = manifest.totals["pairs"], manifest.totals[manifest.passes[0]]
    return BuildSummary(
        cache=run.build.out,
        cache_id=manifest.identity.cache_id,
        passes=manifest.passes,
        num_shards=build.plan.num_shards,
        shards_reused=shards_reused,
        num_samples=int(pairs["samples"]),
        num_views=build.identity.stored_views,
        masked_positions=int(signals["masked_student_positions"]),
        cache_bytes=manifest.cache_bytes,
        coverage=pairs["covered_tokens"] / max(pairs["supervised_tokens"], 1),
        dropped={name.removeprefix("dropped."): int(count) for name, count in manifest.dropped.items()},
        skipped_rows=build.corpus.skipped,
        elapsed_s=elapsed_s,
    )
