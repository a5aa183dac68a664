"""Diffusion times: their range, their strata, their marginal; mask probabilities and weights of both schedules."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.views.schedule import MIN_T, draw_time, mask_probability, time_of_probability, time_weight

SCHEDULES = ("linear", "cosine")


@given(seed=st.integers(0, 2**63), name=st.text(max_size=8), num_views=st.integers(1, 9), first=st.integers(0, 3))
def test_stratified_views_cover_every_stratum_once_a_round(seed, name, num_views, first):
    views = range(first * num_views, (first + 1) * num_views)
    times = [draw_time(seed, name, view, num_views, "stratified") for view in views]
    shares = [(t - MIN_T) / (1 - MIN_T) * num_views for t in times]
    assert sorted(math.floor(share + 1e-9) for share in shares) == list(range(num_views))
    offsets = [share - round(share - shares[0]) for share in shares]
    assert max(offsets) - min(offsets) < 1e-9, "one offset for all strata of a round"
    assert all(MIN_T <= t < 1 for t in times)


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
@pytest.mark.parametrize("view", [0, 3])
def test_each_views_t_is_uniform_over_samples(sampling, view):
    """Kolmogorov-Smirnov at one in a thousand; the seed is fixed, so the verdict is too."""
    num_samples = 4000
    times = np.sort([draw_time(7, f"sample{i}", view, 4, sampling) for i in range(num_samples)])
    shares = (times - MIN_T) / (1 - MIN_T)
    grid = np.arange(num_samples + 1) / num_samples
    distance = max(np.abs(grid[1:] - shares).max(), np.abs(shares - grid[:-1]).max())
    assert distance < 1.95 / math.sqrt(num_samples)
    assert shares[0] >= 0
    assert shares[-1] < 1


def test_uniform_views_are_independent_of_each_other():
    first, second = (np.array([draw_time(7, f"sample{i}", view, 4, "uniform") for i in range(4000)]) for view in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_a_later_round_is_drawn_anew():
    times = [draw_time(0, "a", view, 4, "stratified") for view in range(12)]
    assert len({round(t, 9) for t in times}) == 12


def test_mask_probabilities():
    for t in (1e-3, 0.25, 0.5, 0.999):
        assert mask_probability(t, "linear") == t
        assert mask_probability(t, "cosine") == pytest.approx(math.sin(math.pi / 2 * t))
    assert mask_probability(1.0, "cosine") == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(t=st.floats(1e-3, 1))
def test_time_and_probability_invert_each_other(schedule, t):
    assert time_of_probability(mask_probability(t, schedule), schedule) == pytest.approx(t, abs=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_weight_is_the_slope_of_the_mask_probability_over_itself(schedule):
    for t in (0.01, 0.3, 0.8, 0.99):
        slope = (mask_probability(t + 1e-6, schedule) - mask_probability(t - 1e-6, schedule)) / 2e-6
        assert time_weight(t, schedule) == pytest.approx(slope / (mask_probability(t, schedule) + 1e-6), rel=1e-5)


@pytest.mark.parametrize(("schedule", "suffix"), [("linear", ""), ("cosine", "_cosine")])
def test_schedules_equal_the_reference(shared, schedule, suffix):
    recorded = np.load(shared / "golden/schedule.npz")
    times = recorded["t"].astype(np.float64).tolist()
    alphas = [1 - mask_probability(t, schedule) for t in times]
    np.testing.assert_allclose(alphas, recorded[f"alpha{suffix}"], atol=2e-7)
    for t, expected in zip(times, recorded[f"ce_weight{suffix}"].tolist(), strict=True):
        rounding = 2**-24 / mask_probability(t, schedule)  # the reference takes 1 - alpha in float32
        assert time_weight(t, schedule) == pytest.approx(expected, rel=1e-5 + rounding, abs=1e-6), t
