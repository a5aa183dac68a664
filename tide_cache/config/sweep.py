"""The run file of `tide-cache sweep`: one of `train`, and what its students differ in."""

from typing import Any, Self

from pydantic import Field, model_validator

from tide_cache.config.base import Frozen
from tide_cache.config.train import TrainRun


class ArmConfig(Frozen):
    """One way to train a student: what of the run file it replaces."""

    name: str = Field(min_length=1, description="In the table, and as a folder.")
    preset: str | None = Field(default=None, description="A row of the paper's table.")
    objective: tuple[dict[str, Any], ...] | None = Field(
        default=None, min_length=1, description="Objectives, as in [[objective]]."
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="Any other keys, {'data.num_views' = 2}; paths from the working folder."
    )

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if self.preset is not None and self.objective is not None:
            raise ValueError("preset and objective: give one of them; a preset is a list of objectives")
        return self

    @property
    def overrides(self) -> dict[str, Any]:
        """Dotted keys and values that go on top of the run file; preset and objectives replace each other."""
        chosen: dict[str, Any] = {}
        if self.preset is not None:
            chosen = {"objective": None, "preset": self.preset}
        elif self.objective is not None:
            chosen = {"preset": None, "objective": [dict(entry) for entry in self.objective]}
        return chosen | self.set


class SweepConfig(Frozen):
    """What is compared."""

    arm: tuple[ArmConfig, ...] = Field(default=(), description="In the table's order; the first is the baseline.")


class SweepRun(TrainRun):
    """A run file of `train` with a section `sweep`; `train.out` is the folder of all arms."""

    sweep: SweepConfig = SweepConfig()

    @property
    def train_run(self) -> TrainRun:
        """The run without that section."""
        return TrainRun.model_validate(self.model_dump(exclude={"sweep"}))
