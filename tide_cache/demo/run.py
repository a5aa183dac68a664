"""The whole demonstration: from nothing to a table that says whether students learned from a cache."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tide_cache.building.driver import BuildProgress, BuildSummary
from tide_cache.demo.measure import Measured, measure
from tide_cache.demo.picture import draw
from tide_cache.demo.plan import ARMS, NUM_VIEWS, VIEWS, VIEWS_ARM, Arm, DemoPlan, Pipeline
from tide_cache.demo.stages import DemoFolder, build, make_data, train_teacher
from tide_cache.demo.students import Job, all_jobs, run_jobs
from tide_cache.errors import RunFileError
from tide_cache.evaluation.comparison import Comparison, Spread, compare, spread
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest
from tide_cache.training.metrics import StepMetrics

OnStage = Callable[[str, int, int], None]
"""Called with the name of a stage, what is done of it and how much there is."""


@dataclass(frozen=True)
class ArmResult:
    """A row of the table."""

    arm: Arm
    nll: Comparison
    accuracy: Spread
    exact_match: Spread


@dataclass(frozen=True)
class DemoResult:
    """All that the demonstration found.

    Attributes:
        teacher: Figures of the teacher on the held-out tasks.
        caches: Summary of each pipeline's build.
        arms: Rows of the table, in its order.
        nll_at_views: NLL of `VIEWS_ARM` by views per sample.
        picture: The PNG.
        results: The JSON with all of this.
    """

    teacher: Measured
    caches: dict[Pipeline, BuildSummary]
    arms: list[ArmResult]
    nll_at_views: dict[int, Spread]
    picture: Path
    results: Path


def run_demo(out: Path, plan: DemoPlan, on_stage: OnStage) -> DemoResult:
    """Run the demonstration, or what is missing of it.

    Args:
        out: Folder of everything; what an interrupted demonstration left there is used.
        plan: Its sizes.
        on_stage: Progress.

    Raises:
        RunFileError: The folder holds something else, or a demonstration of other sizes.
    """
    folder = DemoFolder(out.resolve())
    _claim(folder.root, plan)
    make_data(folder, plan)

    def on_step(metrics: StepMetrics, steps: int) -> None:
        on_stage("teacher", metrics.step, steps)

    def on_views(progress: BuildProgress) -> None:
        on_stage("caches", progress.views_done, progress.num_views)

    train_teacher(folder, plan, on_step)
    pipelines: tuple[Pipeline, ...] = ("shared", "cross")
    caches = {pipeline: build(folder, pipeline, on_views) for pipeline in pipelines}
    jobs = all_jobs(plan)
    measured: dict[tuple[str, int, int], Measured] = {}
    on_stage("students", 0, len(jobs))
    for job, result in run_jobs(folder, plan, jobs):
        measured[job.key] = result
        on_stage("students", len(measured), len(jobs))
    teacher = measure(folder, plan, folder.teacher / "model", "shared")
    return _result(folder, plan, teacher, caches, measured)


def _claim(root: Path, plan: DemoPlan) -> None:
    """Mark a new folder as this demonstration's, or check that it is."""
    marker, content = root / "demo.json", json.dumps(asdict(plan), indent=2) + "\n"
    if marker.exists():
        if marker.read_text(encoding="utf-8") != content:
            raise RunFileError(f"{root}: found a demonstration of other sizes; give --out another folder, or remove it")
        return
    if root.exists() and any(root.iterdir()):
        raise RunFileError(f"{root}: found files that no demonstration wrote; give --out a new folder")
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(content, encoding="utf-8")


def _result(
    folder: DemoFolder,
    plan: DemoPlan,
    teacher: Measured,
    caches: dict[Pipeline, BuildSummary],
    measured: Mapping[tuple[str, int, int], Measured],
) -> DemoResult:
    def by_seed(arm: Arm, views: int) -> dict[int, float]:
        return {seed: measured[arm.slug, views, seed].nll for seed in plan.seeds}

    arms = []
    for arm in ARMS:
        first = next(other for other in ARMS if other.pipeline == arm.pipeline)
        baseline = None if arm is first else by_seed(first, first.num_views)
        runs = [measured[Job(arm, seed).key] for seed in plan.seeds]
        arms.append(
            ArmResult(
                arm,
                compare(by_seed(arm, arm.num_views), baseline),
                spread([run.accuracy for run in runs]),
                spread([run.exact_match for run in runs]),
            )
        )
    views = {v: spread(list(by_seed(VIEWS_ARM, v).values())) for v in (*VIEWS, NUM_VIEWS)}
    picture, results = folder.root / "demo.png", folder.root / "results.json"
    accuracy_at = teacher_accuracy_by_time(folder.cache("shared"))
    draw(picture, accuracy_at, views, VIEWS_ARM.name)
    found = DemoResult(teacher, caches, arms, views, picture, results)
    results.write_text(json.dumps(_as_json(found, accuracy_at, plan), indent=2) + "\n", encoding="utf-8")
    return found


def teacher_accuracy_by_time(cache: Path, num_buckets: int = 10) -> dict[float, float]:
    """Give the teacher's top-1 accuracy on the masked tokens of a cache, by middle of a bucket of t.

    Args:
        cache: Folder of a complete cache.
        num_buckets: Equal buckets of t; empty ones are left out.
    """
    manifest = Manifest.load(cache)
    source = CacheSource(cache, manifest)
    right, total = np.zeros(num_buckets), np.zeros(num_buckets)
    for view in range(manifest.identity.views.num_views):
        for record in source.records(range(sum(source.group_sizes)), view):
            assert record.signal is not None
            bucket = min(int(record.view.t * num_buckets), num_buckets - 1)
            right[bucket] += record.signal.is_top1_N.sum()
            total[bucket] += len(record.signal.is_top1_N)
    return {(b + 0.5) / num_buckets: float(right[b] / total[b]) for b in range(num_buckets) if total[b]}


def _as_json(found: DemoResult, accuracy_at: Mapping[float, float], plan: DemoPlan) -> dict[str, Any]:
    return {
        "plan": asdict(plan),
        "teacher": asdict(found.teacher),
        "teacher_accuracy_at_t": {f"{t:g}": value for t, value in accuracy_at.items()},
        "caches": {name: asdict(summary) | {"cache": str(summary.cache)} for name, summary in found.caches.items()},
        "arms": [asdict(arm) for arm in found.arms],
        "nll_at_views": {str(views): asdict(value) for views, value in found.nll_at_views.items()},
    }
