"""Sections of run files, and parts of sections, that a stage takes in the form of the run file; pure.

Defaults are declared only here. `manifest/identity.py` repeats the fields that determine a cache; there they have no
defaults, and are never removed.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen

from tide_cache.config.settings import (
    AttentionKind,
    Batching,
    CodecName,
    DeviceMap,
    LogprobDtype,
    MaskSource,
    Quantisation,
    Schedule,
    Setting,
    SignalKind,
    TimeSampling,
    TrajectorySource,
)


@dataclass(frozen=True)
class ViewsConfig(Setting):
    """How samples are masked."""

    num_views: Annotated[int, Ge(1)] = 8
    """Masked views per sample."""
    seed: Annotated[int, Ge(0)] = 0
    """Mask seed; with sample id and view it determines every mask."""
    time_sampling: TimeSampling = "stratified"
    """Views of a sample cover equal strata of t, or draw t independently."""
    schedule: Schedule = "linear"
    """Mask probability as a function of t."""
    complementary: bool = False
    """Views come in pairs whose masks complement each other."""

    def __post_init__(self) -> None:
        if self.complementary and self.num_views % 2:
            raise ValueError(f"num_views {self.num_views}: complementary views come in pairs; use an even number")


@dataclass(frozen=True)
class BuildViewsConfig(ViewsConfig):
    """How samples are masked, and what the teacher is shown of it."""

    demo_ratio: Annotated[float, Ge(0), Le(1)] = 0.5
    """In the compdemo pass, the probability that a masked chunk is shown in the first of two forwards."""
    source: MaskSource = "random"
    """random masks, or those of a decoding of the answer, with the steps until each masked token is revealed."""
    trajectory: TrajectorySource = "decode"
    """With source = trajectory: the teacher decodes the true answer, or rows have a field `trajectory`."""
    steps_per_block: Annotated[int, Ge(1)] | None = None
    """With trajectory = decode, maximum forwards per block; by default one per token."""
    threshold: Annotated[float, Gt(0), Le(1)] | None = None
    """With trajectory = decode, reveal at once every token whose probability exceeds this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "trajectory" and self.complementary:
            raise ValueError("complementary: views of a trajectory follow its steps; leave it out")
        decoding = (self.steps_per_block, self.threshold)
        if self.source == "random" and (self.trajectory, *decoding) != ("decode", None, None):
            raise ValueError("trajectory, steps_per_block and threshold need source = 'trajectory'")
        if self.trajectory == "given" and decoding != (None, None):
            raise ValueError("steps_per_block and threshold are for trajectory = 'decode'; leave them out")


@dataclass(frozen=True)
class SignalsConfig(Setting):
    """What is stored of the teacher's distribution."""

    kinds: Annotated[tuple[SignalKind, ...], MinLen(1)] = ("truth", "topk")
    """truth: of every masked token. topk: candidates at aligned pairs. chunks: candidates of whole chunks, spelled for
    the student. projected: at every token of a chunk, candidates in the student's vocabulary, in place of topk."""
    top_k: Annotated[int, Ge(1)] = 64
    """At most this many ids per position. With 16 half of the gain of kl was left: docs/experiments.md."""
    top_p: Annotated[float, Gt(0), Le(1)] = 0.99
    """The fewest ids that hold this mass. docs/experiments.md; reverse_kl and tidal want 1."""
    temperatures: Annotated[tuple[float, ...], MinLen(1)] = (1.0, 2.0)
    """Each T an objective may use: 1 for kl and chunk_kl, 2 for reverse_kl and tidal by default."""
    logprob_dtype: LogprobDtype = "float16"
    """Rounding of stored log-probs."""
    codec: CodecName = "plain"
    """plain: any Parquet reader sees ids and log-probs. compact: the same values in three quarters of the bytes;
    logprob_dtype must be float16."""
    chunk_k: Annotated[int, Ge(1)] = 16
    """At most this many tuples of teacher tokens for a chunk of several; one token has up to top_k candidates."""
    chunk_passes: Annotated[int, Ge(0)] = 0
    """Further forwards, each of which shows the teacher one more true token of every chunk of several, so that what
    follows is predicted given what it begins with. 1 is enough where few chunks have three teacher tokens."""
    tail_samples: Annotated[int, Ge(0)] = 0
    """Ids drawn from the rest of each top-k row, for objectives with tail = 'sampled'."""

    def __post_init__(self) -> None:
        if any(t <= 0 for t in self.temperatures):
            raise ValueError("temperatures must be positive")
        if len(set(self.temperatures)) != len(self.temperatures) or 1.0 not in self.temperatures:
            raise ValueError("temperatures must be distinct and include 1.0")
        if "truth" not in self.kinds:
            raise ValueError("kinds must include 'truth'")
        if {"topk", "projected"} <= {*self.kinds}:
            raise ValueError(
                "kinds has 'topk' and 'projected', and an objective reads one of them: topk where both tokenizers are "
                "the same, projected where they differ"
            )
        if self.tail_samples and "topk" not in self.kinds:
            raise ValueError("tail_samples draws from the tails of topk, and kinds lacks 'topk'")
        if self.codec == "compact" and self.logprob_dtype != "float16":
            raise ValueError(
                "codec 'compact' stores float16 log-probs: set logprob_dtype = 'float16', or codec = 'plain'"
            )

    @property
    def has_topk(self) -> bool:
        """Whether candidates are kept at aligned pairs."""
        return "topk" in self.kinds

    @property
    def ids_per_row(self) -> int:
        """Ids that are kept of a row at most; 0 where only the truth is kept."""
        return self.top_k if {*self.kinds} - {"truth"} else 0

    @property
    def has_chunks(self) -> bool:
        """Whether candidates are kept of whole chunks."""
        return "chunks" in self.kinds

    @property
    def has_projected(self) -> bool:
        """Whether candidates are kept at student tokens, in the student's vocabulary."""
        return "projected" in self.kinds

    @property
    def tuples_per_chunk(self) -> int:
        """Tuples that are looked at of a chunk of several teacher tokens at most; 0 where none are spelled."""
        return self.chunk_k if self.has_chunks or self.has_projected else 0


@dataclass(frozen=True)
class LoadingConfig(Setting):
    """How a teacher's weights are held and run; a part of the section `teacher`."""

    quantisation: Quantisation = "none"
    """Weights in fewer bits, by bitsandbytes on CUDA; stock architectures only."""
    device_map: DeviceMap | None = None
    """auto: spread the layers over all GPUs, by accelerate; stock architectures only."""
    attention: AttentionKind = "sdpa"
    """Kernel: sdpa everywhere, or FlexAttention on CUDA, which skips empty blocks."""
    compile: bool = False
    """Compile the model by torch.compile: minutes at first, faster forwards afterwards."""


@dataclass(frozen=True)
class BatchConfig(Setting):
    """How steps are cut into forwards; a part of the section `train`.

    `global_batch` is a multiple of `micro_batch` times the number of ranks.
    """

    global_batch: Annotated[int, Ge(1)] = 64
    """Samples per optimizer step, over all ranks."""
    micro_batch: Annotated[int, Ge(1)] = 8
    """Samples per forward on one rank; with batching = length more short and fewer long ones, for no more tokens."""
    batching: Batching = "length"
    """Who shares a forward: samples as they come, those of like length, or several packed into one row."""
    row_tokens: Annotated[int, Ge(1)] = 512
    """With batching = packed, tokens of a row; a longer sample has one of its own."""
    views_per_step: Annotated[int, Ge(1)] = 1
    """Views of a sample that are shown together in a step, on one clean copy."""
