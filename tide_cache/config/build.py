"""The run file of `tide-cache build-teacher-shards`."""

import datetime
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tide_cache.config.base import Frozen
from tide_cache.config.common import (
    CacheLocation,
    CorpusConfig,
    Location,
    PassName,
    Precision,
    TokenizerConfig,
    ViewsConfig,
)


class TeacherConfig(Frozen):
    """The teacher, and what it is shown."""

    model: Location = Field(description="Checkpoint folder or hub name.")
    revision: str | None = Field(default=None, description="Commit of a hub checkpoint, 40 hex digits.")
    tokenizer: TokenizerConfig | None = Field(default=None, description="By default the one beside the checkpoint.")
    context: Literal["full", "block"] = Field(
        default="block", description="full: x_t alone, bidirectional. block: [x_t, x_0] under the block-diffusion mask."
    )
    block_size: int = Field(default=32, ge=1, description="Tokens per block in the block context.")
    max_length: int = Field(default=1024, ge=1, description="Longest teacher sequence, in tokens.")
    dtype: Precision = Field(default="bfloat16", description="Arithmetic of the forward; statistics are float32.")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    quantisation: Literal["none", "8bit", "4bit"] = Field(
        default="none", description="Weights in fewer bits, by bitsandbytes on CUDA; stock architectures only."
    )
    device_map: Literal["auto"] | None = Field(
        default=None, description="auto: spread the layers over all GPUs, by accelerate; stock architectures only."
    )
    attention: Literal["sdpa", "flex"] = Field(
        default="sdpa", description="Kernel: sdpa everywhere, or FlexAttention on CUDA, which skips empty blocks."
    )
    compile: bool = Field(
        default=False, description="Compile the model by torch.compile: minutes at first, faster forwards afterwards."
    )

    allow_untrained: bool = Field(
        default=False, description="Take a model that `convert` made and nobody trained; it predicts nothing useful."
    )

    @property
    def loading(self) -> dict[str, Any]:
        """Options of `load_backbone`."""
        return self.model_dump(include={"quantisation", "device_map", "attention", "compile"})


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

    aligner: Literal["bytes", "tokenkit"] = Field(
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


class BuildViewsConfig(ViewsConfig):
    """How samples are masked, and what the teacher is shown of it."""

    demo_ratio: float = Field(
        default=0.5, ge=0, le=1, allow_inf_nan=False,
        description="In the compdemo pass, the probability that a masked chunk is shown in the first of two forwards.",
    )  # fmt: skip


class SignalsConfig(Frozen):
    """What is stored of the teacher's distribution."""

    kinds: tuple[Literal["truth", "topk", "chunks"], ...] = Field(
        default=("truth", "topk"), min_length=1,
        description="truth: of every masked token. topk: candidates at aligned pairs. chunks: candidates of whole "
        "chunks, spelled for the student.",
    )  # fmt: skip
    top_k: int = Field(
        default=64, ge=1,
        description="At most this many ids per position. With 16 half of the gain of kl was left: docs/experiments.md.",
    )  # fmt: skip
    top_p: float = Field(
        default=0.99, gt=0, le=1,
        description="The fewest ids that hold this mass. docs/experiments.md; reverse_kl and tidal want 1.",
    )  # fmt: skip
    temperatures: tuple[float, ...] = Field(
        default=(1.0, 2.0), min_length=1,
        description="Each T an objective may use: 1 for kl and chunk_kl, 2 for reverse_kl and tidal by default.",
    )  # fmt: skip
    logprob_dtype: Literal["float16", "float32"] = Field(default="float16", description="Rounding of stored log-probs.")
    codec: Literal["plain", "compact"] = Field(
        default="plain",
        description="plain: any Parquet reader sees ids and log-probs. compact: the same values in three quarters of "
        "the bytes; logprob_dtype must be float16.",
    )
    chunk_k: int = Field(
        default=16, ge=1,
        description="At most this many candidates for a chunk of several teacher tokens; one token has up to top_k.",
    )  # fmt: skip
    tail_samples: int = Field(
        default=0, ge=0, description="Ids drawn from the rest of each top-k row, for objectives with tail = 'sampled'."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(t <= 0 for t in self.temperatures):
            raise ValueError("temperatures must be positive")
        if len(set(self.temperatures)) != len(self.temperatures) or 1.0 not in self.temperatures:
            raise ValueError("temperatures must be distinct and include 1.0")
        if "truth" not in self.kinds:
            raise ValueError("kinds must include 'truth'")
        if self.tail_samples and "topk" not in self.kinds:
            raise ValueError("tail_samples draws from the tails of topk, and kinds lacks 'topk'")
        if self.codec == "compact" and self.logprob_dtype != "float16":
            raise ValueError(
                "codec 'compact' stores float16 log-probs: set logprob_dtype = 'float16', or codec = 'plain'"
            )
        return self


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
    batch_tokens: int = Field(default=8192, ge=1, description="Tokens per teacher forward, padding included.")
    head_rows: int = Field(default=1024, ge=1, description="Masked rows per slice of the output head.")
    views_per_forward: int = Field(default=4, ge=1, description="Views packed on one clean copy in the block context.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.passes)) != len(self.passes):
            raise ValueError(f"passes {', '.join(self.passes)}: name each pass once")
        return self


class BuildRun(Frozen):
    """A whole run file of stage 1."""

    corpus: CorpusConfig
    teacher: TeacherConfig
    student: BuildStudentConfig
    pairing: PairingConfig = PairingConfig()
    views: BuildViewsConfig = BuildViewsConfig()
    signals: SignalsConfig = SignalsConfig()
    build: BuildConfig
