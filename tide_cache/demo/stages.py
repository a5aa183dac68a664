"""The demonstration's data, teacher and caches: the same calls that the command line makes, on generated text."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tide_cache.building.driver import BuildSummary, OnProgress, build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.demo.claim import MARKER
from tide_cache.demo.design import BLOCK_SIZE, MAX_LENGTH, NUM_VIEWS, SIGNALS, TEMPERATURES, DemoArm, DemoSize, Pipeline
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.demo.vocabularies import train_vocabularies
from tide_cache.training.checkpoints import CHECKPOINTS, committed_checkpoints
from tide_cache.training.metrics import OnStep
from tide_cache.training.run import train

TEACHER_SEED, STUDENT_SEED, HELD_OUT_SEED = 101, 102, 103
"""Seeds of the three sets of tasks; the vocabularies use other seeds."""

LOG_EVERY = 2
"""Steps between two reports: less than two seconds even on a busy machine."""


@dataclass(frozen=True)
class DemoFolder:
    """Paths of a demonstration."""

    root: Path

    def tasks(self, name: str) -> Path:
        """File of a set of tasks: teacher, student or held-out."""
        return self.root / "corpus" / f"{name}.jsonl"

    def tokenizer(self, pipeline: Pipeline) -> Path:
        """The students' tokenizer; in the shared pipeline it is the teacher's."""
        return self.root / "tokenizers" / ("second" if pipeline == "shared" else "first")

    @property
    def marker(self) -> Path:
        """File with the sizes of the demonstration."""
        return self.root / MARKER

    @property
    def teacher(self) -> Path:
        """Run folder of the teacher."""
        return self.root / "teacher"

    def cache(self, pipeline: Pipeline) -> Path:
        """Cache of a pipeline."""
        return self.root / "caches" / pipeline

    def student(self, arm: DemoArm, seed: int) -> Path:
        """Run folder of a student."""
        return self.root / "students" / arm.slug / f"views-{arm.num_views}" / f"seed-{seed}"


def make_data(folder: DemoFolder, size: DemoSize) -> None:
    """Write the three sets of tasks and train both tokenizers."""
    folder.tasks("teacher").parent.mkdir(parents=True, exist_ok=True)
    write_tasks(folder.tasks("teacher"), make_tasks(size.teacher_samples, TEACHER_SEED))
    write_tasks(folder.tasks("student"), make_tasks(size.student_samples, STUDENT_SEED))
    write_tasks(folder.tasks("held-out"), make_tasks(size.held_out_samples, HELD_OUT_SEED))
    train_vocabularies(folder.root / "tokenizers", seed=0)


def train_teacher(folder: DemoFolder, size: DemoSize, on_step: OnStep) -> None:
    """Train the teacher with `ce` on its own tasks unless it exists; continue from its checkpoint if it has one."""
    if (folder.teacher / "model" / "config.json").exists():
        return
    has_checkpoint = bool(committed_checkpoints(folder.teacher / CHECKPOINTS))
    if not has_checkpoint:
        shutil.rmtree(folder.teacher, ignore_errors=True)  # killed before its first checkpoint
    run = _train_run(
        folder.teacher,
        {"corpus": {"spec": str(folder.tasks("teacher"))}},
        ({"kind": "ce", "time_weight": "uniform"},),
        folder.tokenizer("shared"),
        _shape(size.teacher_hidden, size.teacher_layers, seed=0),
        {"steps": size.teacher_steps, "global_batch": size.teacher_batch, "micro_batch": size.teacher_batch},
        learning_rate=2e-3,
    )
    train(run, resume=has_checkpoint, on_step=on_step)


def build(folder: DemoFolder, pipeline: Pipeline, on_progress: OnProgress) -> BuildSummary:
    """Capture the teacher on the students' tasks; a second call only checks what exists."""
    run = BuildRun.model_validate(
        {
            "corpus": {"spec": str(folder.tasks("student"))},
            "teacher": {
                "model": str(folder.teacher / "model"),
                "block_size": BLOCK_SIZE,
                "max_length": MAX_LENGTH,
                "dtype": "float32",
                "device": "cpu",
            },
            "student": {
                "tokenizer": {"path": str(folder.tokenizer(pipeline))},
                "max_length": MAX_LENGTH,
                "block_size": BLOCK_SIZE,
            },
            "views": {"num_views": NUM_VIEWS},
            "signals": {"kinds": SIGNALS[pipeline], "temperatures": TEMPERATURES, "top_p": 0.999},
            "build": {"out": str(folder.cache(pipeline)), "samples_per_shard": 128, "passes": ["plain"]},
        }
    )
    return build_cache(run, on_progress)


def student_steps(size: DemoSize, arm: DemoArm) -> int:
    """Return the optimizer steps of a student."""
    return max(1, round(size.student_steps * arm.steps_share))


def student_run(folder: DemoFolder, size: DemoSize, arm: DemoArm, seed: int) -> TrainRun:
    """Return the run file of a student; the seed sets its weights and the order of the samples."""
    return _train_run(
        folder.student(arm, seed),
        {"cache": str(folder.cache(arm.pipeline)), "num_views": arm.num_views, "seed": seed},
        arm.objectives,
        folder.tokenizer(arm.pipeline),
        _shape(size.student_hidden, size.student_layers, seed),
        {
            "steps": student_steps(size, arm),
            "global_batch": size.student_batch,
            "micro_batch": size.student_batch,
            "checkpoint_every": 0,
            "seed": seed,
        },
        learning_rate=8e-3,
    )


def _train_run(
    out: Path,
    data: dict[str, Any],
    objectives: tuple[dict[str, Any], ...],
    tokenizer: Path,
    shape: dict[str, Any],
    train_section: dict[str, Any],
    learning_rate: float,
) -> TrainRun:
    return TrainRun.model_validate(
        {
            "student": {
                "shape": shape,
                "tokenizer": {"path": str(tokenizer)},
                "block_size": BLOCK_SIZE,
                "max_length": MAX_LENGTH,
            },
            "data": data,
            "objective": objectives,
            "optimizer": {"lr": learning_rate, "weight_decay": 0.01},
            "train": {
                "out": str(out),
                "precision": "float32",
                "device": "cpu",
                "log_every": LOG_EVERY,
                **train_section,
            },
        }
    )


def _shape(hidden: int, layers: int, seed: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_layers": layers,
        "num_heads": hidden // 16,
        "num_kv_heads": hidden // 32,
        "head_dim": 16,
        "rope_theta": 10_000.0,
        "init_seed": seed,
    }
