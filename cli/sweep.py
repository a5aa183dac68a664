"""`tide-cache sweep`: train several students from one cache, in parallel or in turn, and compare them in one table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tide_cache.config.base import parse_assignments
from tide_cache.config.settings import Precision
from tide_cache.config.sweep import ArmConfig
from tide_cache.errors import RunFileError
from tide_cache.places import require_checkpoint

from .console import chatter_to_stderr, number, percent, print_json, print_table, say
from .options import DryRun, Json, Out, RunFile, Set, caches, given, objectives
from .progress import ProgressReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tide_cache.sweep.arms import Job
    from tide_cache.sweep.job import CheckedJob
    from tide_cache.sweep.run import JobEnd
    from tide_cache.sweep.table import SweepRow

FAILED = 1


def sweep(
    run_file: RunFile = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PIPELINE/ROW", help="Add an arm: a row of the paper's table. Repeatable.", show_default=False
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[:WEIGHT]+...",
            help="Add an arm by its objectives, for example ce+kl:0.5. Repeatable.",
            show_default=False,
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="Checkpoint that all students start from; replaces student.shape.", show_default=False),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="Cache that all students learn from. Repeatable, as for `train`.",
            metavar="FOLDER[=WEIGHT]",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, that is, of students per arm.")] = 1,
    held_out: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Held-out corpus on which all students are measured.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of held-out samples; by default all.", show_default=False)
    ] = None,
    dtype: Annotated[Precision, typer.Option(help="Precision of the weights while a student is measured.")] = "float32",
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Number of students trained in parallel, each on its own GPU or share of the cores."),
    ] = 1,
    out: Out = None,
    assignments: Set = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a student for every preset, set of objectives, or `[[sweep.arm]]` of the run file, and compare them.

    The first arm is the baseline. Run the same command again to continue: finished students are kept.
    """
    if limit is not None and held_out is None:
        raise RunFileError(f"--limit {limit}: found no --held-out, whose samples it counts; give both")
    if student is not None:
        require_checkpoint(student)
    flags = given({"student.model": student, **caches(cache or ()), "train.out": out})
    replaced = ["student.shape"] if student is not None else []
    replaced += ["data.cache", "data.mix", "data.corpus"] if cache else []
    overrides = {**dict.fromkeys(replaced), **flags, **parse_assignments(assignments or ())}
    with chatter_to_stderr():
        from tide_cache.sweep.arms import HeldOut, make_jobs
        from tide_cache.sweep.job import check_jobs, with_days
        from tide_cache.sweep.run import devices_of
        from tide_cache.sweep.table import summarise, write_document

        corpus = None if held_out is None else HeldOut(spec=held_out, folder=Path.cwd(), limit=limit, dtype=dtype)
        folder, todo = make_jobs(run_file, overrides, _arms(preset or (), objective or ()), seeds, corpus)
        _require_no_launcher()
        devices_of(todo, jobs)
        checked = check_jobs(todo)
        todo = with_days(todo, checked)
        if not dry_run:
            rows = summarise(_run(todo, jobs))
            document = write_document(folder, rows, held_out)
    if dry_run:
        _print_plan(todo, checked, json)
        return
    if json:
        print_json(document)
    else:
        _print_rows(rows)
        say(f"Students and sweep.json: {folder}")
    if failed := [f"{row.name}, seed {one.seed}: {one.error}" for row in rows for one in row.students if one.error]:
        for line in failed:
            say(f"error: {line}")
        raise typer.Exit(FAILED)


def _require_no_launcher() -> None:
    from tide_cache.training.distributed import find_world

    if (size := find_world().size) > 1:
        raise RunFileError(
            f"found {size} processes that a launcher has started. A sweep starts its own, one per student. "
            "Start it without a launcher, with --jobs, or train one student in several processes with `train`."
        )


def _arms(presets: "Sequence[str]", sets: "Sequence[str]") -> list[ArmConfig]:
    of_presets = [ArmConfig(name=name, preset=name) for name in presets]
    return of_presets + [ArmConfig(name=text, objective=tuple(objectives(text.split("+")))) for text in sets]


def _run(todo: "list[Job]", num_processes: int) -> "list[JobEnd]":
    """Run all jobs and show their progress; return the ends in the order of the jobs."""
    from tide_cache.sweep.run import run_jobs

    ends: dict[str, JobEnd] = {}
    with ProgressReport("sweep", "students") as report:

        def on_step(job: "Job", step: int, steps: int) -> None:
            report.update(len(ends), len(todo), f"{job.name}: step {step} of {steps}")

        for end in run_jobs(todo, num_processes, on_step):
            ends[end.job.name] = end
            report.update(len(ends), len(todo), f"{end.job.name}: {'failed' if end.error else 'done'}")
    return [ends[job.name] for job in todo]


def _print_plan(todo: "list[Job]", checked: "list[CheckedJob]", json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "arm": job.arm,
            "seed": job.seed,
            "state": found.state,
            "samples": found.prepared.source.groups.num_samples,
            "steps": found.prepared.steps,
            "objectives": [entry.kind for entry in job.run.objective],
            "run": job.run.model_dump(mode="json"),
        }
        for job, found in zip(todo, checked, strict=True)
    ]
    if json:
        print_json({"students": rows})
        return
    lines = [
        (row["arm"], str(row["seed"]), " + ".join(row["objectives"]), row["state"], number(row["samples"]),
         number(row["steps"]))
        for row in rows
    ]  # fmt: skip
    print_table("Students", ("arm", "seed", "objectives", "state", "samples", "steps"), lines, text_columns=range(4))
    say("Checked; no model was loaded and nothing was written.")


def _print_rows(rows: "Sequence[SweepRow]") -> None:
    several = max(len(row.students) for row in rows) > 1
    title = "Students" + (": mean ± deviation over seeds" if several else "")
    columns = ("arm", "trained", "held-out NLL (nats per token)", f"minus {rows[0].name}, paired", "seeds better",
               "token accuracy")  # fmt: skip
    print_table(title, columns, [_row(row) for row in rows])


def _row(row: "SweepRow") -> tuple[str, ...]:
    trained = sum(student.error is None for student in row.students)
    against = row.nll
    difference = None if against is None else against.difference
    return (
        row.name,
        f"{trained} of {len(row.students)}",
        "-" if against is None else str(against.value),
        "" if difference is None else str(difference),
        "" if against is None or difference is None else f"{against.num_better} of {against.num_paired}",
        percent(None if row.accuracy is None else row.accuracy.mean),
    )
