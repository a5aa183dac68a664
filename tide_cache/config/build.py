"""The run file of `tide-cache build-teacher-shards`."""

import datetime
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

from annotated_types import Ge
from pydantic import Field, model_validator

from tide_cache.config.base import Frozen
from tide_cache.config.common import (
    CacheLocation,
    CorpusConfig,
    Location,
    TokenizerConfig,
)
from tide_cache.config.sections import BuildViewsConfig, LoadingConfig, SignalsConfig
from tide_cache.config.settings import AlignerName, PassName, Precision, Setting, TeacherContext
from tide_cache.locations import HUB, READ_ONLY, RemotePath


@dataclass(frozen=True)
class ShownTeacher(Setting):
    """Which teacher it is, and what it is shown of a sample; the first part of the section `teacher`."""

    model: Location
    """Checkpoint folder or hub name."""
    revision: str | None = None
    """Commit of a hub checkpoint, 40 hex digits."""
    tokenizer: TokenizerConfig | None = None
    """By default the checkpoint's."""
    context: TeacherContext = "block"
    """full: x_t alone, bidirectional. block: [x_t, x_0] under the block-diffusion mask. causal: the true tokens before
    each one, for a causal model; captured once, for all views."""
    block_size: Annotated[int, Ge(1)] = 32
    """Tokens per block in the block context."""
    max_length: Annotated[int, Ge(1)] = 1024
    """Longest teacher sequence, in tokens."""
    dtype: Precision = "bfloat16"
    """Arithmetic of the forward; statistics are float32."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto, cpu, cuda or cuda:N."""


class EngineTopKConfig(Frozen):
    """Top-k of the true text that an engine wrote, in place of forwards."""

    path: Path = Field(
        description="File, or folder of files: vLLM's prompt_logprobs as JSON lines or Parquet, DistillKit's Parquet."
    )
    engine: str | None = Field(
        default=None, description="What wrote it, with its release: vllm 0.11.0. By default what its format tells."
    )
    name: str | None = Field(default=None, description="Name of the model that it served; by default teacher.model.")


# Fields come in the order of the bases, the last one first.
class TeacherConfig(Frozen, LoadingConfig, ShownTeacher):  # type: ignore[misc]  # `Frozen` is frozen by its configuration
    """The teacher, and what it is shown."""

    allow_untrained: bool = Field(
        default=False, description="Take a model that `convert` made and nobody trained; it predicts nothing useful."
    )

    @property
    def loading(self) -> LoadingConfig:
        """How its weights are loaded."""
        return LoadingConfig(**self.model_dump(include={field.name for field in fields(LoadingConfig)}))

    def tokenizer_in(self, checkpoint: Path) -> TokenizerConfig:
        """Return how its tokenizer is loaded, by default from the checkpoint's folder."""
        section = self.tokenizer or TokenizerConfig(path=str(checkpoint))
        if self.context == "causal" and section.mask_token is None:  # it never sees one, so that any will do
            return section.model_copy(update={"add_mask_token": True})
        return section


class BuildTeacherConfig(TeacherConfig):  # type: ignore[misc]  # `Frozen` is frozen by its configuration
    """The teacher of a cache: it is asked, or what an engine wrote of it is imported."""

    topk: EngineTopKConfig | None = Field(
        default=None, description="Import what an engine said under context causal; `model` then needs no weights."
    )

    @model_validator(mode="after")
    def _causal_topk(self) -> Self:
        if self.topk is not None and self.context != "causal":
            raise ValueError(
                f"context: found {self.context!r}, but topk is what a causal model says of the true text; use "
                "'causal', or leave it out"
            )
        return self


class BuildStudentConfig(Frozen):
    """What stage 1 must know of the student: its tokenizer and lengths."""

    tokenizer: TokenizerConfig
    max_length: int = Field(default=512, ge=1, description="Longest student sequence, in tokens.")
    block_size: int = Field(
        default=32, ge=1, description="Tokens per block; samples are filled up to a multiple of it."
    )
    fill_last_block: bool = Field(
        default=True,
        description="Fill the last block with supervised end-of-text tokens, which teach stopping.",
    )


class PairingConfig(Frozen):
    """How student and teacher tokens are tied together."""

    aligner: AlignerName = Field(
        default="bytes",
        description="bytes: chunks end where both have a byte boundary. tokenkit: the same by bminixhofer/tokenkit.",
    )
    shared_vocab_size: int | None = Field(
        default=None, ge=0, description="Ids below it mean the same token for both; by default found by comparison."
    )
    date: datetime.date | None = Field(
        default=None,
        description="Day that chat templates take for today, where one writes the date; by default the day on which "
        "the cache was begun.",
    )


class BuildConfig(Frozen):
    """Where the cache goes and how the work is cut; none of it changes what a view holds."""

    out: CacheLocation = Field(description="Folder of the cache, or its URL: s3://bucket/cache.")
    passes: tuple[PassName, ...] = Field(
        default=("plain",), min_length=1, description="What to capture; a pass can be added to a finished cache."
    )
    samples_per_shard: int | None = Field(
        default=None,
        ge=1,
        description="Samples of one shard, which is what an interruption costs; by default what takes the teacher "
        "about five minutes, at most 512.",
    )
    trajectories: Path | None = Field(
        default=None,
        description="With views.trajectory = given: JSON lines or Parquet with sample_id and trajectory; by default "
        "the rows have the field trajectory.",
    )
    batch_tokens: int = Field(default=8192, ge=1, description="Tokens per teacher forward, padding included.")
    head_rows: int = Field(default=1024, ge=1, description="Masked rows per slice of the output head.")
    views_per_forward: int = Field(default=4, ge=1, description="Views packed on one clean copy in the block context.")

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        if isinstance(self.out, RemotePath) and self.out.protocol == HUB:
            raise ValueError(f"out {self.out}: {READ_ONLY}")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.passes)) != len(self.passes):
            raise ValueError(f"passes {', '.join(self.passes)}: name each pass once")
        return self


class BuildRun(Frozen):
    """A whole run file of stage 1."""

    corpus: CorpusConfig
    teacher: BuildTeacherConfig
    student: BuildStudentConfig
    pairing: PairingConfig = PairingConfig()
    views: BuildViewsConfig = BuildViewsConfig()
    signals: SignalsConfig = SignalsConfig()
    build: BuildConfig

    @model_validator(mode="before")
    @classmethod
    def _as_topk_is(cls, values: Any) -> Any:
        """Fill in what top-k of an engine leaves no choice about: it is causal, and has tails at T = 1 alone."""
        teacher = values.get("teacher") if isinstance(values, dict) else None
        if not isinstance(teacher, dict) or teacher.get("topk") is None:
            return values
        signals = values.get("signals", {})
        if isinstance(signals, dict):
            values = values | {"signals": {"temperatures": (1.0,)} | signals}
        return values | {"teacher": {"context": "causal"} | teacher}
