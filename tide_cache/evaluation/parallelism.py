"""Accuracy against parallelism: what it costs to decode several tokens at once, as one curve and one number.

Source: AUP, accuracy under parallelism, of d3LLM (arXiv:2601.07568), which TAD (arXiv:2605.09536) reports too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import exp, isfinite
from typing import Any

PENALTY = 3.0
"""How fast an accuracy below the best one loses weight; alpha in the papers."""
SLACK = 5.0
"""How far below the first accuracy a curve ends, in percentage points; as in the papers."""


@dataclass(frozen=True)
class CurvePoint:
    """One way to decode a task.

    Attributes:
        threshold: Probability above which tokens are kept at once.
        tokens_per_forward: Tokens that a forward gives a sequence.
        accuracy: Share of the questions, 0 to 1.
    """

    threshold: float
    tokens_per_forward: float
    accuracy: float


def accuracy_under_parallelism(points: Iterable[CurvePoint], best: float | None = None) -> float | None:
    """Return the AUP of a curve, in per cent x tokens per forward; None without points.

    With the points in the order of their tokens per forward rho_1 < rho_2 < ... and accuracies y in per cent:

        AUP = rho_1 y_1 + sum_{i > 1} (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2
        W(y) = min(exp(-3 (1 - y / y_max)), 1)

    Points with y_i < y_1 - 5 are left out: a fast but wrong model gains nothing. A model that decodes one token
    at a time has its accuracy as AUP. y_max is the highest accuracy of all compared models.

    Args:
        points: In any order; of several with the same tokens per forward, the most accurate one counts.
        best: Highest accuracy on the task, 0 to 1; by default that of these points.

    Source: d3LLM, arXiv:2601.07568, section on AUP.
    """
    curve = frontier(points)
    if not curve:
        return None
    y_max = 100 * max(best or 0.0, *(point.accuracy for point in curve))
    kept = [(point.tokens_per_forward, 100 * point.accuracy) for point in curve]
    kept = [(rho, y) for rho, y in kept if y >= kept[0][1] - SLACK]
    area = kept[0][0] * kept[0][1]
    for (rho_a, y_a), (rho_b, y_b) in pairwise(kept):
        area += (rho_b - rho_a) * (y_a * _weight(y_a, y_max) + y_b * _weight(y_b, y_max)) / 2
    return area


def frontier(points: Iterable[CurvePoint]) -> list[CurvePoint]:
    """Return points by increasing tokens per forward; of several with the same number, the most accurate."""
    at: dict[float, CurvePoint] = {}
    for point in points:
        if isfinite(point.tokens_per_forward):
            there = at.get(point.tokens_per_forward)
            if there is None or there.accuracy < point.accuracy:
                at[point.tokens_per_forward] = point
    return [at[rho] for rho in sorted(at)]


def compared(curves: Mapping[str, Sequence[CurvePoint]]) -> dict[str, Any]:
    """Return the curves of one task with their AUP, JSON-ready; the best accuracy is that of all curves.

    Args:
        curves: Points of each model.
    """
    best = max((point.accuracy for points in curves.values() for point in points), default=0.0)
    models = {
        name: {"aup": accuracy_under_parallelism(points, best), "points": [asdict(point) for point in points]}
        for name, points in curves.items()
    }
    return {"best_accuracy": best, "models": models}


def curves_of(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return accuracy against tokens per forward, with AUP, for each task that was decoded at several thresholds.

    Args:
        results: By model and name, as `eval-tasks` keeps them; those named `TASK@THRESHOLD` are points.
    """
    return {task: compared(models) for task, models in points_of(results).items()}


def points_of(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, list[CurvePoint]]]:
    """Return the points for `curves_of` by task and model; a result without a score or an answer gives none."""
    points: dict[str, dict[str, list[CurvePoint]]] = {}
    for model, entries in results.items():
        for name, entry in entries.items():
            parallel = (entry.get("decoding") or {}).get("tokens_per_forward")
            if "@" in name and parallel is not None and entry["score"] is not None:
                point = CurvePoint(entry["identity"]["threshold"], parallel, entry["score"])
                points.setdefault(entry["task"], {}).setdefault(model, []).append(point)
    return points


def _weight(y: float, y_max: float) -> float:
    return min(exp(-PENALTY * (1 - y / y_max)), 1.0) if y_max > 0 else 1.0
