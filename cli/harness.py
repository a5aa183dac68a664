"""The part of `tide-cache eval` that scores a model and its baseline on tasks, by lm-evaluation-harness."""

import os
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tide_cache.errors import RunFileError

from .checkpoints import OpenModel, open_model
from .console import chatter_to_stderr, print_fields, print_json, print_table, say
from .launch import one_voice
from .progress import ProgressReport

if TYPE_CHECKING:
    from tide_cache.evaluation.harness.sandbox import Sandbox
    from tide_cache.evaluation.harness.scoring import Contestant
    from tide_cache.training.company import Company
    from tide_cache.training.distributed import World

DEFAULT_OUT = Path("eval-output")


class ThinkPrefix(StrEnum):
    """What stands before an answer."""

    template = "template"
    empty = "empty"
    none = "none"


class CodeIsolation(StrEnum):
    """How programs of the model are shut in."""

    namespaces = "namespaces"
    limits = "limits"


class Dtype(StrEnum):
    """Of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


_PANEL = "Tasks (--suite, --tasks)"

Suite = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Score on a suite of tasks: tide.", show_default=False, rich_help_panel=_PANEL),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Tasks of the suite or, without one, any of lm-eval by name or YAML file; joined by commas.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
TaskData = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Read task data here, not from the hub.", rich_help_panel=_PANEL),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="CHECKPOINT",
        help="Scored beside the model; by default what it was trained from.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
NoBaseline = Annotated[bool, typer.Option("--no-baseline", help="Score the model alone.", rich_help_panel=_PANEL)]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code-execution", help="Run programs that the models write, shut in.", rich_help_panel=_PANEL),
]
Isolation = Annotated[
    CodeIsolation,
    typer.Option(
        help="namespaces: no network, closed files. limits: time and memory alone, for throw-away machines.",
        rich_help_panel=_PANEL,
    ),
]
NumSamples = Annotated[
    int, typer.Option(min=1, help="Sets of masked tokens per block of a likelihood.", rich_help_panel=_PANEL)
]
Think = Annotated[
    ThinkPrefix,
    typer.Option(
        help="Before an answer: what the template writes with thinking off, an empty think block, or none.",
        rich_help_panel=_PANEL,
    ),
]
UseTemplate = Annotated[
    bool, typer.Option("--chat-template/--no-chat-template", help="Ask as in a chat.", rich_help_panel=_PANEL)
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Sequences per forward; by default the suite's.", show_default=False, rich_help_panel=_PANEL
    ),
]
DtypeOption = Annotated[Dtype, typer.Option(help="Of the weights.", rich_help_panel=_PANEL)]


@dataclass(frozen=True)
class HarnessFlags:
    """Options of `eval` that concern tasks, as given."""

    checkpoint: str
    suite: str | None
    tasks: str | None
    task_data: Path | None
    baseline: str | None
    no_baseline: bool
    allow_code_execution: bool
    code_isolation: CodeIsolation
    num_samples: int
    think_prefix: ThinkPrefix
    chat_template: bool
    batch_size: int | None
    dtype: str
    block_size: int | None
    limit: int | None
    seed: int
    out: Path
    json: bool


def score_on_tasks(flags: HarnessFlags) -> None:
    """Score the student and its baseline, and print both; under torchrun the first process prints."""
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):  # progress is told in our own way
        os.environ.setdefault(name, "1")
    with chatter_to_stderr():
        from tide_cache.training.company import keep_company
        from tide_cache.training.distributed import find_world

        world = find_world()
        with one_voice(), keep_company(world) as company:
            document = _score(flags, world, company)
    if not world.is_first:
        return
    if flags.json:
        print_json(document)
    else:
        _print(document)


def _score(flags: HarnessFlags, world: "World", company: "Company") -> dict[str, Any]:
    """Check everything that can be checked, then score."""
    from tide_cache.evaluation.harness.baseline import start_checkpoint
    from tide_cache.evaluation.harness.suite import INSTALL, plan_tasks

    if flags.baseline is not None and flags.no_baseline:
        raise RunFileError("--baseline and --no-baseline: found both; give one of them")
    plans = plan_tasks(flags.suite, [name for name in (flags.tasks or "").split(",") if name])
    if flags.batch_size is not None:
        plans = tuple(replace(plan, batch_size=flags.batch_size) for plan in plans)
    if flags.task_data is not None and not flags.task_data.is_dir():
        raise RunFileError(f"--task-data {flags.task_data}: found no such folder")
    if find_spec("lm_eval") is None:
        raise RunFileError(f"lm-eval is not installed. {INSTALL}")
    models = {"student": open_model(flags.checkpoint, flags.block_size, as_trained=True)}
    if not flags.no_baseline:
        start = flags.baseline or start_checkpoint(flags.checkpoint)
        models["baseline"] = open_model(start, flags.block_size, as_trained=True)
    for model in models.values():
        model.require_fits(model.block_size)
    sandbox = _sandbox(flags)

    from tide_cache.evaluation.harness.scoring import ScoringOptions, score_all
    from tide_cache.evaluation.harness.tasks import define_tasks

    defined = define_tasks(plans, flags.task_data, sandbox)
    for task in defined if world.is_first else ():
        if names := task.without_effect():
            say(f"{task.plan.name}: generation_kwargs that the block sampler has no use for: {', '.join(names)}")
    contestants = [_contestant(role, model, flags, world) for role, model in models.items()]
    options = ScoringOptions(flags.limit, flags.chat_template, flags.dtype)
    company.agree("")  # what ranks exchange is not on the GPU
    with _Reports() as reports:
        report = reports.named if world.is_first else None
        results = score_all(contestants, defined, flags.out, options, world, report)
    document = {
        "checkpoint": flags.checkpoint,
        "baseline": models["baseline"].info.location if "baseline" in models else None,
        "suite": flags.suite,
        "limit": flags.limit,
        "results": results,
    }
    if world.is_first:
        from tide_cache.shards.publish import replace_json

        replace_json(flags.out / "results.json", document)
        say(f"Results, with all figures and answers, are in {flags.out}")
    return document


def _sandbox(flags: HarnessFlags) -> "Sandbox | None":
    from tide_cache.evaluation.harness.sandbox import Sandbox

    return Sandbox(flags.code_isolation.value) if flags.allow_code_execution else None


def _contestant(role: str, model: OpenModel, flags: HarnessFlags, world: "World") -> "Contestant":
    import torch

    from tide_cache.evaluation.harness.model import ModelOptions
    from tide_cache.evaluation.harness.scoring import Contestant
    from tide_cache.modeling.backbone import DTYPES, fetch_weights, load_backbone
    from tide_cache.modeling.fingerprint import checkpoint_fingerprint
    from tide_cache.training.distributed import rank_device

    device = rank_device(world, "cuda" if torch.cuda.is_available() else "cpu")
    fetch_weights(model.info)
    fingerprint = checkpoint_fingerprint(model.info.folder)
    options = ModelOptions(model.block_size, flags.seed, flags.num_samples, flags.think_prefix.value)
    return Contestant(
        role,
        model.info.location,
        model.tokenizer,
        fingerprint,
        options,
        lambda: load_backbone(model.info, DTYPES[flags.dtype], device),
    )


class _Reports:
    """One report after the other: each task of each model has its own."""

    def __init__(self) -> None:
        self._open: ProgressReport | None = None

    def __enter__(self) -> "_Reports":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def named(self, title: str) -> Any:
        self._close()
        self._open = ProgressReport(title, "questions").__enter__()
        return self._open.update

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


def _print(document: dict[str, Any]) -> None:
    student = document["results"]["student"]
    baseline = document["results"].get("baseline", {})
    print_fields(
        "Evaluation on tasks",
        [
            ("model", document["checkpoint"]),
            ("baseline", document["baseline"] or "none: scores are comparable with nothing"),
            (
                "questions",
                "all" if document["limit"] is None else f"the first {document['limit']} of each set: no score",
            ),
        ],
    )
    print_table(
        "Scores, in per cent, with standard errors",
        ["task", "figure", "questions", "baseline", "student", "difference"],
        [_row(name, entry, baseline.get(name)) for name, entry in student.items()],
        text_columns=range(2),
    )


def _row(name: str, student: dict[str, Any], baseline: dict[str, Any] | None) -> list[str]:
    scores = [student["score"], baseline["score"] if baseline else None]
    difference = f"{100 * (scores[0] - scores[1]):+.2f}" if None not in scores else "-"
    return [
        name,
        student["metric"],
        f"{student['num_questions']:,}",
        _score_text(baseline) if baseline else "-",
        _score_text(student),
        difference,
    ]


def _score_text(entry: dict[str, Any]) -> str:
    if entry["score"] is None:
        return "-"
    error = "" if entry["stderr"] is None else f" ± {100 * entry['stderr']:.2f}"
    return f"{100 * entry['score']:.2f}{error}"
