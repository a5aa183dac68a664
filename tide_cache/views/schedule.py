"""How much is masked at diffusion time t: the mask schedules and how views draw t."""

import math
from typing import Literal

from tide_cache.views.random import KeyedRandom

MIN_T = 1e-3
"""t is drawn from [MIN_T, 1), as the reference does: `1e-3 + (1 - 1e-3) * U` (TIDE, arXiv:2604.26951)."""

Schedule = Literal["linear", "cosine"]
TimeSampling = Literal["uniform", "stratified"]


def mask_probability(t: float, schedule: Schedule) -> float:
    """Give 1 - alpha_t, the chance that a supervised token is masked at time t.

    linear: t. cosine: cos(pi/2 * (1 - t)), so that alpha_t = 1 - cos(pi/2 * (1 - t)).
    """
    return t if schedule == "linear" else math.cos(math.pi / 2 * (1 - t))


def time_of_probability(probability: float, schedule: Schedule) -> float:
    """Invert `mask_probability`."""
    return probability if schedule == "linear" else 1 - 2 / math.pi * math.acos(probability)


def time_weight(t: float, schedule: Schedule) -> float:
    """Give the weight of the denoising loss at t: -alpha'(t) / (1 - alpha(t) + 1e-6), about 1/t when linear.

    Source: BD3LM training as in TIDE, arXiv:2604.26951 (golden/schedule.npz).
    """
    slope = 1.0 if schedule == "linear" else math.pi / 2 * math.sin(math.pi / 2 * (1 - t))
    return slope / (mask_probability(t, schedule) + 1e-6)


def draw_time(seed: int, sample_id: str, view: int, num_views: int, sampling: TimeSampling) -> float:
    """Draw the diffusion time of a view from [MIN_T, 1).

    `stratified`: the views of a sample fall in `num_views` equal strata, in an order drawn per sample, with one offset
    for all of them; each view's t alone is still uniform. A view beyond `num_views` starts a new round of strata.
    `uniform`: independent, as the paper.
    """
    if sampling == "uniform":
        u = float(KeyedRandom("t", seed, sample_id, view).uniform(1)[0])
    else:
        random = KeyedRandom("strata", seed, sample_id, view // num_views)
        offset = float(random.uniform(1)[0])
        stratum = int(random.permutation(num_views)[view % num_views])
        u = (stratum + offset) / num_views
    return MIN_T + (1 - MIN_T) * u
