"""The demonstration's sizes and arms, all in one place."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

Pipeline = Literal["shared", "cross"]
PIPELINES: tuple[Pipeline, ...] = get_args(Pipeline)


def slug(pipeline: Pipeline, name: str) -> str:
    """Return the folder name of an arm."""
    return f"{pipeline}-" + "".join(c if c.isalnum() else "-" for c in name)


@dataclass(frozen=True)
class DemoArm:
    """One way to train a student.

    Attributes:
        name: As the table shows it.
        pipeline: `shared`: the teacher's tokenizer; `cross`: another one.
        objectives: Entries of `[[objective]]`.
        num_views: Views of each sample that are used.
        steps_share: Share of the student's steps that are taken.
    """

    name: str
    pipeline: Pipeline
    objectives: tuple[dict[str, Any], ...]
    num_views: int = 8
    steps_share: float = 1.0

    @property
    def slug(self) -> str:
        """The arm's folder name."""
        return slug(self.pipeline, self.name)


CE = {"kind": "ce", "time_weight": "realised_ratio", "weight": 1.0}
CE_UNIFORM = {"kind": "ce", "time_weight": "uniform", "weight": 1.0}
KL = {"kind": "kl", "temperature": 1.0, "weight": 1.0}
CALM = {"kind": "calm", "temperature": 5.0, "weight": 1.0}
REVERSE_CALM = {"kind": "reverse_calm", "temperature": 5.0, "weight": 1.0}
CHUNK_KL = {"kind": "chunk_kl", "temperature": 1.0, "weight": 1.0}
CHUNK_KL_KEPT = {**CHUNK_KL, "temperature": 2.0, "temperature_mode": "kept"}

ARMS = (
    DemoArm("ce", "shared", (CE,)),
    DemoArm("ce, unweighted", "shared", (CE_UNIFORM,)),
    DemoArm("ce, unweighted, 70% of the steps", "shared", (CE_UNIFORM,), steps_share=0.7),
    DemoArm("ce + kl", "shared", (CE, KL)),
    DemoArm("kl", "shared", (KL,)),
    DemoArm("ce", "cross", (CE,)),
    DemoArm("ce + calm", "cross", (CE, CALM)),
    DemoArm("ce + reverse_calm", "cross", (CE, REVERSE_CALM)),
    DemoArm("ce + chunk_kl", "cross", (CE, CHUNK_KL)),
    DemoArm("tide-chunk", "cross", (CE, CHUNK_KL_KEPT)),
)
"""All arms, with every weight and temperature stated; the first of each pipeline is its baseline."""

VIEWS_ARM = ARMS[4]
"""The arm for the curve over views per sample."""


@dataclass(frozen=True)
class Table:
    """Which students are trained.

    Attributes:
        arms: Rows of the table; the first of each pipeline is its baseline.
        seeds: Seeds of the students.
        views: Numbers of views for further runs of `VIEWS_ARM`, whose own run uses all.
    """

    arms: tuple[DemoArm, ...]
    seeds: tuple[int, ...]
    views: tuple[int, ...] = ()


FIRST_LOOK = Table((ARMS[0], ARMS[4], ARMS[5], ARMS[8]), seeds=(0,))
"""Shows in minutes what a cache is worth."""

WHOLE_TABLE = Table(ARMS, seeds=(0, 1, 2), views=(1, 2, 4))
"""Every arm with three seeds, and the curve."""


@dataclass(frozen=True)
class DemoSize:
    """Sizes of the demonstration.

    Attributes:
        teacher_hidden: Width of the teacher.
        teacher_layers: Depth.
        teacher_samples: Tasks it is trained on.
        teacher_steps: Its optimizer steps.
        student_hidden: Width of the students.
        student_layers: Depth.
        student_samples: Tasks that are captured and trained on.
        student_steps: Optimizer steps of a whole run.
        teacher_batch: Samples per step of the teacher.
        student_batch: Samples per step of a student.
        held_out_samples: Tasks on which all are measured.
        exact_samples: How many held-out tasks with one right answer the models answer.
    """

    teacher_hidden: int = 96
    teacher_layers: int = 4
    teacher_samples: int = 40_000
    teacher_steps: int = 400
    teacher_batch: int = 64
    student_hidden: int = 48
    student_layers: int = 2
    student_samples: int = 150
    student_steps: int = 300
    student_batch: int = 32
    held_out_samples: int = 200
    exact_samples: int = 60

    @classmethod
    def of(cls, file: Path) -> Self:
        """Read the sizes with which a demonstration was begun."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


FULL = DemoSize()
QUICK = DemoSize(
    teacher_hidden=64, teacher_layers=2, teacher_samples=400, teacher_steps=6, student_hidden=32, student_layers=1,
    student_samples=24, student_steps=4, teacher_batch=8, student_batch=8, held_out_samples=8,
    exact_samples=2,
)  # fmt: skip
"""Sizes that only show that everything runs; the figures mean nothing."""

SIGNALS: dict[Pipeline, tuple[str, ...]] = {"shared": ("truth", "topk"), "cross": ("truth", "topk", "chunks")}
"""What is captured for each pipeline."""

TEMPERATURES = (1.0,)
"""T of the captures: all that the arms use, except chunk likelihoods, which need none."""

BLOCK_SIZE = 8
MAX_LENGTH = 64
NUM_VIEWS = 8
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Grid of the held-out NLL: mid-points of five equal strata of t."""
