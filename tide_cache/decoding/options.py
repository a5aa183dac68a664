"""The options of decoding, and which of their values have no meaning; checked before any weights are loaded."""

import math
from typing import TYPE_CHECKING, NotRequired, Required, TypedDict

from tide_cache.config.settings import Context, Remasking

if TYPE_CHECKING:
    import torch


class SamplerOptions(TypedDict):
    """Options of `generate`, for functions that pass them on; the defaults are those of `generate`."""

    block_size: Required[int]
    max_new_tokens: Required[int]
    steps_per_block: Required[int]
    threshold: NotRequired[float | None]
    temperature: NotRequired[float]
    top_k: NotRequired[int | None]
    top_p: NotRequired[float | None]
    remasking: NotRequired[Remasking]
    batch_size: NotRequired[int]
    generator: NotRequired["torch.Generator | None"]
    cfg_scale: NotRequired[float]
    use_cache: NotRequired[bool]
    context: NotRequired[Context]
    seed: NotRequired[int]


def decoding_faults(options: SamplerOptions) -> list[str]:
    """Return the faults of options of `generate`, one line each, for a check before weights are loaded."""
    block_size, steps_per_block = options["block_size"], options["steps_per_block"]
    threshold, remasking = options.get("threshold"), options.get("remasking")
    temperature, cfg_scale = options.get("temperature", 0.0), options.get("cfg_scale", 0.0)
    top_k, top_p = options.get("top_k"), options.get("top_p")
    faults = []
    if not 1 <= steps_per_block <= block_size:
        faults.append(f"steps_per_block is {steps_per_block}; expected 1 to block_size, which is {block_size}")
    if threshold is not None and not 0 < threshold <= 1:
        faults.append(f"threshold is {threshold}; expected a probability above 0, and 1 at most")
    if threshold is not None and remasking == "random":
        faults.append("threshold needs remasking = low_confidence: random remasking has no confidence to compare with")
    if not 0 <= temperature < math.inf:
        faults.append(f"temperature is {temperature}; expected 0 (most likely token) or more")
    if top_k is not None and top_k < 1:
        faults.append(f"top_k is {top_k}; expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        faults.append(f"top_p is {top_p}; expected a probability above 0, and 1 at most")
    if temperature == 0 and (top_k, top_p) != (None, None):
        faults.append("top_k and top_p choose what is drawn from, and temperature 0 draws nothing; set a temperature")
    if not 0 <= cfg_scale < math.inf:
        faults.append(f"cfg_scale is {cfg_scale}; expected 0 (no guidance) or more")
    return faults
