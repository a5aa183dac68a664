"""From a run file and a list of arms to training runs: one for every arm and seed."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tide_cache.config.base import Frozen, load_run_file
from tide_cache.config.settings import Precision
from tide_cache.config.sweep import ArmConfig, SweepRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError, fault_list

SCORES = "held-out.json"
"""File with a student's held-out figures, in its folder."""


class HeldOut(Frozen):
    """Text on which every student is measured.

    Attributes:
        spec: A corpus, as for `train`.
        folder: Where its relative file names are looked up.
        limit: Most samples to use; None for all.
        dtype: Type of the student's weights while it is measured.
    """

    spec: str
    folder: Path
    limit: int | None = None
    dtype: Precision = "float32"


class Job(Frozen):
    """One student.

    Attributes:
        arm: Name of its arm.
        seed: Number of its seed, from 0.
        run: Its training run; `train.out` is a separate folder.
        held_out: What it is measured on; None for nothing.
    """

    arm: str
    seed: int
    run: TrainRun
    held_out: HeldOut | None

    @property
    def name(self) -> str:
        """The student's name in messages."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """File with the student's output, if it ran in a separate process."""
        return self.run.train.out.with_suffix(".log")


def make_jobs(
    path: Path | None,
    overrides: Mapping[str, Any],
    arms: Sequence[ArmConfig],
    num_seeds: int,
    held_out: HeldOut | None,
) -> tuple[Path, list[Job]]:
    """Read the run file once for each arm.

    Args:
        path: The run file; None when the overrides say everything.
        overrides: As for `load_run_file`; an arm's overrides come after these.
        arms: Additional arms, before those of the run file.
        num_seeds: Students of each arm. Student i adds i to the run's seeds for weights, order and training.
        held_out: What they are measured on.

    Returns:
        The folder of the sweep, and the jobs, seed by seed within each arm.

    Raises:
        RunFileError: The run file or one of its arms cannot be used; lists every fault.
    """
    base = load_run_file(SweepRun, path, overrides)
    everything = [*arms, *base.sweep.arm]
    _require_distinct(everything)
    out, jobs, faults = base.train.out.resolve(), [], []
    for arm in everything:
        try:
            run = load_run_file(SweepRun, path, {**overrides, **arm.overrides}).train_run
        except RunFileError as error:
            faults.append(f"{arm.name}: {error}")
            continue
        jobs += [Job(arm=arm.name, seed=i, run=_seeded(run, out, arm.name, i), held_out=held_out)
                 for i in range(num_seeds)]  # fmt: skip
    if faults:
        raise RunFileError(fault_list("The sweep cannot start:", faults, "Nothing was trained."))
    return out, jobs


def _require_distinct(arms: Sequence[ArmConfig]) -> None:
    if not arms:
        raise RunFileError("the sweep has no arm; give --preset or --objective, or [[sweep.arm]] in the run file")
    folders = [folder_name(arm.name) for arm in arms]
    if twice := sorted({arm.name for arm in arms if folders.count(folder_name(arm.name)) > 1}):
        raise RunFileError(f"the sweep has two arms of one name or folder: {', '.join(twice)}; name each once")


def folder_name(arm: str) -> str:
    """Return the folder of an arm: its name, without characters that are awkward in file names."""
    return re.sub(r"[^\w.+-]+", "-", arm).lstrip(".-") or "arm"


def _seeded(run: TrainRun, out: Path, arm: str, i: int) -> TrainRun:
    shape = run.student.shape
    if shape is not None:
        shape = shape.model_copy(update={"init_seed": shape.init_seed + i})
    train = {"out": out / folder_name(arm) / f"seed-{i}", "seed": run.train.seed + i}
    return run.model_copy(
        update={
            "student": run.student.model_copy(update={"shape": shape}),
            "data": run.data.model_copy(update={"seed": run.data.seed + i}),
            "train": run.train.model_copy(update=train),
        }
    )
