"""How much is masked at diffusion time t: the mask schedules and how views draw t."""

import math

from tide_cache.config.settings import Schedule, TimeSampling
from tide_cache.views.random import KeyedRandom

MIN_T = 1e-3
"""t is drawn from [MIN_T, 1), as the reference does: `1e-3 + (1 - 1e-3) * U` (TIDE, arXiv:2604.26951)."""


def mask_probability(t: float, schedule: Schedule) -> float:
    """Return 1 - alpha_t, the probability that a supervised token is masked at time t.

    linear: t. cosine: cos(pi/2 * (1 - t)), so that alpha_t = 1 - cos(pi/2 * (1 - t)).
    """
    return t if schedule == "linear" else math.cos(math.pi / 2 * (1 - t))


def time_of_probability(probability: float, schedule: Schedule) -> float:
    """Invert `mask_probability`."""
    return probability if schedule == "linear" else 1 - 2 / math.pi * math.acos(probability)


def slope(t: float, schedule: Schedule) -> float:
    """Return -alpha'(t), the slope of the mask probability in t."""
    return 1.0 if schedule == "linear" else math.pi / 2 * math.sin(math.pi / 2 * (1 - t))


def time_weight(t: float, schedule: Schedule, is_complement: bool = False) -> float:
    """Return the weight of the denoising loss at t: -alpha'(t) / (1 - alpha(t) + 1e-6), about 1/t when linear.

    The denominator is the probability of being masked, the numerator the inverse of its density. For a drawn view that
    is -alpha'(t). The t of a complementary view was not drawn: its probability has the density of the other view's, so
    the slope is taken at that view's t.

    Args:
        t: Diffusion time of the view.
        schedule: Mask schedule of the view.
        is_complement: Whether the view masks what another one shows.

    Source: BD3LM training as in TIDE, arXiv:2604.26951 (golden/schedule.npz).
    """
    chance = mask_probability(t, schedule)
    drawn_t = time_of_probability(1 - chance, schedule) if is_complement else t
    return slope(drawn_t, schedule) / (chance + 1e-6)


def draw_time(seed: int, sample_id: str, view: int, num_views: int, sampling: TimeSampling) -> float:
    """Draw the diffusion time of a view from [MIN_T, 1).

    `stratified`: the views of a sample fall into `num_views` equal strata, in an order drawn per sample, with one
    offset for all; the t of a single view is still uniform. A view beyond `num_views` starts a new round of strata.
    `uniform`: independent draws, as in the paper.
    """
    if sampling == "uniform":
        u = float(KeyedRandom("t", seed, sample_id, view).uniform(1)[0])
    else:
        random = KeyedRandom("strata", seed, sample_id, view // num_views)
        offset = float(random.uniform(1)[0])
        stratum = int(random.permutation(num_views)[view % num_views])
        u = (stratum + offset) / num_views
    return MIN_T + (1 - MIN_T) * u
