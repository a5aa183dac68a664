"""The `[[objective]]` entries of a training run file."""

from typing import Annotated, Literal

from pydantic import Field

from tide_cache.config.base import Frozen


class _Objective(Frozen):
    weight: float = Field(default=1.0, gt=0, description="Factor of this objective in the sum.")


class CrossEntropyConfig(_Objective):
    """Denoising cross-entropy on the true tokens; needs no teacher."""

    kind: Literal["ce"]
    time_weight: Literal["scheduler", "realised_ratio", "uniform"] = Field(
        default="scheduler",
        description="1/t as BD3LM, 1/(realised mask ratio), or none with a mean over masked tokens.",
    )


class ForwardKLConfig(_Objective):
    """KL(teacher || student) on aligned pairs."""

    kind: Literal["kl"]
    temperature: float = Field(default=2.0, gt=0, description="Softens both distributions; must have been captured.")


class ReverseKLConfig(_Objective):
    """KL(student || teacher) on aligned pairs."""

    kind: Literal["reverse_kl"]
    temperature: float = Field(default=2.0, gt=0, description="Softens both distributions; must have been captured.")


class CalmConfig(_Objective):
    """Binary cross-entropy of chunk likelihoods, teacher as target: CALM."""

    kind: Literal["calm"]
    temperature: float = Field(default=5.0, gt=0, description="Divides summed chunk log-probs; dimensionless.")


class ReverseCalmConfig(_Objective):
    """Binary cross-entropy of chunk likelihoods, student as target: Reverse CALM."""

    kind: Literal["reverse_calm"]
    temperature: float = Field(default=5.0, gt=0, description="Divides summed chunk log-probs; dimensionless.")


ObjectiveConfig = Annotated[
    CrossEntropyConfig | ForwardKLConfig | ReverseKLConfig | CalmConfig | ReverseCalmConfig,
    Field(discriminator="kind"),
]
