"""Arms with their measured students, read from the results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.arms import STAGES, Stage, TunedArm
from experiments.stages import Trial
from experiments.trials import best_trial, grid_trials
from tide_cache.demo.design import Pipeline


@dataclass(frozen=True)
class Row:
    """An arm with the students that were measured at its chosen value."""

    arm: TunedArm
    stage: Stage
    value: float
    is_tuned: bool
    students: Mapping[int, dict[str, Any]]

    def test(self, figure: str = "nll") -> dict[int, float]:
        """Return a figure of each seed on the test rows."""
        return {seed: measured["test"][figure] for seed, measured in self.students.items()}

    def test_at(self, place: int) -> dict[int, float]:
        """Return the NLL of each seed at one t."""
        return {seed: measured["test"]["times"][place]["nll"] for seed, measured in self.students.items()}


def rows_of(results: dict[str, Any], stage_name: str) -> list[Row]:
    """Return the arms of a stage that have at least one student, at the value that validation likes best so far."""
    stage = next(stage for stage in STAGES if stage.name == stage_name)
    students, seeds = results["students"], tuple(results["size"]["seeds"])
    rows = []
    for arm in stage.arms:
        grid = grid_trials(stage, arm, seeds[0])
        done = tuple(trial for trial in grid if trial.key in students)
        if not done:
            continue
        value = best_trial(done, students).value
        trials = [Trial(arm, stage.samples, value, seed) for seed in seeds]
        found = {trial.seed: students[trial.key] for trial in trials if trial.key in students}
        if not found:
            continue
        rows.append(Row(arm, stage, value, len(done) == len(grid), found))
    return rows


def rows_under(results: dict[str, Any], prefix: str) -> list[Row]:
    """Return the rows of all stages whose names begin like this."""
    return [row for stage in STAGES if stage.name.startswith(prefix) for row in rows_of(results, stage.name)]


def find(rows: list[Row], name: str, pipeline: Pipeline) -> Row | None:
    """Return the row of an arm."""
    return next((row for row in rows if (row.arm.name, row.arm.pipeline) == (name, pipeline)), None)
