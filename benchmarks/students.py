"""The student that steps are timed on: built, wrapped in the engine, and stepped as a training run does it."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PretrainedConfig, Qwen3Config

from benchmarks.material import Shape
from tide_cache.config.train import OptimizerConfig, TrainConfig, read_objectives
from tide_cache.modeling.backbone import DTYPES, new_backbone
from tide_cache.objectives import Objective, objective_of, union_of_needs
from tide_cache.records import StudentBatch, Targets
from tide_cache.shards import SignalKind
from tide_cache.student.model import Student
from tide_cache.training.distributed import World
from tide_cache.training.engine import make_engine
from tide_cache.training.meeting import join
from tide_cache.training.step import StepSums, train_step

ALONE = World(0, 1, 0)
SIGNALS: tuple[SignalKind, ...] = ("truth", "topk", "chunks")

PROXY = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
"""A student for two cores. With a vocabulary of 4,096 its head takes about the share of a step that it takes in the
published student: 0.35 of the weights outside the embedding."""
PROXY_VOCAB = 4096


def qwen3_config(vocab_size: int, **shape: Any) -> Qwen3Config:
    """Return a configuration with tied embeddings.

    Args:
        vocab_size: Rows of the embedding.
        shape: Fields of the configuration.
    """
    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    return Qwen3Config(vocab_size=vocab_size, tie_word_embeddings=True, **special, **shape)


def objectives_of(entries: Sequence[dict[str, Any]]) -> tuple[Objective, ...]:
    """Make objectives from entries of a run file, as a run with the default semantics does."""
    return tuple(objective_of(entry) for entry in read_objectives(entries, "corrected"))


def signals_of(objectives: Sequence[Objective]) -> tuple[SignalKind, ...]:
    """Return what the objectives need of a cache."""
    wanted = union_of_needs(objective.needs for objective in objectives).signals
    return tuple(kind for kind in SIGNALS if kind in wanted)


class Trainee:
    """A student with its engine."""

    def __init__(
        self,
        config: PretrainedConfig,
        block_size: int,
        micro_batch: int,
        precision: str = "float32",
        device: str = "cpu",
        activation_checkpointing: bool = False,
    ) -> None:
        """Build it with random weights.

        Args:
            config: Of the model.
            block_size: Tokens per block.
            micro_batch: Samples per step.
            precision: Of the run.
            device: Where it lies.
            activation_checkpointing: As in a run file.
        """
        join(ALONE, device)
        train = TrainConfig.model_validate(
            {"out": "unused", "steps": 1, "global_batch": micro_batch, "micro_batch": micro_batch}
            | {"precision": precision}
        )
        self.backbone = new_backbone(config, DTYPES[precision], device, seed=0)
        if activation_checkpointing:
            self.backbone.model.gradient_checkpointing_enable()  # type: ignore[operator]
        student = Student(self.backbone, block_size, train.head_rows).train()
        self.engine = make_engine(student, train, OptimizerConfig(lr=1e-5), ALONE.size)

    def step(self, batch: tuple[StudentBatch, Targets], objectives: Sequence[Objective]) -> StepSums:
        """Take one step; on a GPU, wait until it is done."""
        sums = train_step(self.engine, [batch], objectives, ALONE, progress=0.5)
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize()
        return sums


def shape_of(pipeline: str, num_samples: int, length: int, vocab_size: int) -> Shape:
    """Return samples of a length whose first fifth is a prompt."""
    assert pipeline in ("shared", "cross")
    return Shape(pipeline, num_samples, length, length // 5, vocab_size)  # type: ignore[arg-type]
