"""The demonstration's students: every arm and seed is a job, jobs run side by side, and finished ones are kept."""

import multiprocessing
import os
import shutil
from collections.abc import Callable, MutableSequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace

import torch

from tide_cache.demo.measure import Measured, measured
from tide_cache.demo.plan import VIEWS_ARM, Arm, DemoPlan, Table
from tide_cache.demo.stages import DemoFolder, student_run, student_steps
from tide_cache.training.run import train

MOST_PROCESSES = 8
"""Each holds a torch of its own, about 0.6 GB."""

POLL_SECONDS = 0.5

_steps_taken: MutableSequence[int] = []
"""In a worker: steps of each job, shared with the process that shows them."""


@dataclass(frozen=True)
class Job:
    """One student."""

    arm: Arm
    seed: int

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from the others: arm, views and seed."""
        return self.arm.slug, self.arm.num_views, self.seed


def all_jobs(table: Table) -> list[Job]:
    """List the jobs of a table and of its curve against views."""
    arms = (*table.arms, *(replace(VIEWS_ARM, num_views=views) for views in table.views))
    return [Job(arm, seed) for arm in arms for seed in table.seeds]


def run_jobs(
    folder: DemoFolder, plan: DemoPlan, jobs: list[Job], on_steps: Callable[[int, int], None]
) -> dict[tuple[str, int, int], Measured]:
    """Train and measure students, one process per core with one thread each; return what was measured, by `Job.key`.

    Args:
        folder: Of the demonstration.
        plan: Its sizes.
        jobs: Students that were measured before cost nothing.
        on_steps: Called twice a second with the steps taken by all students and their number in all.
    """
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), len(os.sched_getaffinity(0)), MOST_PROCESSES)
    taken = context.Array("i", len(jobs), lock=False)
    total = sum(student_steps(plan, job.arm) for job in jobs)
    found = {}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(taken,)) as pool:
        futures = {pool.submit(_train_and_measure, folder, plan, job, index): job for index, job in enumerate(jobs)}
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                found.update({futures[future].key: future.result() for future in done})
                on_steps(sum(taken), total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _start(steps_taken: MutableSequence[int]) -> None:
    global _steps_taken
    _steps_taken = steps_taken
    torch.set_num_threads(1)


def _train_and_measure(folder: DemoFolder, plan: DemoPlan, job: Job, index: int) -> Measured:
    out = folder.student(job.arm, job.seed)
    if not (out / "model" / "config.json").exists():
        shutil.rmtree(out, ignore_errors=True)  # a student that was interrupted starts again: it takes seconds
        train(
            student_run(folder, plan, job.arm, job.seed),
            on_step=lambda metrics, _: _steps_taken.__setitem__(index, metrics.step),
        )
    result = measured(folder, plan, out / "model", job.arm.pipeline)
    _steps_taken[index] = student_steps(plan, job.arm)
    return result
