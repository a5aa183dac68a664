"""How much of everything: one size for two CPU cores, one for a GPU, and a toy for tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Sizes of an experiment.

    Attributes:
        device: Where models are trained.
        precision: Of training.
        vocabularies: Ids of the teacher's tokenizer and of the cross student's.
        teacher: Hidden size and layers.
        teacher_steps: Optimizer steps of the teacher.
        teacher_batch: Samples of its steps, two views each.
        student: Hidden size and layers.
        student_steps: Optimizer steps of every student.
        student_batch: Samples of its steps.
        student_rate: Peak learning rate.
        held_out: Rows of validation, and of test.
        seeds: Of students.
    """

    device: str
    precision: str
    vocabularies: tuple[int, int]
    teacher: tuple[int, int]
    teacher_steps: int
    teacher_batch: int
    student: tuple[int, int]
    student_steps: int
    student_batch: int
    student_rate: float
    held_out: int
    seeds: tuple[int, ...] = (0, 1, 2)


SIZES = {
    "cpu": Size("cpu", "float32", (4096, 2048), (256, 4), 650, 12, (96, 3), 120, 8, 5e-3, 120),
    "gpu": Size("cuda", "bfloat16", (4096, 2048), (384, 10), 12_000, 64, (192, 4), 2_000, 32, 2e-3, 240),
}
"""`gpu`: a teacher of 19M parameters, students of 2.2M and 2.6M."""
