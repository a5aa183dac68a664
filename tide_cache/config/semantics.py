"""What `semantics` decides: weights, divisors and clamps that a run file leaves open, as published or corrected."""

from types import MappingProxyType
from typing import Any, Literal

from tide_cache.config.objectives import ObjectiveConfig

Semantics = Literal["paper", "corrected"]

_CHUNK_LIKELIHOODS = ("calm", "reverse_calm", "bernoulli_kl")

DECIDED: MappingProxyType[Semantics, dict[str, dict[str, Any]]] = MappingProxyType(
    {
        "paper": {
            "ce": {"time_weight": "scheduler"},
            "tidal": {"normalise": "count", "clamp_student": True},
            **{kind: {"clamp_student": True} for kind in _CHUNK_LIKELIHOODS},
        },
        "corrected": {
            "ce": {"time_weight": "realised_ratio"},
            "tidal": {"normalise": "weights", "clamp_student": False},
            **{kind: {"clamp_student": False} for kind in _CHUNK_LIKELIHOODS},
        },
    }
)
"""By kind, the fields whose default is None; docs/decisions/semantics.md says why they differ."""


def resolve(objective: ObjectiveConfig, semantics: Semantics) -> ObjectiveConfig:
    """Fill in what an objective leaves open; what it states stays."""
    decided = DECIDED[semantics].get(objective.kind, {})
    return objective.model_copy(update={key: v for key, v in decided.items() if getattr(objective, key) is None})
