"""The demonstration's students: a sweep whose students also answer tasks."""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from tide_cache.demo.design import VIEWS_ARM, DemoSize, Table
from tide_cache.demo.measure import measured
from tide_cache.demo.stages import DemoFolder, student_run
from tide_cache.errors import TideCacheError
from tide_cache.sweep.arms import HeldOut, Job
from tide_cache.sweep.job import run_job
from tide_cache.sweep.run import run_jobs
from tide_cache.training.metrics import OnStep

MOST_PROCESSES = 8
"""Each process loads torch, about 0.6 GB."""


def all_jobs(folder: DemoFolder, size: DemoSize, table: Table) -> list[Job]:
    """Return the jobs of a table and of its curve over views."""
    arms = (*table.arms, *(replace(VIEWS_ARM, num_views=views) for views in table.views))
    held_out = HeldOut(spec=str(folder.tasks("held-out")), folder=folder.root)
    return [
        Job(
            arm=f"{arm.slug}, {arm.num_views} views",
            seed=seed,
            run=student_run(folder, size, arm, seed),
            held_out=held_out,
        )
        for arm in arms
        for seed in table.seeds
    ]


def train_students(jobs: list[Job], on_steps: Callable[[int, int], None]) -> None:
    """Train and measure students, one process per core with one thread each.

    Args:
        jobs: Students that were already measured are not trained again.
        on_steps: Called with the steps that all students have taken, and the steps in all.

    Raises:
        TideCacheError: A student failed; the others are stopped.
    """
    taken = dict.fromkeys((job.name for job in jobs), 0)
    total = sum(job.run.train.steps or 0 for job in jobs)

    def on_step(job: Job, step: int, steps: int) -> None:
        taken[job.name] = step
        on_steps(sum(taken.values()), total)

    processes = min(len(jobs), len(os.sched_getaffinity(0)), MOST_PROCESSES)
    work = f"{__name__}:{train_and_measure.__name__}"
    with closing(run_jobs(jobs, processes, on_step, work, threads=1)) as ends:
        for end in ends:
            if end.error is not None:
                raise TideCacheError(f"{end.job.name}: {end.error}")
            on_step(end.job, end.job.run.train.steps or 0, 0)


def train_and_measure(job: Job, on_step: OnStep) -> None:
    """Train a student and measure what it can do; what already exists is not done again."""
    assert job.held_out is not None
    assert job.run.student.tokenizer is not None
    torch.set_num_threads(1)
    folder, model = DemoFolder(job.held_out.folder), job.run.train.out / "model"
    run_job(job.model_copy(update={"held_out": None}), on_step)
    measured(folder, DemoSize.of(folder.marker), model, Path(job.run.student.tokenizer.path))
