"""The run file of `tide-cache train`."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt
from pydantic import Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from tide_cache.config.base import Frozen
from tide_cache.config.common import (
    CacheLocation,
    CorpusConfig,
    Location,
    ObjectiveEntry,
    TokenizerConfig,
)
from tide_cache.config.objectives import AnyObjective, CrossEntropyConfig
from tide_cache.config.presets import find_preset
from tide_cache.config.sections import BatchConfig, ViewsConfig
from tide_cache.config.semantics import resolve
from tide_cache.config.settings import (
    HOT_CACHE_GIB,
    LANES,
    HeadWay,
    LearningRateSchedule,
    PassName,
    Precision,
    Reporter,
    Semantics,
    Setting,
)


class ModelShape(Frozen):
    """A Qwen3 of this shape with random weights, for students and teachers trained from scratch."""

    hidden_size: int = Field(ge=8)
    intermediate_size: int = Field(ge=8)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(default=32, ge=2, multiple_of=2)
    rope_theta: float = Field(default=1e6, gt=0)
    init_seed: int = Field(default=0, ge=0)


class LoraConfig(Frozen):
    """Low-rank adapters: the model stays as it is, and only they are trained; merged into what is saved."""

    rank: int = Field(default=16, ge=1, description="Columns of each adapter's factors.")
    alpha: int = Field(default=32, ge=1, description="Adapters are scaled by alpha / rank.")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Names of the linear layers that get an adapter.",
    )


class StudentConfig(Frozen):
    """The model that is trained."""

    model: Location | None = Field(default=None, description="Checkpoint to start from, local folder or hub name.")
    revision: str | None = Field(default=None, description="Commit of a hub checkpoint.")
    shape: ModelShape | None = Field(default=None, description="Instead of a checkpoint: random weights of this shape.")
    tokenizer: TokenizerConfig | None = Field(default=None, description="By default the checkpoint's.")
    block_size: int | None = Field(
        default=None, ge=1, description="Tokens per diffusion block; by default the cache's, or 32 for a corpus."
    )
    max_length: int | None = Field(
        default=None, ge=1, description="Longest sequence, in tokens; by default the cache's, or 512 for a corpus."
    )
    attention: Literal["sdpa", "flex", "auto"] = Field(
        default="sdpa",
        description="Kernel: sdpa; FlexAttention, which skips empty blocks, on CUDA; auto: flex where it runs.",
    )
    lora: LoraConfig | None = Field(default=None, description="Train adapters instead of the whole model.")

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.model is None) == (self.shape is None):
            raise ValueError("give either model (a checkpoint) or shape (random weights)")
        if self.shape is not None and self.tokenizer is None:
            raise ValueError("shape needs tokenizer, which gives the vocabulary")
        return self


class MixConfig(Frozen):
    """One of several caches that a student learns from at once."""

    cache: CacheLocation = Field(description="Folder or URL that build-teacher-shards wrote.")
    weight: float = Field(default=1.0, gt=0, description="Its share of the turns, relative to the other caches'.")
    signal_pass: PassName = Field(default="plain", description="Which of its passes the teacher speaks from.")
    num_views: int | None = Field(default=None, ge=1, description="Use only this many of its views.")


class DataConfig(Frozen):
    """What is trained on: a cache, several, or a plain corpus when no objective needs a teacher."""

    cache: CacheLocation | None = Field(default=None, description="Folder or URL that build-teacher-shards wrote.")
    mix: tuple[MixConfig, ...] | None = Field(
        default=None, min_length=1, description="Several caches (teachers) at once, each with a weight."
    )
    corpus: CorpusConfig | None = Field(default=None, description="Conversations, masked afresh each epoch.")
    views: ViewsConfig = Field(default=ViewsConfig(), description="Masks for `corpus`; a cache brings its own.")
    signal_pass: PassName = Field(default="plain", description="Which of the cache's passes the teacher speaks from.")
    num_views: int | None = Field(default=None, ge=1, description="Use only this many of the cache's views.")
    seed: int = Field(default=0, ge=0, description="Order of the samples.")
    lanes: int = Field(
        default=LANES,
        ge=1,
        le=4096,
        description="Lanes of the order, a multiple of the number of processes: each process reads its part of them.",
    )
    hot_cache: Path | None = Field(
        default=None, description="Folder on a local disk in which decoded row groups of the caches are kept."
    )
    hot_cache_gib: float = Field(default=HOT_CACHE_GIB, gt=0, description="Size to which that folder may grow, in GiB.")
    date: datetime.date | None = Field(
        default=None,
        description="Day that the chat template takes for today, where a corpus is rendered by one that writes the "
        "date; by default the day on which the run began.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.cache, self.mix, self.corpus].count(None) != 2:
            raise ValueError("give either cache or corpus, or mix for several caches")
        if self.mix is not None and (self.signal_pass != "plain" or self.num_views is not None):
            raise ValueError("signal_pass and num_views: with mix each entry has its own; put them there")
        if self.corpus is not None and self.signal_pass != "plain":
            raise ValueError("signal_pass names a pass of a cache, and corpus is given; leave it out")
        if self.corpus is not None and self.hot_cache is not None:
            raise ValueError("hot_cache keeps row groups of a cache, and corpus is given; leave it out")
        return self

    @property
    def caches(self) -> tuple[MixConfig, ...]:
        """The caches that are read: those of `mix`, or `cache` alone, or none."""
        if self.cache is None:
            return self.mix or ()
        return (MixConfig(cache=self.cache, signal_pass=self.signal_pass, num_views=self.num_views),)


class OptimizerConfig(Frozen):
    """AdamW with warm-up and decay."""

    lr: float = Field(default=5e-5, gt=0, description="Peak learning rate (paper: 5e-5).")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="Share of the steps that warm up linearly.")
    schedule: LearningRateSchedule = "cosine"
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this global norm.")


@dataclass(frozen=True)
class RunLength(Setting):
    """Where a run goes and how long it is; the first part of the section `train`."""

    out: Path
    """Folder of the run: metrics, checkpoints, final model."""
    steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps."""
    epochs: Annotated[float, Gt(0)] | None = None
    """Passes over the samples, instead of steps."""


# Fields come in the order of the bases, the last one first.
class TrainConfig(Frozen, BatchConfig, RunLength):  # type: ignore[misc]  # `Frozen` is frozen by its configuration
    """Steps, batches, arithmetic and checkpoints."""

    precision: Precision = Field(default="bfloat16", description="bfloat16 keeps float32 master weights.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="What is spread over the ranks: 1 optimizer state, 2 gradients too, 3 weights too. 0: nothing.",
    )
    offload: Literal["none", "optimizer", "optimizer+parameters"] = Field(
        default="none", description="What lies in the machine's memory instead of the GPU's."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(default=0, ge=0)
    head: HeadWay = Field(
        default="auto", description="What computes the fused head: torch; triton, on CUDA; auto: triton where it works."
    )
    head_rows: int = Field(default=256, ge=1, description="Masked rows per slice of the fused head, by torch.")
    prefetch: int = Field(default=2, ge=0, description="Steps that are loaded ahead, by a thread; 0 for none.")
    activation_checkpointing: bool = False
    checkpoint_every: int = Field(default=500, ge=0, description="Steps between checkpoints; 0 for none.")
    log_every: int = Field(default=10, ge=1, description="Steps between lines of metrics.jsonl.")
    report_to: Reporter = Field(default="none", description="Where the lines of metrics.jsonl go as well.")
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="Of a running mean of the weights, saved as model-ema; 0 for none."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.global_batch % self.micro_batch:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}")
        return self

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> Self:
        lowest = {"none": 0, "optimizer": 1, "optimizer+parameters": 3}[self.offload]
        if self.zero_stage < lowest:
            raise ValueError(
                f"offload = {self.offload!r} needs zero_stage >= {lowest}, found {self.zero_stage}: only what a stage "
                "takes charge of can be put elsewhere; raise zero_stage, or lower offload"
            )
        return self


class TrainRun(Frozen):
    """A whole run file of stage 2."""

    student: StudentConfig
    data: DataConfig
    preset: str | None = Field(
        default=None, description="A row of the paper's table, e.g. cross/tide-cross; stands for objective and pass."
    )
    semantics: Semantics = Field(
        default="corrected",
        description="Weights and divisors that objectives leave open: as the paper, or corrected for whole chunks.",
    )
    objective: tuple[ObjectiveEntry, ...] = Field(default=(CrossEntropyConfig(),), min_length=1, validate_default=True)
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, raw: object) -> object:
        """Put the objectives of `preset` in its place; the resolved run no longer names it."""
        if not isinstance(raw, dict) or raw.get("preset") is None:
            return raw
        rest = {key: value for key, value in raw.items() if key != "preset"}
        preset = find_preset(str(raw["preset"]))
        if rest.get("objective") is not None:
            raise ValueError("preset and objective: give one of them; a preset is a list of objectives")
        data, passes = rest.get("data"), {"signal_pass": preset.signal_pass}
        if isinstance(data, dict) and data.get("cache") is not None:
            rest["data"] = passes | data
        elif isinstance(data, dict) and isinstance(data.get("mix"), list | tuple):
            rest["data"] = data | {"mix": [passes | e if isinstance(e, dict) else e for e in data["mix"]]}
        return rest | {"objective": preset.objectives}

    @field_validator("objective")
    @classmethod
    def _apply_semantics(
        cls, objectives: tuple[ObjectiveEntry, ...], info: ValidationInfo
    ) -> tuple[ObjectiveEntry, ...]:
        """Fill in what `semantics` decides, so that the resolved run says every value it trains with."""
        semantics = info.data.get("semantics")
        if semantics is None:  # was refused, and is reported as a fault of its own
            return objectives
        return tuple(resolve(entry, semantics) for entry in objectives)


def read_objectives(entries: Sequence[dict[str, Any]], semantics: Semantics) -> tuple[AnyObjective, ...]:
    """Return entries as a run with these semantics has them.

    Raises:
        ValidationError: An entry would be refused in a run file.
    """
    reader: TypeAdapter[AnyObjective] = TypeAdapter(ObjectiveEntry)
    return tuple(resolve(reader.validate_python(entry), semantics) for entry in entries)
