"""`tide-cache train`: stage 2, in this process, in several local ones, or in one that a launcher has started."""

import os
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tide_cache.config.base import load_run_file, parse_assignments
from tide_cache.config.settings import OnBadRow, Reporter, Semantics
from tide_cache.config.train import TrainRun
from tide_cache.launchers import is_first
from tide_cache.places import require_cache, require_checkpoint

from .console import chatter_to_stderr, number, print_fields, print_json, print_text, say
from .launch import launch, one_voice, require_gpus, require_no_launcher
from .options import (
    BadRow,
    Dataset,
    DryRun,
    Json,
    Out,
    Private,
    PushToHub,
    RunFile,
    Set,
    caches,
    complete_objective,
    complete_preset,
    corpus_flags,
    given,
    objectives,
)
from .progress import ProgressReport
from .push import find_destination, push_finished
from .run_toml import run_toml

if TYPE_CHECKING:
    from tide_cache.training.metrics import StepMetrics
    from tide_cache.training.prepare import Prepared
    from tide_cache.training.run import TrainSummary


def train_student(
    run_file: RunFile = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint to start from: a folder or a hub name; replaces student.shape.", show_default=False
        ),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="Cache to learn from, instead of a corpus. Repeatable, to mix several by weight: a=2, b=1.",
            metavar="FOLDER[=WEIGHT]",
            show_default=False,
        ),
    ] = None,
    dataset: Dataset = None,
    on_bad_row: BadRow = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[:WEIGHT]",
            help="Objective, optionally with a weight: ce, kl:0.5. Replaces the run file's objectives. Repeatable.",
            autocompletion=complete_objective,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="PIPELINE/ROW",
            help="Objectives of a row of the paper's table, e.g. cross/tide-cross.",
            show_default=False,
            autocompletion=complete_preset,
        ),
    ] = None,
    semantics: Annotated[
        Semantics | None,
        typer.Option(help="Weights and divisors: as published, or corrected (the default).", show_default=False),
    ] = None,
    out: Out = None,
    assignments: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in the output folder.")
    ] = False,
    report_to: Annotated[
        Reporter | None,
        typer.Option(help="Where to send metrics, besides metrics.jsonl; by default nowhere.", show_default=False),
    ] = None,
    num_gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Start this many processes on this machine; also works on CPUs.", show_default=False),
    ] = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a student from a cache, or from a corpus with the denoising loss alone.

    Under torchrun, DeepSpeed's launcher or `srun` the process joins the others, and only the first one prints.
    """
    flags = _flags(student, cache, dataset, on_bad_row, objective, preset, semantics, out, report_to)
    with one_voice():
        destination = find_destination(push_to_hub, private)
        run = load_run_file(TrainRun, run_file, {**flags, **parse_assignments(assignments or ())})
        if run.student.model is not None:
            require_checkpoint(run.student.model)
        if run.data.cache is not None:
            require_cache(run.data.cache)
    if num_gpus is not None:
        require_no_launcher(num_gpus)
        require_gpus(num_gpus, run.train.device)
    if dry_run:
        _dry_run(run, resume, num_gpus, json)
        return
    if destination is not None and is_first(os.environ):
        with one_voice():
            destination.claim()
    if num_gpus is not None and num_gpus > 1:
        options = [name for name, is_given in (("--resume", resume), ("--json", json)) if is_given]
        if code := launch(run, num_gpus, options):
            raise typer.Exit(code)
    else:
        _train(run, resume, json)
    if destination is not None and is_first(os.environ):
        say(f"Uploaded to {push_finished(run.train.out / 'model', destination)}")


def _flags(
    student: str | None,
    cache: list[str] | None,
    dataset: str | None,
    on_bad_row: OnBadRow | None,
    objective: list[str] | None,
    preset: str | None,
    semantics: Semantics | None,
    out: str | None,
    report_to: Reporter | None,
) -> dict[str, Any]:
    """Collect the options; a source of data or weights replaces the run file's other one."""
    flags = {
        "student.model": student,
        **caches(cache or ()),
        **corpus_flags("data.corpus", dataset, on_bad_row),
        "objective": objectives(objective) if objective else None,
        "preset": preset,
        "semantics": semantics,
        "train.out": out,
        "train.report_to": report_to,
    }
    replaced = []
    if student is not None:
        replaced.append("student.shape")
    if preset is not None:
        replaced.append("objective")
    if bool(cache) != (dataset is not None):
        replaced += ["data.cache", "data.mix"] + ([] if dataset is not None else ["data.corpus"])
    return {**dict.fromkeys(replaced), **given(flags)}


def _dry_run(run: TrainRun, resume: bool, num_gpus: int | None, json: bool) -> None:
    with chatter_to_stderr():
        from tide_cache.training.distributed import World, find_world
        from tide_cache.training.prepare import prepare

        world = World(0, num_gpus, 0) if num_gpus is not None else find_world()
        prepared = prepare(run, world, resume)
    if not world.is_first:
        return
    num_samples = prepared.source.groups.num_samples
    if json:
        print_json({"run": run.model_dump(mode="json"), "samples": num_samples, "steps": prepared.steps})
        return
    epochs = prepared.steps * run.train.global_batch / num_samples
    print_text(
        f"# {number(prepared.steps)} steps over {number(num_samples)} samples: {epochs:.2f} epochs\n{run_toml(run)}"
    )
    for remark in prepared.remarks:
        say(remark)
    say("Checked; no model was loaded and nothing was written.")


def _train(run: TrainRun, resume: bool, json: bool) -> None:
    with chatter_to_stderr():
        from tide_cache.training.distributed import find_world
        from tide_cache.training.run import train

        said = list[str]()
        with one_voice():
            world = find_world()
            if not world.is_first:
                train(run, resume=resume)
                return

            def say_all(prepared: "Prepared") -> None:
                for remark in prepared.remarks:
                    say(remark)
                said.extend(prepared.remarks)

            with ProgressReport("train", "steps") as report:
                summary = train(
                    run,
                    resume=resume,
                    on_step=lambda metrics, steps: _show(report, metrics, steps),
                    on_prepared=say_all,
                )
    for remark in summary.remarks:
        if remark not in said:
            say(remark)
    if json:
        print_json(asdict(summary))
    else:
        _print_summary(summary)


def _show(report: ProgressReport, metrics: "StepMetrics", steps: int) -> None:
    report.since(metrics.step - 1, metrics.elapsed_s)  # the first step is always shown
    report.update(metrics.step, steps, f"{_losses(metrics)}, {metrics.tokens_per_s:,.0f} tokens/s")


def _losses(metrics: "StepMetrics") -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.losses.items())


def _print_summary(summary: "TrainSummary") -> None:
    fields = [
        ("model", str(summary.model)),
        ("metrics", str(summary.metrics)),
        ("steps", number(summary.steps)),
    ]
    if summary.last is not None:
        fields += [
            ("epochs", f"{summary.last.epoch:.2f}"),
            ("last losses", f"{_losses(summary.last)} (nats)"),
            ("time", f"{summary.last.elapsed_s:.1f} s, {summary.last.tokens_per_s:,.0f} tokens/s"),
        ]
    print_fields("Trained", fields)
    say(f"Next:\n  tide-cache eval {shlex.quote(str(summary.model))} --dataset HELD_OUT.jsonl")
