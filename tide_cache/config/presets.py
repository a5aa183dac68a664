"""The rows of the paper's table as lists of objectives and the pass they learn from, for both pipelines.

Temperatures and weights are the paper's (Table 5: T = 2 in the shared pipeline, lambda 0.1 to 0.9 cosine, midrange
weight) and, where it is silent, those of its scripts (T = 5 over chunks), arXiv:2604.26951.
"""

import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tide_cache.config.settings import PassName


@dataclass(frozen=True)
class Preset:
    """What a row of the table trains with."""

    objectives: tuple[dict[str, Any], ...]
    signal_pass: PassName = "plain"


CE = {"kind": "ce"}
KL = {"kind": "kl", "temperature": 2.0}  # the paper's; on its own, T = 1 was better: docs/experiments.md
CALM = {"kind": "calm", "temperature": 5.0}
TIDAL = {"kind": "tidal", "time_weight": "midrange"}
TIDE_CHUNK = (CE, {"kind": "chunk_kl", "temperature": 2.0, "temperature_mode": "kept"})
"""Ours: the teacher's alternatives for a chunk, and T among them alone: what gained most of all that reads `chunks`.
`calm` on chunks without alternatives added nothing: docs/experiments.md."""

PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "shared/bd3lm": Preset((CE,)),
        "shared/kl": Preset((CE, KL)),
        "shared/calm": Preset((CE, CALM)),
        "shared/tide-cross": Preset((CE, {"kind": "reverse_kl", "temperature": 2.0})),
        "shared/tide-shared": Preset((CE, TIDAL | {"over": "kl", "temperature": 2.0}), "compdemo"),
        "shared/tide-chunk": Preset(TIDE_CHUNK),
        "cross/bd3lm": Preset((CE,)),
        "cross/kl": Preset((CE, KL)),
        "cross/calm": Preset((CE, CALM)),
        "cross/tide-cross": Preset((CE, {"kind": "reverse_calm", "temperature": 5.0})),
        "cross/tide-shared": Preset((CE, TIDAL | {"over": "calm", "temperature": 5.0}), "compdemo"),
        "cross/tide-chunk": Preset(TIDE_CHUNK),
    }
)
"""`shared`: teacher and student have one tokenizer; `cross`: two. `cross/kl` uses the few pairs of equal tokens."""


def find_preset(name: str) -> Preset:
    """Return a row of the table.

    Raises:
        ValueError: There is no such row; lists those there are.
    """
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"preset: found {name!r}; {hint}known: {', '.join(PRESETS)}")
