"""Options that several subcommands share, and how flags become entries of a run file."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from tide_cache.config.base import load_run_file, parse_assignments
from tide_cache.config.build import BuildRun
from tide_cache.config.settings import OnBadRow
from tide_cache.errors import RunFileError
from tide_cache.places import require_checkpoint

_NUMBER = r"\d+(\.\d*)?|\.\d+"


RunFile = Annotated[
    Path | None,
    typer.Argument(metavar="RUN.toml", help="Run file (TOML); optional if the options say enough.", show_default=False),
]
Teacher = Annotated[str | None, typer.Option(help="Teacher checkpoint: a folder or a hub name.", show_default=False)]
StudentTokenizer = Annotated[
    str | None, typer.Option("--student", help="Student tokenizer: a folder or a hub name.", show_default=False)
]
AllowUntrained = Annotated[
    bool,
    typer.Option("--allow-untrained", help="Accept a teacher that `convert` made and that was never trained."),
]
Passes = Annotated[
    str | None,
    typer.Option(
        metavar="PASS[,PASS]",
        help="Passes to capture: plain, compdemo. A pass that a finished cache lacks is added.",
        show_default=False,
    ),
]
Out = Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder to write.", show_default=False)]
Dataset = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="Corpus: files, folders or hub names joined by '+', each with an optional selection: a.jsonl[train:500].",
        show_default=False,
    ),
]
BadRow = Annotated[
    OnBadRow | None,
    typer.Option("--on-bad-row", help="Stop at a row that cannot be used (the default), or skip it and list it."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the run file: train.steps=500. Repeatable."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything without loading a model, print the resolved run file, and exit."),
]
MAX_NEW_TOKENS = typer.Option(min=1, help="Maximum tokens per answer.")
STEPS_PER_BLOCK = typer.Option(min=1, help="Maximum forwards per block; by default one per token.", show_default=False)
THRESHOLD = typer.Option(
    help="Keep at once every token whose probability exceeds this (0 < P <= 1); by default a fixed number per step.",
    show_default=False,
)
REMASKING = typer.Option(help="Which predictions a step keeps: the likeliest ones, or random ones.")
TEMPERATURE = typer.Option(min=0.0, help="Sampling temperature; 0 takes the most likely token.")
SEED = typer.Option(min=0, help="Seed for random draws.")
CFG_SCALE = typer.Option(min=0.0, help="Strength of classifier-free guidance towards the prompt; 0 for none.")
STOP = typer.Option(metavar="TEXT", help="End an answer before this text. Repeatable.", show_default=False)
BATCH_SIZE = typer.Option(min=1, help="Answers that are written together.")
Workers = Annotated[
    int | None, typer.Option(min=1, help="Number of parallel workers, one device each.", show_default="1")
]
TopK = Annotated[
    int | None, typer.Option(min=1, help="Sample only from this many likeliest tokens.", show_default=False)
]
TopP = Annotated[
    float | None,
    typer.Option(help="Sample only from the likeliest tokens whose probabilities reach this sum.", show_default=False),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER/NAME", help="Upload the finished model to this repository of the hub.", show_default=False
    ),
]
Private = Annotated[bool, typer.Option("--private", help="Make a repository that is created private.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets that begin with this text, for shell completion."""
    from tide_cache.config.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def complete_objective(incomplete: str) -> list[str]:
    """Return the objective kinds that begin with this text, for shell completion."""
    from tide_cache.config.objectives import OBJECTIVE_KINDS

    return [kind for kind in OBJECTIVE_KINDS if kind.startswith(incomplete)]


def read_build_run(
    run_file: Path | None,
    assignments: Iterable[str] | None,
    teacher: str | None,
    student: str | None,
    dataset: str | None,
    on_bad_row: OnBadRow | None,
    out: str | None,
    passes: str | None,
    allow_untrained: bool,
    **further: object,
) -> BuildRun:
    """Read the run file of a build with the short options over it, and `--set` over both.

    `further` are entries of one command's own options, with two underscores for a dot.

    Raises:
        RunFileError: It cannot be used, or there is no such checkpoint.
    """
    flags = {
        "teacher.model": teacher,
        "teacher.allow_untrained": allow_untrained or None,
        "student.tokenizer.path": student,
        **corpus_flags("corpus", dataset, on_bad_row),
        "build.out": out,
        "build.passes": passes.split(",") if passes is not None else None,
        **{name.replace("__", "."): value for name, value in further.items()},
    }
    run = load_run_file(BuildRun, run_file, {**given(flags), **parse_assignments(assignments or ())})
    if run.teacher.topk is None:
        require_checkpoint(run.teacher.model)
    return run


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Keep the options that were given, as entries of a run file: dotted keys and plain values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in flags.items() if value is not None}


def corpus_flags(section: str, spec: str | None, on_bad_row: OnBadRow | None) -> dict[str, Any]:
    """Return the entries of a corpus section; files of `--dataset` are relative to the working folder."""
    return {
        f"{section}.spec": spec,
        f"{section}.folder": Path.cwd() if spec is not None else None,
        f"{section}.on_bad_row": on_bad_row,
    }


def caches(items: Iterable[str]) -> dict[str, Any]:
    """Read `--cache FOLDER` or `FOLDER=WEIGHT`: one without a weight is the cache, otherwise they are a mix.

    Raises:
        RunFileError: A weight is not a number.
    """
    mix: list[dict[str, Any]] = []
    for item in items:
        folder, equals, weight = item.rpartition("=")
        if not equals or "/" in weight:  # a parent folder's name may contain an equals sign too
            mix.append({"cache": item})
        elif re.fullmatch(_NUMBER, weight):
            mix.append({"cache": folder, "weight": float(weight)})
        else:
            raise RunFileError(
                f"--cache {item!r}: found weight {weight!r}; expected FOLDER or FOLDER=WEIGHT, for example cache=0.5; "
                "a folder with '=' in its name ends in '/'"
            )
    if len(mix) == 1 and "weight" not in mix[0]:
        return {"data.cache": mix[0]["cache"]}
    return {"data.mix": mix} if mix else {}


def objectives(items: Iterable[str]) -> list[dict[str, Any]]:
    """Read `--objective kind` or `kind:weight`.

    Raises:
        RunFileError: A weight is not a number.
    """
    result: list[dict[str, Any]] = []
    for item in items:
        kind, colon, weight = item.partition(":")
        if colon and not re.fullmatch(_NUMBER, weight):
            raise RunFileError(
                f"--objective {item!r}: found weight {weight!r}; expected kind or kind:weight, for example kl:0.5"
            )
        result.append({"kind": kind, "weight": float(weight)} if colon else {"kind": kind})
    return result
