"""The learning rate of each step: a pure function, so a resumed run needs no scheduler state."""

import math
from typing import Literal


def learning_rate(
    step: int, *, steps: int, peak: float, warmup_ratio: float, schedule: Literal["cosine", "constant"]
) -> float:
    """Give the rate of step `step` (from 0): linear warm-up from peak/warmup to peak, then cosine to 0 or constant.

    Args:
        step: Optimizer step about to be taken.
        steps: Steps of the whole run.
        peak: Highest rate.
        warmup_ratio: Share of the steps that warm up.
        schedule: What follows the warm-up.
    """
    warmup_steps = round(warmup_ratio * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2
