"""The whole demonstration: from nothing to a table that says whether students learned from a cache."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tide_cache.building.driver import BuildProgress, BuildSummary
from tide_cache.demo.claim import claim
from tide_cache.demo.design import NUM_VIEWS, PIPELINES, VIEWS_ARM, DemoArm, DemoSize, Pipeline, Table
from tide_cache.demo.measure import Measured, measured
from tide_cache.demo.picture import Bar, draw
from tide_cache.demo.stages import DemoFolder, build, make_data, train_teacher
from tide_cache.demo.students import all_jobs, train_students
from tide_cache.evaluation.comparison import Comparison, Spread, compare, half_interval, paired_differences, spread
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest
from tide_cache.training.metrics import StepMetrics

OnStage = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""

MOST_THREADS = 4
"""For teacher and capture, whose tensors are small: more threads would wait for each other."""


@dataclass(frozen=True)
class DemoRow:
    """A row of the table.

    Attributes:
        arm: What was trained.
        nll: NLL over the seeds, compared with the baseline.
        interval: Half of the 95% interval of the difference from the baseline: over seeds, or with a single seed over
            ten parts of the held-out tasks. None for the baseline, and if there is too little data.
        accuracy: Accuracy on masked tokens.
        exact_match: Share of tasks with one right answer that were answered exactly.
    """

    arm: DemoArm
    nll: Comparison
    interval: float | None
    accuracy: Spread
    exact_match: Spread


@dataclass(frozen=True)
class DemoResult:
    """The results of the demonstration.

    Attributes:
        teacher: Figures of the teacher on the held-out tasks.
        caches: Summary of each pipeline's build.
        arms: Rows of the table, in its order.
        nll_at_views: NLL of `VIEWS_ARM` by views per sample; empty if the table has no such runs.
        num_seeds: Seeds of each student.
        picture: The PNG.
        results: The JSON with all of this.
    """

    teacher: Measured
    caches: dict[Pipeline, BuildSummary]
    arms: list[DemoRow]
    nll_at_views: dict[int, Spread]
    num_seeds: int
    picture: Path
    results: Path


def run_demo(out: Path, size: DemoSize, table: Table, on_stage: OnStage) -> DemoResult:
    """Run the demonstration, or the missing parts of it.

    Args:
        out: Folder of everything; results of an earlier demonstration of the same sizes are reused.
        size: Sizes of the demonstration.
        table: Its students.
        on_stage: Hears about progress.

    Raises:
        RunFileError: The folder holds something else, or a demonstration of other sizes.
    """
    folder = DemoFolder(out.resolve())
    claim(folder.root, size)
    on_stage("corpus", 0, 1)
    make_data(folder, size)

    def on_step(metrics: StepMetrics, steps: int) -> None:
        on_stage("teacher", metrics.step, steps)

    def on_views(progress: BuildProgress) -> None:
        on_stage("capture", progress.views_done, progress.num_views)

    torch.set_num_threads(min(MOST_THREADS, torch.get_num_threads()))  # a user may have set OMP_NUM_THREADS
    on_stage("teacher", 0, size.teacher_steps)
    train_teacher(folder, size, on_step)
    on_stage("capture", 0, size.student_samples * NUM_VIEWS)
    caches = {pipeline: build(folder, pipeline, on_views) for pipeline in PIPELINES}
    jobs = all_jobs(folder, size, table)
    on_stage("starting", 0, len(jobs))
    train_students(jobs, lambda done, total: on_stage("students", done, total))
    on_stage("figures", 0, 1)
    teacher = measured(folder, size, folder.teacher / "model", folder.tokenizer("shared"))
    return _result(folder, size, table, teacher, caches)


def _result(
    folder: DemoFolder,
    size: DemoSize,
    table: Table,
    teacher: Measured,
    caches: dict[Pipeline, BuildSummary],
) -> DemoResult:
    def runs(arm: DemoArm, views: int) -> dict[int, Measured]:
        folders = {seed: folder.student(replace(arm, num_views=views), seed) for seed in table.seeds}
        tokenizer = folder.tokenizer(arm.pipeline)
        return {seed: measured(folder, size, out / "model", tokenizer) for seed, out in folders.items()}

    arms = []
    for arm in table.arms:
        first = next(other for other in table.arms if other.pipeline == arm.pipeline)
        baseline = None if arm is first else runs(first, first.num_views)
        arms.append(summarise(arm, runs(arm, arm.num_views), baseline))
    views = (*table.views, NUM_VIEWS) if table.views else ()
    nll_at_views = {v: spread([run.nll for run in runs(VIEWS_ARM, v).values()]) for v in views}
    picture, results = folder.root / "demo.png", folder.root / "results.json"
    accuracy_at = teacher_accuracy_by_time(folder.cache("shared"))
    rows = {pipeline: [row for row in arms if row.arm.pipeline == pipeline] for pipeline in PIPELINES}
    bars = {p: [Bar(r.arm.name, r.nll.value.mean, r.interval) for r in found] for p, found in rows.items() if found}
    draw(picture, bars, teacher.nll, nll_at_views, len(table.seeds))
    found = DemoResult(teacher, caches, arms, nll_at_views, len(table.seeds), picture, results)
    results.write_text(json.dumps(_as_json(found, accuracy_at, size), indent=2) + "\n", encoding="utf-8")
    return found


def summarise(arm: DemoArm, runs: Mapping[int, Measured], baseline: Mapping[int, Measured] | None) -> DemoRow:
    """Compare an arm with its baseline.

    Args:
        arm: What was trained.
        runs: Its figures, by seed.
        baseline: The same for the baseline; None if this arm is the baseline.
    """
    interval = None
    if baseline is not None:
        differences = paired_differences(_nll_of(runs), _nll_of(baseline))
        if len(runs) == 1:
            (seed,) = runs
            parts = zip(runs[seed].nll_by_part, baseline[seed].nll_by_part, strict=True)
            differences = [ours - theirs for ours, theirs in parts]
        interval = half_interval(differences)
    return DemoRow(
        arm,
        compare(_nll_of(runs), None if baseline is None else _nll_of(baseline)),
        interval,
        spread([run.accuracy for run in runs.values()]),
        spread([run.exact_match for run in runs.values()]),
    )


def _nll_of(runs: Mapping[int, Measured]) -> dict[int, float]:
    return {seed: run.nll for seed, run in runs.items()}


def teacher_accuracy_by_time(cache: Path, num_buckets: int = 10) -> dict[float, float]:
    """Return the teacher's top-1 accuracy on the masked tokens of a cache, by middle of a bucket of t.

    Args:
        cache: Folder of a complete cache.
        num_buckets: Equal buckets of t; empty ones are left out.
    """
    manifest = Manifest.load(cache)
    source = CacheSource(cache, manifest)
    right, total = np.zeros(num_buckets), np.zeros(num_buckets)
    for view in range(manifest.identity.views.num_views):
        for record in source.records(range(source.groups.num_samples), view):
            assert record.signal is not None
            bucket = min(int(record.view.t * num_buckets), num_buckets - 1)
            right[bucket] += record.signal.is_top1_N.sum()
            total[bucket] += len(record.signal.is_top1_N)
    return {(b + 0.5) / num_buckets: float(right[b] / total[b]) for b in range(num_buckets) if total[b]}


def _as_json(found: DemoResult, accuracy_at: Mapping[float, float], size: DemoSize) -> dict[str, Any]:
    return {
        "plan": asdict(size),
        "teacher": asdict(found.teacher),
        "teacher_accuracy_at_t": {f"{t:g}": value for t, value in accuracy_at.items()},
        "caches": {name: asdict(summary) | {"cache": str(summary.cache)} for name, summary in found.caches.items()},
        "arms": [asdict(arm) for arm in found.arms],
        "nll_at_views": {str(views): asdict(value) for views, value in found.nll_at_views.items()},
    }
