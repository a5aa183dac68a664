"""The results of a sweep: the students of each arm, and each arm compared with the first, paired by seed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tide_cache.disk import new_folder, write_whole
from tide_cache.evaluation.comparison import Comparison, Spread, compare, spread
from tide_cache.sweep.arms import Job
from tide_cache.sweep.job import read_scores
from tide_cache.sweep.run import JobEnd

DOCUMENT = "sweep.json"


@dataclass(frozen=True)
class StudentResult:
    """One student.

    Attributes:
        seed: Its number.
        model: Its folder.
        error: Why there is no student; None if there is one.
        nll: Its held-out report, as `NllReport`; None if it was not measured.
    """

    seed: int
    model: Path
    error: str | None
    nll: dict[str, Any] | None


@dataclass(frozen=True)
class SweepRow:
    """A row of the table.

    Attributes:
        name: Name of the arm.
        students: Seed by seed.
        nll: Held-out NLL, nats per masked token, compared with the first arm; None if no student has one.
        accuracy: Accuracy on masked tokens; None likewise.
    """

    name: str
    students: tuple[StudentResult, ...]
    nll: Comparison | None
    accuracy: Spread | None


def summarise(ends: Sequence[JobEnd]) -> list[SweepRow]:
    """Return the rows of the table, in the order of the arms."""
    by_arm: dict[str, list[StudentResult]] = {}
    for end in ends:
        by_arm.setdefault(end.job.arm, []).append(_student(end.job, end.error))
    rows: list[SweepRow] = []
    baseline: dict[int, float] | None = None
    for name, students in by_arm.items():
        values = _by_seed(students, "mean_nll")
        accuracies = list(_by_seed(students, "mean_accuracy").values())
        against = compare(values, baseline) if values else None
        rows.append(SweepRow(name, tuple(students), against, spread(accuracies) if accuracies else None))
        if baseline is None:
            baseline = values
    return rows


def write_document(out: Path, rows: Sequence[SweepRow], held_out: str | None) -> dict[str, Any]:
    """Write `sweep.json` into the sweep's folder, and return its content."""
    document = {"out": str(out), "held_out": held_out, "baseline": rows[0].name, "arms": [asdict(row) for row in rows]}
    with new_folder(out):
        write_whole(out / DOCUMENT, json.dumps(document, indent=2, default=str) + "\n")
    return document


def _student(job: Job, error: str | None) -> StudentResult:
    nll = read_scores(job) if error is None else None
    return StudentResult(job.seed, job.run.train.out / "model", error, nll)


def _by_seed(students: Sequence[StudentResult], name: str) -> dict[int, float]:
    found = {student.seed: student.nll[name] for student in students if student.nll is not None}
    return {seed: value for seed, value in found.items() if value is not None}
