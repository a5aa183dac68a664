"""Which student is next: arms in their order of priority, each with its grid first and then with every seed.

The grid is tried with the first seed. As soon as it is measured, the value that the validation rows like best is run
with the other seeds. What is running is not waited for: the next arm starts meanwhile.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from typing import Any, get_args

import torch

from experiments.arms import Arm, Stage
from experiments.stages import Experiment, Job
from tide_cache.demo.design import Pipeline

Measured = dict[str, Any]


def grid_jobs(stage: Stage, arm: Arm, seed: int) -> tuple[Job, ...]:
    """Return the jobs that choose an arm's value: of this stage, or of the one that its weights were tuned on."""
    borrowed = stage.tuned_on is not None and arm.tunes == "weight"
    samples = stage.tuned_on if borrowed else stage.samples
    return tuple(Job(arm, samples, value, seed) for value in arm.grid)


def known_jobs(stage: Stage, arm: Arm, seeds: tuple[int, ...], results: Mapping[str, Measured]) -> tuple[Job, ...]:
    """Return the jobs of an arm that can be named so far: its grid, and behind it every seed at the best value."""
    grid = grid_jobs(stage, arm, seeds[0])
    own = tuple(job for job in grid if job.samples == stage.samples)
    if len(grid) > 1 and any(job.key not in results for job in grid):
        return own
    value = grid[0].value if len(grid) == 1 else best_job(grid, results).value
    chosen = tuple(Job(arm, stage.samples, value, seed) for seed in seeds)
    return own + tuple(job for job in chosen if job not in own)


def best_job(grid: tuple[Job, ...], results: Mapping[str, Measured]) -> Job:
    """Return the job of a measured grid with the lowest NLL on the validation rows."""
    return min(grid, key=lambda job: results[job.key]["validation"]["nll"])


def next_job(
    stage: Stage, seeds: tuple[int, ...], results: Mapping[str, Measured], running: frozenset[str]
) -> Job | None:
    """Return the most urgent job that is neither measured nor running; None when there is none to start now."""
    for arm in stage.arms:
        for job in known_jobs(stage, arm, seeds, results):
            if job.key not in results and job.key not in running:
                return job
    return None


def make_starts(experiment: Experiment) -> None:
    """Make what the students of both tokenizers start from, side by side."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(experiment.make_student_start, get_args(Pipeline)))


def run_stage(
    experiment: Experiment, stage: Stage, results: dict[str, Measured], processes: int, is_over: Callable[[], bool]
) -> Iterator[Job]:
    """Run a stage's jobs side by side and add what they measured to `results`; yield each as it ends.

    Args:
        experiment: Whose.
        stage: Which.
        results: Measured students by key; those of this stage are added.
        processes: Jobs at a time, one thread each.
        is_over: Asked before a job is started; when it says so, no more are.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_use_one_thread) as pool:
        wanted = {experiment.cache(arm, stage.samples): arm for arm in stage.arms}
        wanted |= {experiment.cache(a, stage.samples): a for a in stage.arms if a.signal_pass == "compdemo"}
        list(pool.map(experiment.capture, wanted.values(), [stage.samples] * len(wanted)))
        running: dict[Future[Measured], Job] = {}
        while True:
            while len(running) < processes and not is_over():
                keys = frozenset(job.key for job in running.values())
                job = next_job(stage, experiment.size.seeds, results, keys)
                if job is None:
                    break
                running[pool.submit(experiment.student, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                results[job.key] = future.result()
                yield job


def _use_one_thread() -> None:
    torch.set_num_threads(1)
