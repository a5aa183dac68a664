"""How much of the teacher's gain another tokenizer keeps, with intervals over seeds and rows."""

from dataclasses import dataclass
from statistics import mean
from typing import Any

from experiments.arms import SHARE_STAGES, Stage
from experiments.bootstrap import Arm, Estimate, gain, share_of_gain
from experiments.rows import Row, rows_of
from tide_cache.demo.design import Pipeline

CONTROL = "p = 1"
"""In the name of an arm without a teacher."""


@dataclass(frozen=True)
class _Side:
    """The arms with one tokenizer, their baseline, and the arm that the validation rows like best."""

    rows: list[Row]
    baseline: Row
    best: Row


def share_figures(results: dict[str, Any], teacher: str = "10m") -> dict[str, Any]:
    """Return `share_of_gain_kept_TEACHER` with `_low` and `_high`, and what was compared, of each stage of shares.

    Args:
        results: From `read_results`.
        teacher: How the figures name it.
    """
    figures: dict[str, Any] = {}
    for ending, stage in SHARE_STAGES.items():
        cross, shared = (_side(results, stage, pipeline) for pipeline in ("cross", "shared"))
        if cross is None or shared is None:
            continue
        found, name = _share(cross.best, cross, shared), f"share_of_gain_kept_{teacher}{ending}"
        chosen = {
            side: f"{of.best.arm.name}, weight {of.best.value:g}"
            for side, of in {"cross": cross, "shared": shared}.items()
        }
        figures |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        figures[f"compared{ending}"] = {"chosen_on_validation": chosen, "seeds": found.students, "rows": found.rows}
    return figures


def share_table(results: dict[str, Any], stage: Stage) -> str:
    """Return a Markdown table of all arms: the gain, and the share that is kept of what the best shared arm gains.

    Args:
        results: From `read_results`.
        stage: One of `SHARE_STAGES`; nothing is returned where no arm of it was measured.
    """
    head = "| arm | tokenizer | weight | seeds | bits per byte gained | 95% | share of gain kept | 95% |"
    lines = [head, "|---" * 8 + "|"]
    pipelines: tuple[Pipeline, ...] = ("shared", "cross")
    sides = {one: side for one in pipelines if (side := _side(results, stage, one)) is not None}
    if not sides:
        return ""
    for pipeline, side in sides.items():
        for row in (row for row in side.rows if row.arm.taught):
            gained = gain(_reports(row), _reports(side.baseline))
            cells = [row.arm.name, pipeline, f"{row.value:g}", str(gained.students), f"{gained.value:.4f}"]
            share = _share(row, side, sides["shared"]) if pipeline == "cross" and "shared" in sides else None
            cells += [_ends(gained, 4), *(["", ""] if share is None else [f"{share.value:.2f}", _ends(share, 2)])]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _side(results: dict[str, Any], stage: Stage, pipeline: Pipeline) -> _Side | None:
    rows = [row for row in rows_of(results, stage.name) if row.arm.pipeline == pipeline and _reports(row)]
    baseline = next((row for row in rows if not row.arm.taught), None)
    taught = [row for row in rows if row.arm.taught and CONTROL not in row.arm.name]
    if baseline is None or not taught:
        return None
    return _Side(rows, baseline, min(taught, key=_on_validation))


def _on_validation(row: Row) -> float:
    return mean(measured["validation"]["nll"] for measured in row.students.values())


def _share(row: Row, cross: _Side, shared: _Side) -> Estimate:
    return share_of_gain(*map(_reports, (row, cross.baseline, shared.best, shared.baseline)))


def _reports(row: Row) -> Arm:
    """Return the test figures of each seed that was measured by bytes; there is one start."""
    found = {("", seed): measured["test"] for seed, measured in row.students.items()}
    return {student: report for student, report in found.items() if "nats_per_byte" in report}


def _ends(found: Estimate, digits: int) -> str:
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"
