"""The learning rate of each step: a pure function, so a resumed run needs no scheduler state."""

import math

from tide_cache.config.settings import LearningRateSchedule


def learning_rate(step: int, *, steps: int, peak: float, warmup_ratio: float, schedule: LearningRateSchedule) -> float:
    """Return the rate of step `step` (from 0): linear warm-up from 0 to peak, then cosine to 0 or constant.

    The same as `get_cosine_schedule_with_warmup` of transformers, with warm-up steps as its Trainer counts them. Only a
    run that is all warm-up differs: its first step has half a step's rate, since it would learn nothing otherwise.

    Args:
        step: Optimizer step about to be taken.
        steps: Steps of the whole run.
        peak: Highest rate.
        warmup_ratio: Share of the steps that warm up.
        schedule: What follows the warm-up.
    """
    warmup_steps = math.ceil(warmup_ratio * steps)
    if step < warmup_steps:
        return peak * (step or (0.5 if warmup_steps == steps else 0.0)) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2
