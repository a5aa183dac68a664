"""`tide-cache plan`: predict what a build will take, before you pay for it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tide_cache.building.budget import Budget
from tide_cache.config.build import BuildRun
from tide_cache.errors import RunFileError
from tide_cache.wording import shared_views

from .console import chatter_to_stderr, number, percent, print_fields, print_json, print_table, say, size
from .options import (
    AllowUntrained,
    BadRow,
    Dataset,
    Json,
    Out,
    Passes,
    RunFile,
    Set,
    StudentTokenizer,
    Teacher,
    read_build_run,
)

if TYPE_CHECKING:
    from tide_cache.building.planning import CachePlan


def plan(
    run_file: RunFile = None,
    teacher: Teacher = None,
    student: StudentTokenizer = None,
    dataset: Dataset = None,
    on_bad_row: BadRow = None,
    out: Out = None,
    passes: Passes = None,
    allow_untrained: AllowUntrained = False,
    sample_rows: Annotated[int, typer.Option(min=1, help="Number of rows to measure, spread over the corpus.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Number of devices like this one to predict the time for.")] = 1,
    epochs: Annotated[
        int, typer.Option(min=1, help="Epochs per student run, for the break-even; the paper trains 10.")
    ] = 10,
    budget: Annotated[
        float,
        typer.Option(min=0, help="Time limit in seconds for the whole command; a short one makes the sample smaller."),
    ] = 60.0,
    assignments: Set = None,
    json: Json = False,
) -> None:
    """Predict shards, bytes, teacher hours, and when the cache becomes cheaper than distilling online.

    Loads the teacher and runs a few of the build's forwards on this device. Writes nothing. Reads the whole corpus
    to count its rows, and pairs at most a few thousand of them.
    """
    given = (teacher, student, dataset, on_bad_row, out, passes, allow_untrained)
    run = read_build_run(run_file, assignments, *given)
    if run.teacher.topk is not None:
        raise RunFileError(
            "teacher.topk: found a file of an engine, which costs no teacher time, so that there is nothing to "
            "predict; tide-cache import-topk --dry-run says how large the cache will be"
        )
    clock = Budget(budget)
    say(f"Measuring up to {sample_rows} rows and a few forwards, in about {budget:g} s (--budget) ...")
    with chatter_to_stderr():
        from tide_cache.building.executors import InProcess
        from tide_cache.building.planning import plan_build
        from tide_cache.building.prepare import prepare_build

        InProcess().check(run)  # as a build does: the teacher is run here
        build = prepare_build(run, weights="unread", pairs_all=False)
        found = plan_build(run, build, sample_rows, workers, epochs, clock)
    if json:
        print_json(asdict(found))
    else:
        _print_plan(run, found)
    if found.is_cut:
        say(
            f"--budget {budget:g} s ended the sample: counts come from {number(found.rows_counted)} rows, sizes from "
            f"{number(found.views_captured)} views, times from {number(found.batches_timed)} forwards; loading the "
            f"teacher took {found.load_s:.0f} s. A longer budget is more accurate."
        )
    if found.fits is False:
        say(
            f"{run.build.out}: found {size(found.free_bytes or 0)} free, the cache takes about "
            f"{size(found.disk_bytes)}. Free space, give build.out a larger disk, or keep less (signals.top_k, "
            "views.num_views)."
        )


def _print_plan(run: BuildRun, found: "CachePlan") -> None:
    shared = shared_views(run.teacher.context, run.views.num_views)
    online = found.online
    free = "an object store" if found.free_bytes is None else f"{size(found.free_bytes)} free"
    per_position = found.cache_bytes / max(found.masked_positions, 1)
    verdict = "" if found.fits is None else (": fits" if found.fits else ": DOES NOT FIT")
    print_fields(
        f"Plan, from {number(found.rows_counted)} of {number(found.num_rows)} rows, views of "
        f"{number(found.rows_sampled)} and "
        f"{number(found.views_captured)} views captured",
        [
            ("shards", number(found.num_shards)),
            ("samples", f"{number(found.num_samples)}, {percent(found.dropped)} of rows dropped"),
            ("views", f"{found.num_views} of each sample{shared}, passes: {', '.join(found.passes)}"),
            ("masked positions", number(found.masked_positions)),
            ("coverage", f"{percent(found.coverage)} of supervised tokens are in chunks"),
            ("size", f"{size(found.cache_bytes)}, {per_position:.1f} B per masked position"),
            ("disk", f"{size(found.disk_bytes)} with records; {free}{verdict}"),
            ("teacher", f"{_hours(found.teacher_hours)} on one {found.device}, {number(found.tokens_per_second, 0)} "
             f"tokens/s (± {percent(found.spread)} over {found.batches_timed} timed forwards)"),
            ("build", f"{_hours(found.hours)} on one device, {_hours(found.hours_on_workers)} on {found.workers}; "
             f"{_hours(found.other_hours)} of it pairing and encoding, {found.load_s:.0f} s loading"),
            ("online", f"{_hours(online.hours_per_run)} of teacher for each student run: {online.epochs} epochs x "
             f"{number(found.num_samples)} samples x {online.forwards_per_step} forwards x "
             f"{number(online.tokens_per_forward, 0)} tokens, one view at a time"),
            ("break-even", f"after {online.break_even_runs:.2f} student runs: teacher hours of the capture / teacher "
             "hours of an online run"),
        ],
    )  # fmt: skip
    rows = [
        (table, name, size(count), percent(count / max(found.cache_bytes, 1)))
        for table, columns in found.bytes_by_column.items()
        for name, count in columns.items()
    ]
    by_signal = [
        (name, signal, size(count), percent(count / max(found.cache_bytes, 1)))
        for name, of_pass in found.bytes_by_signal.items()
        for signal, count in of_pass.items()
    ]
    print_table("Bytes by signal", ("pass", "signal", "size", "share"), by_signal, text_columns=(0, 1))
    print_table("Bytes by column", ("table", "column", "size", "share"), rows, text_columns=(0, 1))


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"
