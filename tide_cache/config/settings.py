"""The base of settings that stages take in the form of the run file: frozen dataclasses, declared once.

The words that such settings and the command line's options accept are also here, each list once.

Settings need neither pydantic nor torch: run files check them without the stages' libraries, and pure stages import
them. Bounds are in the type, `Annotated[float, Gt(0)]`. A docstring below a field says what it means, and becomes its
description in the JSON schema.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

OnBadRow = Literal["error", "skip"]
"""What a row does that cannot be used: it stops the work, or is left out and listed."""

PreprocessedFormat = Literal["tide-cross", "tide-shared"]
"""Which of TIDE's preprocessing scripts tokenised a set."""

AlignerName = Literal["bytes", "tokenkit"]

PassName = Literal["plain", "compdemo"]
"""plain: the teacher sees the view. compdemo: it sees two, each showing some of what the other masks."""

SignalKind = Literal["truth", "topk", "chunks", "projected"]
"""What was stored of the teacher: `truth` always is; ids drawn from tails come with `topk`."""

CodecName = Literal["plain", "compact"]
LogprobDtype = Literal["float16", "float32"]
Schedule = Literal["linear", "cosine"]
TimeSampling = Literal["stratified", "uniform"]

MaskSource = Literal["random", "trajectory"]
"""random: masks are drawn. trajectory: a view masks what a decoding of the answer had not revealed at some step."""

TrajectorySource = Literal["decode", "given"]
"""decode: the teacher decodes each answer, and what it reveals are the true tokens. given: the corpus says it."""

Context = Literal["full", "block"]
"""What a model is shown: `full` is x_t alone, bidirectional, `block` is [x_t, x_0] under the block mask."""

TeacherContext = Literal["full", "block", "causal"]
"""What a teacher is shown of a sample: as a denoiser, or, under `causal`, the true tokens before each one."""

Precision = Literal["float32", "bfloat16"]
Quantisation = Literal["none", "8bit", "4bit"]
AttentionKind = Literal["sdpa", "flex"]
HeadWay = Literal["auto", "torch", "triton"]
"""torch: tile by tile, on any device. triton: kernels, on a GPU. auto: triton where it works."""
DeviceMap = Literal["auto"]

Semantics = Literal["paper", "corrected"]
"""Whose weights and divisors hold where the objectives say none."""

Batching = Literal["order", "length", "packed"]
"""order: as the samples come. length: samples of like length together. packed: several samples in one row."""

LANES = 64
"""Of the order of samples, by default: a run may have any number of ranks that divides it."""

HOT_CACHE_GIB = 64.0
"""To which size a folder of decoded row groups grows, by default."""

LearningRateSchedule = Literal["cosine", "constant"]
Reporter = Literal["none", "tensorboard", "wandb"]
Remasking = Literal["low_confidence", "random"]
ExportFormat = Literal["parquet", "jsonl.zst"]
Isolation = Literal["namespaces", "limits"]
"""How programs of a model are shut in: no network and closed files, or limits of time and memory alone."""

ThinkPrefix = Literal["template", "empty", "none"]
"""What stands before an answer: what the template writes with thinking off, or surely an empty think block, or none."""


@dataclass(frozen=True)
class Setting:
    """Base of frozen dataclasses that run files are checked against: unknown keys, NaN and infinities are refused."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True)
class Refused:
    """Annotates a field: text that begins so is refused, and the message says why, in place of what is allowed.

    Attributes:
        prefix: How it begins.
        reason: Why, and what to do.
    """

    prefix: str
    reason: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        """Have a run file's check ask this first; see pydantic's "custom types"."""
        return {
            "type": "function-before",
            "function": {"type": "no-info", "function": self._check},
            "schema": handler(source),
        }

    def _check(self, value: object) -> object:
        if isinstance(value, str) and value.startswith(self.prefix):
            raise ValueError(self.reason)
        return value
