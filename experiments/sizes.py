"""How much of everything: one size for two CPU cores, one for a GPU, and a toy for tests."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Size:
    """Sizes of an experiment.

    Attributes:
        device: Where models are trained.
        precision: Of training students.
        teacher_precision: Of training the teacher, and of the causal models that all start from.
        vocabularies: Ids of the teacher's tokenizer and of the cross student's.
        teacher: Hidden size and layers.
        teacher_epochs: Passes over the text of the causal model that the teacher starts from.
        teacher_steps: Optimizer steps of the teacher as a denoiser.
        teacher_batch: Samples of its steps.
        teacher_views: Views of each of them, on one clean copy.
        student: Hidden size and layers.
        student_epochs: Passes over the text of the causal models that the students start from.
        student_steps: Optimizer steps of a student.
        all_steps: The same where it learns from all samples: about one pass over them.
        all_views: Views that are captured of each of all samples; of fewer samples 8.
        student_batch: Samples of its steps.
        student_views: Views of each of them, on one clean copy.
        student_rate: Peak learning rate.
        held_out: Rows of validation, and of test.
        seeds: Of students.
    """

    device: str
    precision: str
    teacher_precision: str
    vocabularies: tuple[int, int]
    teacher: tuple[int, int]
    teacher_epochs: int
    teacher_steps: int
    teacher_batch: int
    teacher_views: int
    student: tuple[int, int]
    student_epochs: int
    student_steps: int
    all_steps: int
    all_views: int
    student_batch: int
    student_views: int
    student_rate: float
    held_out: int
    seeds: tuple[int, ...] = (0, 1, 2)


SIZES = {
    "cpu": Size(
        device="cpu",
        precision="float32",
        teacher_precision="float32",
        vocabularies=(4096, 2048),
        teacher=(384, 5),
        teacher_epochs=3,
        teacher_steps=500,
        teacher_batch=8,
        teacher_views=4,
        student=(128, 4),
        student_epochs=2,
        student_steps=300,
        all_steps=1_000,
        all_views=4,
        student_batch=4,
        student_views=2,
        student_rate=5e-4,
        held_out=160,
    ),
    "gpu": Size(
        device="cuda",
        precision="bfloat16",
        teacher_precision="bfloat16",
        vocabularies=(4096, 2048),
        teacher=(384, 10),
        teacher_epochs=8,
        teacher_steps=6_000,
        teacher_batch=32,
        teacher_views=4,
        student=(192, 4),
        student_epochs=4,
        student_steps=2_000,
        all_steps=2_000,
        all_views=8,
        student_batch=32,
        student_views=2,
        student_rate=1e-3,
        held_out=240,
    ),
}
SIZES["cpu-bf16"] = replace(SIZES["cpu"], teacher_precision="bfloat16")
"""`cpu`: a teacher of 10M parameters, students of 1.1M and 1.3M. `cpu-bf16`: the same, where the teacher and all starts
multiply matrices in bfloat16, which a CPU with AMX does faster. `gpu`: 19M, 2.2M and 2.6M."""
