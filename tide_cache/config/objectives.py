"""The `[[objective]]` entries of a training run file."""

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from tide_cache.config.base import Frozen

CLAMP = Field(
    default=None, description="Clamp the student's chunk probability at 1e-7: no gradient below. Semantics decides."
)


class _Objective(Frozen):
    weight: float = Field(
        default=1.0, gt=0,
        description="Factor of this objective in the sum. 1 was best for chunk_kl and reverse_calm, and kl at T = 1 "
        "gained the most of all with it; others: docs/objectives.md.",
    )  # fmt: skip


class CrossEntropyConfig(_Objective):
    """Denoising cross-entropy on the true tokens; needs no teacher."""

    kind: Literal["ce"]
    time_weight: Literal["scheduler", "realised_ratio", "uniform"] | None = Field(
        default=None,
        description="1/t as BD3LM, 1/(the token's own chance to be masked, given what is masked), or none with a mean "
        "over masked tokens; by default scheduler with semantics = 'paper' and realised_ratio with 'corrected'.",
    )


class ForwardKLConfig(_Objective):
    """KL(teacher || student) on aligned pairs."""

    kind: Literal["kl"]
    temperature: float = Field(
        default=1.0, gt=0,
        description="Softens both distributions; must have been captured. 1 lowered NLL by 0.166, 2 by 0.111: "
        "docs/experiments.md.",
    )  # fmt: skip
    tail: Literal["rest", "renormalise", "sampled"] = Field(
        default="rest",
        description="What is not kept: one outcome, left out, or estimated from signals.tail_samples draws.",
    )


class ReverseKLConfig(_Objective):
    """KL(student || teacher) on aligned pairs."""

    kind: Literal["reverse_kl"]
    temperature: float = Field(
        default=2.0, gt=0,
        description="Softens both distributions; must have been captured. 2 is the paper's; no other was tried.",
    )  # fmt: skip
    tail: Literal["rest", "renormalise", "sampled"] = Field(
        default="rest",
        description="What is not kept: one outcome, left out, or estimated from signals.tail_samples draws.",
    )


class _ChunkLikelihood(_Objective):
    temperature: float = Field(
        default=5.0, gt=0,
        description="Divides summed chunk log-probs; dimensionless. 5 is that of the paper's scripts; 1 was no better: "
        "docs/experiments.md.",
    )  # fmt: skip
    clamp_student: bool | None = CLAMP


class CalmConfig(_ChunkLikelihood):
    """Binary cross-entropy of chunk likelihoods, teacher as target: CALM."""

    kind: Literal["calm"]
    chunks: Literal["all", "without_candidates"] = Field(
        default="all", description="without_candidates: only chunks that chunk_kl beside it cannot compare."
    )


class ReverseCalmConfig(_ChunkLikelihood):
    """Binary cross-entropy of chunk likelihoods, student as target: Reverse CALM."""

    kind: Literal["reverse_calm"]


class BernoulliKLConfig(_ChunkLikelihood):
    """KL between chunk likelihoods as two outcomes: what Reverse CALM is said to be."""

    kind: Literal["bernoulli_kl"]


class ChunkKLConfig(_Objective):
    """KL(teacher || student) over candidate chunks and the rest, across tokenizers."""

    kind: Literal["chunk_kl"]
    temperature: float = Field(
        default=1.0, gt=0,
        description="Softens both distributions; must have been captured. 1 lowered NLL by 0.066, 2 by 0.015: "
        "docs/experiments.md.",
    )  # fmt: skip


class TidalConfig(_Objective):
    """A target between student and teacher that moves to the teacher with training progress and falling noise."""

    kind: Literal["tidal"]
    over: Literal["kl", "calm"] = Field(
        default="kl", description="kl on aligned pairs, or calm on chunks; reverse objectives are refused."
    )
    temperature: float = Field(default=2.0, gt=0, description="Over kl it must have been captured. 2 is the paper's.")
    axes: Literal["both", "training_only", "timestep_only"] = Field(
        default="both", description="What the trust in the teacher depends on."
    )
    time_weight: Literal["uniform", "midrange"] = Field(
        default="uniform", description="midrange: exp(-(t - 0.5)^2 / (2 * 0.15^2)), paper Table 5."
    )
    normalise: Literal["count", "weights"] | None = Field(
        default=None,
        description="Divide by the number of rows or chunks, or by the sum of their time weights; by default count "
        "with semantics = 'paper' and weights with 'corrected'.",
    )
    growth: Literal["cosine", "linear"] = Field(default="cosine", description="How trust grows over the run.")
    lambda_init: float = Field(default=0.1, ge=0, le=1, description="Trust at the start (paper: 0.1).")
    lambda_max: float = Field(default=0.9, ge=0, le=1, description="Trust at the end (paper: 0.9).")
    tail: Literal["rest", "renormalise"] = Field(
        default="rest", description="Over kl, what is not kept: one outcome, or left out."
    )
    clamp_student: bool | None = CLAMP

    @field_validator("over", mode="before")
    @classmethod
    def _not_reversed(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("reverse"):
            raise ValueError(
                "TIDAL does not go with a reverse objective: the paper finds the two counterproductive together "
                "(arXiv:2604.26951); use over = 'kl' or 'calm', or the reverse objective by itself"
            )
        return value


ObjectiveConfig = Annotated[
    CrossEntropyConfig
    | ForwardKLConfig
    | ReverseKLConfig
    | CalmConfig
    | ReverseCalmConfig
    | BernoulliKLConfig
    | ChunkKLConfig
    | TidalConfig,
    Field(discriminator="kind"),
]

OBJECTIVE_KINDS: tuple[str, ...] = tuple(
    get_args(member.model_fields["kind"].annotation)[0] for member in get_args(get_args(ObjectiveConfig)[0])
)
