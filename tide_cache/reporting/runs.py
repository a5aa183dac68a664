"""The results of a training run as figures: its run file, its lines of metrics, and its evaluations."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tide_cache.errors import RunFolderError
from tide_cache.evaluation import AgreementReport, NllReport
from tide_cache.reporting.task_curves import Curves, read_curves
from tide_cache.sweep.arms import SCORES
from tide_cache.training.metrics import StepMetrics, read_metrics
from tide_cache.training.reporters import scalars
from tide_cache.unreadable import told_apart

MOST_POINTS = 300
"""Points of a curve; a longer run's lines are averaged in this many bins."""
STAGES = {"first tenth": 0.0, "middle": 0.45, "last tenth": 0.9}
"""Where in a run each named tenth of its lines begins."""


@dataclass(frozen=True)
class Curve:
    """Figures over a run, by flat name; a point is the mean of some consecutive lines, `steps` the last of each."""

    steps: tuple[int, ...]
    values: dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class NllStage:
    """Mean -log q(true) on the training views in ten buckets of t, over the lines of a tenth of the run."""

    name: str
    step_from: int
    step_to: int
    nll: tuple[float | None, ...]


@dataclass(frozen=True)
class Evaluation:
    """What `tide-cache eval --out` wrote."""

    file: str
    dataset: str
    max_length: int
    block_size: int
    nll: NllReport
    agreement: AgreementReport | None


@dataclass(frozen=True)
class RunFigures:
    """A run; `dataclasses.asdict` makes it JSON-ready.

    Attributes:
        name: Last parts of its folder's path; the rest is private, and a page may be published.
        settings: Its run file; paths are cut to their last two parts.
        objectives: For example `ce + 0.5 chunk_kl`.
        seed: `train.seed`.
        is_finished: Whether its model exists.
        provenance: What the model says it learned from, without the whole identity; None if it is not finished.
        last: The last line of metrics.
        train_s: Seconds of training, over all resumed parts.
        curve: Its metrics.
        nll_stages: NLL by t at the start, in the middle and at the end.
        evaluations: Documents `eval*.json` of the folder that hold an NLL, by name, and what a sweep measured.
        other_evaluations: Names of those without an NLL.
        curves: Accuracy against tokens per forward, of `eval*/results.json` in the folder.
    """

    name: str
    settings: dict[str, Any]
    objectives: str
    seed: int
    is_finished: bool
    provenance: dict[str, Any] | None
    last: StepMetrics
    train_s: float
    curve: Curve
    nll_stages: tuple[NllStage, ...]
    evaluations: tuple[Evaluation, ...]
    other_evaluations: tuple[str, ...]
    curves: Curves


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return names for runs: as few last parts of their paths as distinguish them, but at least two."""
    parts = [folder.resolve().parts for folder in folders]
    most = max(map(len, parts))
    for count in range(2, most + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def read_run(folder: Path, name: str | None = None) -> RunFigures:
    """Read a run, finished or not.

    Args:
        folder: `train.out` of the run.
        name: Name of the run, by default that of `run_names`.

    Raises:
        RunFolderError: A file is missing, or was not written by `tide-cache train` or `eval`.
        UnreadableError: A file cannot be read now.
    """
    settings = _document(folder / "run.json")
    lines = read_metrics(folder / "metrics.jsonl")
    if not lines:
        raise RunFolderError(
            f"{folder}: found no logged step in metrics.jsonl; expected at least one.\n"
            "Wait for train.log_every steps, or give another run."
        )
    try:
        objectives, seed = _objectives(settings["objective"]), int(settings["train"]["seed"])
    except (KeyError, TypeError, ValueError):
        raise RunFolderError(
            f"{folder / 'run.json'}: found no objective or train.seed in it; expected what `tide-cache train` wrote."
        ) from None
    model = folder / "model"
    provenance = _document(model / "tide_cache.json") if (model / "config.json").is_file() else None
    documents = {path: _document(path) for path in sorted(folder.glob("eval*.json"))}
    if provenance is not None and (scores := folder / SCORES).is_file():
        documents[scores] = _as_evaluation(_document(scores), provenance)
    return RunFigures(
        name=name or run_names([folder])[0],
        settings=_shortened(settings),
        objectives=objectives,
        seed=seed,
        is_finished=provenance is not None,
        provenance=None if provenance is None else {k: v for k, v in provenance.items() if k != "cache_identity"},
        last=lines[-1],
        train_s=sum(one.elapsed_s for one, following in _pairs(lines) if not _continues(one, following)),
        curve=_curve(lines),
        nll_stages=tuple(_stage(name, lines, start) for name, start in STAGES.items()),
        evaluations=tuple(_evaluation(path, found) for path, found in documents.items() if "nll" in found),
        other_evaluations=tuple(path.name for path, found in documents.items() if "nll" not in found),
        curves=_curves(folder),
    )


def _as_evaluation(scores: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """Return a sweep's figures in the form of `tide-cache eval`."""
    corpus = scores.get("corpus")
    dataset = corpus.get("spec") if isinstance(corpus, dict) else None
    return {**scores, "dataset": dataset, "block_size": provenance.get("block_size"), "agreement": None}


def _curves(folder: Path) -> Curves:
    documents = {path.parent.name: _document(path) for path in sorted(folder.glob("eval*/results.json"))}
    try:
        return read_curves(folder, documents)
    except ValueError as error:
        raise RunFolderError(
            f"{folder / str(error) / 'results.json'}: found no results of tasks; expected what `tide-cache eval-tasks` "
            "wrote. Give folders of another kind a name that does not begin with eval."
        ) from None


def _document(path: Path) -> dict[str, Any]:
    try:
        with told_apart(path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}; give the train.out of a run") from None
    except ValueError as error:
        raise RunFolderError(f"{path}: found no JSON document: {error}; expected one") from None
    if not isinstance(content, dict):
        raise RunFolderError(f"{path}: found {type(content).__name__}, expected a JSON object")
    return content


def _objectives(entries: Sequence[dict[str, Any]]) -> str:
    weights = [(entry["kind"], float(entry.get("weight", 1))) for entry in entries]
    return " + ".join(kind if weight == 1 else f"{weight:g} {kind}" for kind, weight in weights)


def _shortened(value: Any) -> Any:
    """Return a value with absolute paths cut to their last two parts, also if a corpus joins several by '+'."""
    if isinstance(value, dict):
        return {name: _shortened(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_shortened(entry) for entry in value]
    if isinstance(value, str) and value.startswith("/"):
        return "+".join("/".join(Path(part).parts[-2:]) if part.startswith("/") else part for part in value.split("+"))
    return value


def _pairs(lines: Sequence[StepMetrics]) -> Iterator[tuple[StepMetrics, StepMetrics | None]]:
    return zip(lines, [*lines[1:], None], strict=True)


def _continues(one: StepMetrics, following: StepMetrics | None) -> bool:
    """Return whether the next line is from the same process; a resumed one counts its time from 0."""
    return following is not None and following.elapsed_s >= one.elapsed_s


def _curve(lines: Sequence[StepMetrics]) -> Curve:
    most = -(-len(lines) // MOST_POINTS)
    bins = [[dict(scalars(line)) for line in lines[at : at + most]] for at in range(0, len(lines), most)]
    names = list(dict.fromkeys(name for line in lines for name, _ in scalars(line)))
    return Curve(
        steps=tuple(lines[min(at + most, len(lines)) - 1].step for at in range(0, len(lines), most)),
        values={name: tuple(_mean([point.get(name) for point in points]) for points in bins) for name in names},
    )


def _stage(name: str, lines: Sequence[StepMetrics], start: float) -> NllStage:
    first = min(int(start * len(lines)), len(lines) - 1)
    part = lines[first : first + max(1, len(lines) // 10)]
    buckets = zip(*(line.nll_by_t for line in part), strict=True)
    return NllStage(name, part[0].step, part[-1].step, tuple(_mean(values) for values in buckets))


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known, finite values: a run that diverged is drawn up to that point."""
    known = [value for value in values if value is not None and isfinite(value)]
    return mean(known) if known else None


def _evaluation(path: Path, found: dict[str, Any]) -> Evaluation:
    if isinstance(found["nll"], dict):  # a page shows no sample
        found = {**found, "nll": {**found["nll"], "rows": None}}
    try:
        return TypeAdapter(Evaluation).validate_python({**_shortened(found), "file": path.name})
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise RunFolderError(
            f"{path}: {where}: {fault['msg']}; expected what `tide-cache eval --out` wrote.\n"
            "Give files of another kind a name that does not begin with eval."
        ) from None
