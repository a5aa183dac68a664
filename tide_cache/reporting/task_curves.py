"""Charts of accuracy against parallelism: the curves that `eval-tasks --thresholds` left in a run, by task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tide_cache.evaluation.parallelism import CurvePoint, compared, frontier, points_of
from tide_cache.reporting.plots import Captioned, Series, line_chart
from tide_cache.wording import number, percent

Curves = Mapping[str, Mapping[str, Sequence[CurvePoint]]]
"""Points by task and model."""

CURVE_COLUMNS = ["task", "model", "AUP", "threshold", "tokens per forward", "accuracy"]
_CAPTION = (
    "Each point is one threshold: further right, more tokens are kept at once. AUP is the area below, weighed by how "
    "near the best accuracy is (arXiv:2601.07568)."
)


def read_curves(run: Path, documents: Mapping[str, Mapping[str, Any]]) -> Curves:
    """Return the curves in results of a run's folder: its student's, the baseline's, and those of other models.

    Args:
        run: The run's folder. Results of its own model are called by their roles.
        documents: Contents of `results.json` by the name of its folder; other models are called by that name:
            `eval-teacher` holds the teacher's.

    Raises:
        ValueError: A document is not from `eval-tasks`; the message names the folder.
    """
    found: dict[str, dict[str, Sequence[CurvePoint]]] = {}
    for name, document in documents.items():
        try:
            own = Path(document["checkpoint"]).parts[-2:] == (run.resolve().name, "model")
            other = name.removeprefix("eval").lstrip("-_") or name
            labels = {"student": "student" if own else other, "baseline": "baseline" if own else f"{other}, baseline"}
            for task, models in points_of(document["results"]).items():
                for role, points in models.items():
                    found.setdefault(task, {})[labels[role]] = tuple(points)
        except (KeyError, TypeError, AttributeError):
            raise ValueError(name) from None
    return found


def join_curves(runs: Mapping[str, Curves]) -> Curves:
    """Return curves of several runs: students by the names of their runs, other models once each."""
    joined: dict[str, dict[str, Sequence[CurvePoint]]] = {}
    for run, curves in runs.items():
        for task, models in curves.items():
            for model, points in models.items():
                joined.setdefault(task, {}).setdefault(run if model == "student" else model, points)
    return joined


def curve_charts(curves: Curves) -> list[Captioned]:
    """Return a chart for each task, with a line for each model."""
    charts = []
    for place, (task, models) in enumerate(sorted(curves.items())):
        lines = []
        for colour, (model, points) in enumerate(models.items()):
            kept = frontier(points)
            x = [point.tokens_per_forward for point in kept]
            lines.append(Series(model, x, [point.accuracy for point in kept], colour, colour))
        title = f"{task}: accuracy against parallelism"
        charts.append((line_chart(f"parallel-{place}", title, lines, "tokens per forward", "accuracy"), _CAPTION))
    return charts


def curve_rows(curves: Curves) -> list[list[str]]:
    """Return the table of the charts: AUP of each model, and its points."""
    rows = []
    for task, models in sorted(curves.items()):
        for model, found in compared(models)["models"].items():
            for place, point in enumerate(found["points"]):
                aup = number(found["aup"], 1) if place == 0 and found["aup"] is not None else ""
                values = (number(point["threshold"]), number(point["tokens_per_forward"]), percent(point["accuracy"]))
                rows.append([task, model, aup, *values])
    return rows
