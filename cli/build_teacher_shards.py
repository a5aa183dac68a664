"""`tide-cache build-teacher-shards`: stage 1."""

import os
import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tide_cache.building.shard_range import check_shard_range, shard_range
from tide_cache.config.build import BuildRun
from tide_cache.errors import RunFileError
from tide_cache.locations import CachePath
from tide_cache.wording import shared_views

from .console import chatter_to_stderr, number, percent, print_fields, print_json, print_text, say, size
from .options import (
    AllowUntrained,
    BadRow,
    Dataset,
    DryRun,
    Json,
    Out,
    Passes,
    RunFile,
    Set,
    StudentTokenizer,
    Teacher,
    Workers,
    read_build_run,
)
from .progress import ProgressReport
from .run_toml import run_toml

if TYPE_CHECKING:
    from tide_cache.building.driver import BuildProgress, BuildSummary, PartialBuild
    from tide_cache.building.executors import Executor

SHOWN_ROWS = 5


ExecutorName = Literal["process", "ray"]
"""The kind of worker."""


def build_teacher_shards(
    run_file: RunFile = None,
    teacher: Teacher = None,
    student: StudentTokenizer = None,
    dataset: Dataset = None,
    on_bad_row: BadRow = None,
    out: Out = None,
    passes: Passes = None,
    allow_untrained: AllowUntrained = False,
    assignments: Set = None,
    workers: Workers = None,
    executor: Annotated[
        ExecutorName | None,
        typer.Option(help="Run workers as processes on this machine, or as Ray actors.", show_default="process"),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Head of a running Ray cluster; by default a local one is started.",
            show_default=False,
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            "--shard-range",
            metavar="A:B|K/N|auto",
            help="Build only shards A to B - 1, or part K of N, or (auto) the part that a Slurm array, or RANK "
            "and WORLD_SIZE, assign to this process. Many runs can share a folder.",
            show_default=False,
        ),
    ] = None,
    check_disk: Annotated[
        bool, typer.Option("--disk-check/--no-disk-check", help="Refuse a build that may not fit on the disk.")
    ] = True,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read the corpus again and hash the shards that are there, in place of trusting what an earlier run "
            "recorded.",
        ),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run the teacher once over masked views of a corpus and write what it said as a cache.

    Run the same command again to continue an interrupted build.
    """
    given = (teacher, student, dataset, on_bad_row, out, passes, allow_untrained)
    run = read_build_run(run_file, assignments, *given)
    if shards is not None:
        check_shard_range(shards, os.environ)
    if dry_run:
        tell_dry_run(run, json)
        return
    with chatter_to_stderr():
        hands = _executor(workers or 1, executor or "process", ray_address)
        hands.check(run)

    def choose(num_shards: int) -> range:
        return range(num_shards) if shards is None else shard_range(shards, num_shards, os.environ)

    build_and_tell(run, hands, choose, check_disk, json, verify)


def build_and_tell(
    run: BuildRun,
    hands: "Executor",
    choose: Callable[[int], range],
    check_disk: bool,
    json: bool,
    is_verified: bool = False,
) -> None:
    """Build some shards of a cache, show how far it is, and print what there is in the end.

    Args:
        run: The run file.
        hands: Where to build.
        choose: Returns the shards to build, given the number of all.
        check_disk: Refuse a build that may not fit on the disk.
        json: Print one JSON document.
        is_verified: Trust nothing that an earlier run recorded.
    """
    with chatter_to_stderr():
        from tide_cache.building.driver import PartialBuild, build_shards, prepare_with_room

        build = prepare_with_room(run, choose, check_disk, is_verified)
        for remark in build.remarks:
            say(remark)
        chosen = choose(build.plan.num_shards)
        with ProgressReport("build", "views") as report:
            summary = build_shards(
                run, build, chosen, lambda progress: _show(report, progress), hands, check_disk, is_verified
            )
    if json:
        print_json({**asdict(summary), "remarks": build.remarks, "is_complete": not isinstance(summary, PartialBuild)})
    elif isinstance(summary, PartialBuild):
        _print_part(summary)
    else:
        _print_summary(run, summary)


def _executor(workers: int, name: ExecutorName, ray_address: str | None) -> "Executor":
    """Choose an executor.

    Raises:
        RunFileError: `--ray-address` without `--executor ray`.
    """
    from tide_cache.building.executors import InProcess, LocalProcesses, RayActors

    if name == "ray":
        return RayActors(workers, ray_address)
    if ray_address is not None:
        raise RunFileError(
            f"--ray-address {ray_address}: only Ray actors have one; add --executor ray, or leave it out"
        )
    return LocalProcesses(workers) if workers > 1 else InProcess()


def tell_dry_run(run: BuildRun, json: bool) -> None:
    """Check a build, and print the resolved run file and a rough estimate.

    Args:
        run: The run file.
        json: Print one JSON document.
    """
    with chatter_to_stderr():
        from tide_cache.building.estimate import estimate_build
        from tide_cache.building.prepare import prepare_build
        from tide_cache.manifest import CacheFolder

        build = prepare_build(run, weights="stated")
        is_known = build.identity.teacher.get("weights_sha256", "") is not None
        if is_known:
            CacheFolder(run.build.out).require_fits(build.identity, build.plan)
        estimate = estimate_build(build)
    day = build.identity.pairing.date
    run = run if day is None else run.model_copy(update={"pairing": run.pairing.model_copy(update={"date": day})})
    cache_id = build.identity.cache_id if is_known else None
    named = cache_id or "(its id is known once the weights are here)"
    for remark in build.remarks:
        say(remark)
    if json:
        document = {"run": run.model_dump(mode="json"), "cache_id": cache_id, "remarks": build.remarks}
        print_json({**document, "estimate": asdict(estimate)})
        return
    print_text(
        f"# cache {named}: {number(estimate.num_rows)} rows in {number(estimate.num_shards)} shards, "
        f"{build.identity.stored_views} views each{shared_views(run.teacher.context, run.views.num_views)}\n"
        f"# about {number(estimate.masked_positions)} masked positions, at most about {size(estimate.cache_bytes)}; "
        f"rough, from {number(estimate.rows_sampled)} rows, {percent(estimate.coverage)} of whose supervised tokens "
        f"are in chunks\n{run_toml(run)}"
    )
    say("Checked; no model was loaded and nothing was written.")


def _show(report: ProgressReport, progress: "BuildProgress") -> None:
    shards = f"shard {progress.shards_done} of {progress.num_shards}"
    report.update(progress.views_done, progress.num_views, f"{shards}, {size(progress.bytes_written)} written")


def _print_summary(run: BuildRun, summary: "BuildSummary") -> None:
    shared = shared_views(run.teacher.context, run.views.num_views)
    fields = [
        ("cache", str(summary.cache)),
        ("cache id", summary.cache_id),
        ("passes", ", ".join(summary.passes)),
        ("shards", f"{number(summary.num_shards)} ({number(summary.shards_reused)} already existed)"),
        ("samples", f"{number(summary.num_samples)}, {summary.num_views} views each{shared}"),
        ("masked positions", number(summary.masked_positions)),
        ("coverage", f"{percent(summary.coverage)} of supervised tokens are in chunks"),
        ("size", f"{size(summary.cache_bytes)}, {_bytes_per_position(summary)} per masked position"),
        ("time", f"{summary.elapsed_s:.1f} s"),
        *((f"dropped: {reason}", number(count)) for reason, count in summary.dropped.items()),
    ]
    if summary.skipped_rows:
        fields.append(("bad rows left out", number(len(summary.skipped_rows))))
    print_fields("Built", fields)
    for row in summary.skipped_rows[:SHOWN_ROWS]:
        say(f"left out: {row}")
    say("Next:\n  " + _next_command(run, summary.cache))


def _print_part(summary: "PartialBuild") -> None:
    built = summary.end_shard - summary.first_shard
    fields = [
        ("cache", str(summary.cache)),
        ("cache id", summary.cache_id),
        ("this run's shards", f"{number(built)} ({number(summary.shards_reused)} already existed)"),
        ("committed", f"{number(summary.shards_committed)} of {number(summary.num_shards)} shards"),
        ("time", f"{summary.elapsed_s:.1f} s"),
    ]
    print_fields("Built a part", fields)
    say(
        f"{summary.shards_committed} of {summary.num_shards} shards committed. The run that completes the "
        "cache writes the manifest."
    )


def _bytes_per_position(summary: "BuildSummary") -> str:
    return f"{summary.cache_bytes / max(summary.masked_positions, 1):.1f} B"


def _next_command(run: BuildRun, cache: CachePath) -> str:
    from tide_cache.manifest import Manifest

    identity = Manifest.load(cache).identity
    is_mostly_shared = identity.pairing.shared_vocab_size > 0.9 * identity.vocab_sizes.student
    objective = "kl" if is_mostly_shared and "topk" in run.signals.kinds else "calm"
    return (
        f"tide-cache train --student CHECKPOINT --cache {shlex.quote(str(cache))} --objective {objective} "
        "--out runs/student --set train.epochs=10"
    )
