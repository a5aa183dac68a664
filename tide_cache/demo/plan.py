"""The demonstration's sizes and arms, all in one place."""

from dataclasses import dataclass
from typing import Any, Literal

from tide_cache.config.presets import PRESETS

Pipeline = Literal["shared", "cross"]


@dataclass(frozen=True)
class Arm:
    """One way to train a student.

    Attributes:
        name: As the table shows it.
        pipeline: `shared`: the teacher's tokenizer; `cross`: another one.
        objectives: Entries of `[[objective]]`.
        num_views: Views of each sample that are used.
        steps_share: Share of the plan's steps that are taken.
    """

    name: str
    pipeline: Pipeline
    objectives: tuple[dict[str, Any], ...]
    num_views: int = 8
    steps_share: float = 1.0

    @property
    def slug(self) -> str:
        """Folder name."""
        return f"{self.pipeline}-" + "".join(c if c.isalnum() else "-" for c in self.name)


CE = {"kind": "ce"}
CE_UNIFORM = {"kind": "ce", "time_weight": "uniform"}
KL = {"kind": "kl", "temperature": 2.0}

ARMS = (
    Arm("ce", "shared", (CE,)),
    Arm("ce, unweighted", "shared", (CE_UNIFORM,)),
    Arm("ce, unweighted, 70% of the steps", "shared", (CE_UNIFORM,), steps_share=0.7),
    Arm("ce + kl", "shared", (CE, KL)),
    Arm("kl", "shared", (KL,)),
    Arm("ce", "cross", (CE,)),
    Arm("ce + calm", "cross", (CE, {"kind": "calm"})),
    Arm("ce + reverse_calm", "cross", (CE, {"kind": "reverse_calm"})),
    Arm("ce + chunk_kl", "cross", (CE, {"kind": "chunk_kl"})),
    Arm("tide-chunk", "cross", PRESETS["cross/tide-chunk"].objectives),
)
"""The table: the first arm of each pipeline is its baseline."""

VIEWS_ARM = ARMS[4]
VIEWS = (1, 2, 4)
"""Further runs of this arm, for the curve against views per sample; the table's own run uses all."""


@dataclass(frozen=True)
class DemoPlan:
    """How much of everything.

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
        exact_samples: Held-out tasks with one right answer that are answered.
        seeds: Seeds of the students.
    """

    teacher_hidden: int = 96
    teacher_layers: int = 4
    teacher_samples: int = 40_000
    teacher_steps: int = 550
    teacher_batch: int = 64
    student_hidden: int = 48
    student_layers: int = 2
    student_samples: int = 150
    student_steps: int = 300
    student_batch: int = 32
    held_out_samples: int = 200
    exact_samples: int = 60
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = DemoPlan()
QUICK = DemoPlan(
    teacher_hidden=64, teacher_layers=2, teacher_samples=400, teacher_steps=6, student_hidden=32, student_layers=1,
    student_samples=24, student_steps=4, teacher_batch=8, student_batch=8, held_out_samples=8,
    exact_samples=2, seeds=(0, 1),
)  # fmt: skip
"""A plan that only shows that everything runs; its figures mean nothing."""

SIGNALS: dict[Pipeline, tuple[str, ...]] = {"shared": ("truth", "topk"), "cross": ("truth", "topk", "chunks")}
"""What is captured for each pipeline."""

BLOCK_SIZE = 8
MAX_LENGTH = 64
NUM_VIEWS = 8
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Grid of the held-out NLL: mid-points of five equal strata of t."""
