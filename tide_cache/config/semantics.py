"""What `semantics` decides: weights, divisors and clamps that a run file leaves open, published or corrected."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tide_cache.config.objectives import AnyObjective
from tide_cache.config.settings import Semantics

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
"""The fields whose default is None, by kind; docs/decisions/semantics.md says why the values differ."""


def resolve(objective: AnyObjective, semantics: Semantics) -> AnyObjective:
    """Return the entry with open fields filled in; stated ones stay."""
    return replace(objective, **left_open(objective.kind, vars(objective), semantics))


def left_open(kind: str, values: Mapping[str, Any], semantics: Semantics) -> dict[str, Any]:
    """Return what `semantics` decides for an objective: the fields that are None, with their values."""
    return {name: value for name, value in DECIDED[semantics].get(kind, {}).items() if values[name] is None}
