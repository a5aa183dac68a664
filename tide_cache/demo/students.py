"""The demonstration's students: every arm and seed is a job, jobs run side by side, and finished ones are kept."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

import torch

from tide_cache.demo.measure import Measured, measure
from tide_cache.demo.plan import ARMS, VIEWS, VIEWS_ARM, Arm, DemoPlan
from tide_cache.demo.stages import DemoFolder, student_run
from tide_cache.training.run import train

MOST_PROCESSES = 8
"""Each holds a torch of its own, about 0.6 GB."""


@dataclass(frozen=True)
class Job:
    """One student."""

    arm: Arm
    seed: int

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from the others: arm, views and seed."""
        return self.arm.slug, self.arm.num_views, self.seed


def all_jobs(plan: DemoPlan) -> list[Job]:
    """List the jobs of the table and of the curve against views."""
    arms = (*ARMS, *(replace(VIEWS_ARM, num_views=views) for views in VIEWS))
    return [Job(arm, seed) for arm in arms for seed in plan.seeds]


def run_jobs(folder: DemoFolder, plan: DemoPlan, jobs: list[Job]) -> Iterator[tuple[Job, Measured]]:
    """Train and measure students, one process per core with one thread each; yield them as they finish.

    Args:
        folder: Of the demonstration.
        plan: Its sizes.
        jobs: Students that were measured before cost nothing.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), len(os.sched_getaffinity(0)), MOST_PROCESSES)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_one_thread) as pool:
        futures = {pool.submit(_train_and_measure, folder, plan, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _train_and_measure(folder: DemoFolder, plan: DemoPlan, job: Job) -> Measured:
    out = folder.student(job.arm, job.seed)
    if not (out / "model" / "config.json").exists():
        shutil.rmtree(out, ignore_errors=True)  # a student that was interrupted starts again: it takes seconds
        train(student_run(folder, plan, job.arm, job.seed))
    return measure(folder, plan, out / "model", job.arm.pipeline)
