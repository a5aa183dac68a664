"""The `[[objective]]` entries of a training run file; the objective of that kind inherits its fields from here.

They are not in `objectives/`, because a run file is checked before torch is loaded. Fields whose default
is None are decided by `config/semantics.py`.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt, Le

from tide_cache.config.settings import Refused, Setting

Temperature = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Tail = Literal["rest", "renormalise", "sampled"]
Elsewhere = Literal["nothing", "truth"]
"""What rows are taught that have no candidates. nothing: rows with candidates weigh more than they do in `ce`. truth:
the true token, so that all masked rows weigh the same."""
TemperatureMode = Literal["captured", "kept"]
"""captured: T applies to the whole distribution, so it must have been captured. kept: T applies among the kept
outcomes only, and how much they hold is compared at T = 1; any T will do."""


def softened(
    temperature: float | None, mode: TemperatureMode | None, kept: bool = True
) -> tuple[float, TemperatureMode]:
    """Return T and its mode where an entry leaves one of them open, or both.

    With real weights T = 2 among the kept gained most. An entry that names a T alone means the captured one.

    Args:
        temperature: As stated; None if it is open.
        mode: Likewise.
        kept: Whether the entry can compare the kept outcomes by themselves.
    """
    if temperature is not None:
        return temperature, mode or "captured"
    mode = mode or ("kept" if kept else "captured")
    return (2.0 if mode == "kept" else 1.0), mode


@dataclass(frozen=True)
class _Objective(Setting):
    """What every entry has."""

    weight: Annotated[float, Gt(0)] = field(default=1.0, kw_only=True)
    """Factor of this objective in the sum. 1 was best for chunk_kl and reverse_calm, and kl at T = 1 gained the most of
    all with it; others: docs/objectives.md."""

    def __post_init__(self) -> None:
        """Go on to what the objective of this entry does; an entry by itself has nothing more to do."""
        if of_objective := getattr(super(), "__post_init__", None):
            of_objective()


RowWeight = Literal["even", "soon", "later", "uncertain"]
"""Which masked tokens count: all; those revealed within `horizon` steps of the view; those revealed later; or the share
of each view's tokens of which the student is least sure."""


@dataclass(frozen=True)
class _ByStep(_Objective):
    row_weight: RowWeight = field(default="even", kw_only=True)
    """even; on a cache with views.source = trajectory, only tokens revealed within horizon steps (soon) or only the
    others (later): TAD (arXiv:2605.09536): ce soon, kl later; or uncertain, only where the student is least sure."""
    horizon: Annotated[int, Ge(1)] = field(default=8, kw_only=True)
    """Steps that are soon; 8 as TAD's scripts."""
    share: Annotated[float, Gt(0), Le(1)] = field(default=0.2, kw_only=True)
    """Share of each view's rows or chunks that uncertain teaches, rounded up; a fifth as SE-KD (arXiv:2602.01395)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row_weight == "uncertain" and getattr(self, "elsewhere", "nothing") != "nothing":
            raise ValueError(
                "row_weight = 'uncertain' teaches some rows with candidates, elsewhere = 'truth' all without; drop one"
            )


_CHOOSES_TAUGHT = Refused(
    "uncertain",
    "'uncertain' chooses where a teacher is heard; ce teaches every row, or those by step; use it in kl, "
    "reverse_kl or chunk_kl",
)


@dataclass(frozen=True)
class CrossEntropyConfig(_ByStep):
    """Denoising cross-entropy on the true tokens; needs no teacher."""

    kind: Literal["ce"] = field(default="ce", kw_only=True)
    row_weight: Annotated[Literal["even", "soon", "later"], _CHOOSES_TAUGHT] = field(default="even", kw_only=True)
    """even, or, on a cache with views.source = trajectory, only tokens revealed within horizon steps (soon) or only the
    others (later). TAD (arXiv:2605.09536): ce soon, kl later."""
    time_weight: Literal["scheduler", "realised_ratio", "uniform"] | None = None
    """1/t as BD3LM, 1/(the token's own chance to be masked, given what is masked), or none with a mean over masked
    tokens; by default scheduler with semantics = 'paper' and realised_ratio with 'corrected'."""


@dataclass(frozen=True)
class ForwardKLConfig(_ByStep):
    """KL(teacher || student) on aligned pairs."""

    kind: Literal["kl"] = field(default="kl", kw_only=True)
    temperature: Temperature = None  # type: ignore[assignment]  # decided with the mode
    """Softens both distributions. By default 2 among the kept ids: docs/objectives.md#defaults-and-why; 1 with tail =
    'sampled' or temperature_mode = 'captured'."""
    tail: Tail = "rest"
    """What is not kept: one outcome, left out, or estimated from signals.tail_samples draws."""
    temperature_mode: TemperatureMode = None  # type: ignore[assignment]  # decided with T
    """What T softens: the whole distribution (captured, the default where temperature is given), or the kept ids among
    themselves (kept: any T, none captured)."""
    elsewhere: Elsewhere = "nothing"
    """What rows without candidates are taught; truth: the true token, with the same weight."""
    per: Literal["row", "chunk"] = "row"
    """What counts once: a row, or a chunk, whose rows are then averaged. X-Token (arXiv:2605.21699): chunk, with tail =
    'renormalise', on projected."""

    def __post_init__(self) -> None:
        temperature, mode = softened(self.temperature, self.temperature_mode, kept=self.tail != "sampled")
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "temperature_mode", mode)
        super().__post_init__()
        if self.per == "chunk" and (self.elsewhere == "truth" or self.row_weight == "uncertain"):
            other = "elsewhere = 'truth'" if self.elsewhere == "truth" else "row_weight = 'uncertain'"
            raise ValueError(f"per = 'chunk' counts chunks, {other} counts rows; drop one")
        if self.temperature_mode == "kept" and self.tail == "sampled":
            raise ValueError(
                "tail = 'sampled' estimates what temperature_mode = 'kept' compares as one outcome; drop one"
            )


@dataclass(frozen=True)
class ReverseKLConfig(_ByStep):
    """KL(student || teacher) on aligned pairs."""

    kind: Literal["reverse_kl"] = field(default="reverse_kl", kw_only=True)
    temperature: Temperature = 2.0
    """Softens both distributions; must have been captured. 2 is the paper's; no other was tried."""
    tail: Tail = "rest"
    """What is not kept: one outcome, left out, or estimated from signals.tail_samples draws."""


@dataclass(frozen=True)
class _ChunkLikelihood(_Objective):
    temperature: Temperature = 5.0
    """Divides summed chunk log-probs; dimensionless. 5 is that of the paper's scripts; 1 was no better:
    docs/experiments.md."""
    clamp_student: bool | None = None
    """Clamp the student's chunk probability at 1e-7: no gradient below. Semantics decides."""


@dataclass(frozen=True)
class CalmConfig(_ChunkLikelihood):
    """Binary cross-entropy of chunk likelihoods, teacher as target: CALM."""

    kind: Literal["calm"] = field(default="calm", kw_only=True)
    chunks: Literal["all", "without_candidates"] = "all"
    """without_candidates: only chunks without candidates, which chunk_kl cannot compare."""


@dataclass(frozen=True)
class ReverseCalmConfig(_ChunkLikelihood):
    """Binary cross-entropy of chunk likelihoods, student as target: Reverse CALM."""

    kind: Literal["reverse_calm"] = field(default="reverse_calm", kw_only=True)


@dataclass(frozen=True)
class BernoulliKLConfig(_ChunkLikelihood):
    """KL between chunk likelihoods as two outcomes: what Reverse CALM is said to be."""

    kind: Literal["bernoulli_kl"] = field(default="bernoulli_kl", kw_only=True)


@dataclass(frozen=True)
class ChunkKLConfig(_ByStep):
    """KL(teacher || student) over candidate chunks and the rest, across tokenizers."""

    kind: Literal["chunk_kl"] = field(default="chunk_kl", kw_only=True)
    temperature: Temperature = None  # type: ignore[assignment]  # decided with the mode
    """Softens both distributions. By default 2 among the candidates: docs/objectives.md#defaults-and-why; 1 with
    temperature_mode = 'captured'."""
    tail: Literal["rest", "renormalise", "fits"] = "rest"
    """What is no candidate: one outcome; left out on both sides; or, with fits, left out of the teacher alone, since
    all that a student can write has the chunk's length."""
    temperature_mode: TemperatureMode = None  # type: ignore[assignment]  # decided with T
    """What T softens: the whole distribution (captured, the default where temperature is given), or the candidates
    among themselves (kept: any T, none captured)."""
    elsewhere: Elsewhere = "nothing"
    """What rows of chunks without candidates are taught; truth: the true token, with the same weight."""

    def __post_init__(self) -> None:
        temperature, mode = softened(self.temperature, self.temperature_mode)
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "temperature_mode", mode)
        super().__post_init__()


_NOT_REVERSED = Refused(
    "reverse",
    "TIDAL does not go with a reverse objective: the paper finds the two counterproductive together "
    "(arXiv:2604.26951); use over = 'kl' or 'calm', or the reverse objective by itself",
)


@dataclass(frozen=True)
class TidalConfig(_Objective):
    """A target between student and teacher that moves to the teacher with training progress and falling noise."""

    kind: Literal["tidal"] = field(default="tidal", kw_only=True)
    over: Annotated[Literal["kl", "calm"], _NOT_REVERSED] = "kl"
    """kl on aligned pairs, or calm on chunks; reverse objectives are refused."""
    temperature: Temperature = 2.0
    """Over kl it must have been captured. 2 is the paper's."""
    axes: Literal["both", "training_only", "timestep_only"] = "both"
    """What the trust in the teacher depends on."""
    time_weight: Literal["uniform", "midrange"] = "uniform"
    """midrange: exp(-(t - 0.5)^2 / (2 * 0.15^2)), paper Table 5."""
    normalise: Literal["count", "weights"] | None = None
    """Divide by the number of rows or chunks, or by the sum of their time weights; by default count with semantics =
    'paper' and weights with 'corrected'."""
    growth: Literal["cosine", "linear"] = "cosine"
    """How trust grows over the run."""
    lambda_init: Share = 0.1
    """Trust at the start (paper: 0.1)."""
    lambda_max: Share = 0.9
    """Trust at the end (paper: 0.9)."""
    tail: Literal["rest", "renormalise"] = "rest"
    """Over kl, what is not kept: one outcome, or left out."""
    clamp_student: bool | None = None
    """Clamp the student's chunk probability at 1e-7: no gradient below. Semantics decides."""


AnyObjective = (
    CrossEntropyConfig
    | ForwardKLConfig
    | ReverseKLConfig
    | CalmConfig
    | ReverseCalmConfig
    | BernoulliKLConfig
    | ChunkKLConfig
    | TidalConfig
)

OBJECTIVE_KINDS: tuple[str, ...] = tuple(entry.kind for entry in get_args(AnyObjective))
