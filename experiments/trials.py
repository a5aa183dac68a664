"""Which student is next: arms in their order of priority, each with its grid first and then with every seed.

The grid is tried with the first seed. As soon as it is measured, the value that the validation rows like best is run
with the other seeds. What is running is not waited for: the next arm starts meanwhile.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from typing import Any, get_args

import torch

from experiments.arms import Stage, TunedArm
from experiments.stages import Experiment, Trial
from tide_cache.demo.design import Pipeline

Measured = dict[str, Any]


def grid_trials(stage: Stage, arm: TunedArm, seed: int) -> tuple[Trial, ...]:
    """Return the trials that choose an arm's value: of this stage, or of the one that its weights were tuned on."""
    borrowed = stage.tuned_on is not None and arm.tunes == "weight"
    samples = stage.tuned_on if borrowed else stage.samples
    return tuple(Trial(arm, samples, value, seed) for value in arm.grid)


def known_trials(
    stage: Stage, arm: TunedArm, seeds: tuple[int, ...], results: Mapping[str, Measured]
) -> tuple[Trial, ...]:
    """Return the trials of an arm that can be named so far: its grid, and behind it every seed at the best value."""
    grid = grid_trials(stage, arm, seeds[0])
    own = tuple(trial for trial in grid if trial.samples == stage.samples)
    if len(grid) > 1 and any(trial.key not in results for trial in grid):
        return own
    value = grid[0].value if len(grid) == 1 else best_trial(grid, results).value
    chosen = tuple(Trial(arm, stage.samples, value, seed) for seed in seeds)
    return own + tuple(trial for trial in chosen if trial not in own)


def best_trial(grid: tuple[Trial, ...], results: Mapping[str, Measured]) -> Trial:
    """Return the trial of a measured grid with the lowest NLL on the validation rows."""
    return min(grid, key=lambda trial: results[trial.key]["validation"]["nll"])


def next_trial(
    stage: Stage, seeds: tuple[int, ...], results: Mapping[str, Measured], running: frozenset[str]
) -> Trial | None:
    """Return the most urgent trial that is neither measured nor running; None when there is none to start now."""
    for arm in stage.arms:
        for trial in known_trials(stage, arm, seeds, results):
            if trial.key not in results and trial.key not in running:
                return trial
    return None


def make_starts(experiment: Experiment) -> None:
    """Make what the students of both tokenizers start from, side by side."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(experiment.make_student_start, get_args(Pipeline)))


def run_stage(
    experiment: Experiment, stage: Stage, results: dict[str, Measured], processes: int, is_over: Callable[[], bool]
) -> Iterator[Trial]:
    """Run a stage's trials side by side and add what they measured to `results`; yield each as it ends.

    Args:
        experiment: Whose.
        stage: Which.
        results: Measured students by key; those of this stage are added.
        processes: Trials at a time, one thread each.
        is_over: Asked before a trial is started; when it says so, no more are.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_use_one_thread) as pool:
        wanted = {experiment.cache(arm, stage.samples): arm for arm in stage.arms}
        wanted |= {experiment.cache(a, stage.samples): a for a in stage.arms if a.signal_pass == "compdemo"}
        list(pool.map(experiment.capture, wanted.values(), [stage.samples] * len(wanted)))
        running: dict[Future[Measured], Trial] = {}
        while True:
            while len(running) < processes and not is_over():
                keys = frozenset(trial.key for trial in running.values())
                trial = next_trial(stage, experiment.size.seeds, results, keys)
                if trial is None:
                    break
                running[pool.submit(experiment.student, trial)] = trial
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial = running.pop(future)
                results[trial.key] = future.result()
                yield trial


def _use_one_thread() -> None:
    torch.set_num_threads(1)
