"""The figures of docs/decisions/semantics.md, computed: what 1/t and a plain count do to the terms."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from tide_cache.config.sections import ViewsConfig
from tide_cache.objectives.ce import CrossEntropy
from tide_cache.objectives.tidal import Tidal
from tide_cache.views import draw_view
from tide_cache.views.weights import ViewLaw, denoising_weights

NUM_TOKENS, NUM_VIEWS = 64, 4000


def mean_over_t(power, shown):
    """Integrate t^power (1 - t)^shown over t in [0, 1]."""
    return math.factorial(power) * math.factorial(shown) / math.factorial(power + shown + 1)


@pytest.mark.parametrize("num_tokens", [1, 5, 24])
def test_the_number_of_masked_tokens_is_uniform_and_both_weights_estimate_one_bound(num_tokens):
    """nll_m is the mean over m masked tokens, any function of m; the bound per token is its mean over m = 1..L."""
    nll_m = np.random.default_rng(0).uniform(1, 9, num_tokens + 1)
    of_scheduler = of_ratio = 0.0
    for m in range(num_tokens + 1):
        ways, shown = math.comb(num_tokens, m), num_tokens - m
        assert ways * mean_over_t(m, shown) == pytest.approx(1 / (num_tokens + 1))
        if m:
            of_scheduler += ways * mean_over_t(m - 1, shown) * m / num_tokens * nll_m[m]
            of_ratio += ways * mean_over_t(m, shown) * nll_m[m]
    assert of_scheduler == pytest.approx(nll_m[1:].mean())
    assert of_ratio == pytest.approx(nll_m[1:].mean() * num_tokens / (num_tokens + 1))


@pytest.fixture(scope="module")
def draws(pair_in_chunks):
    """Masked share, t and `realised_ratio` of views of one sample, whose tokens come in chunks of a size."""

    @cache
    def make(chunk_size):
        plan = ViewsConfig(NUM_VIEWS, seed=0, time_sampling="stratified", schedule="linear", complementary=False)
        views = [draw_view(pair_in_chunks(NUM_TOKENS, chunk_size), v, plan) for v in range(NUM_VIEWS)]
        masked_VL = np.array([view.is_student_masked_L for view in views])
        view_VL = np.repeat(np.arange(NUM_VIEWS)[:, None], NUM_TOKENS, axis=1)
        unit_VL = np.full(masked_VL.shape, chunk_size, np.int32)
        flat = unit_VL.ravel(), masked_VL.ravel(), view_VL.ravel()
        weight_N = denoising_weights(*flat, [ViewLaw("linear", False)] * NUM_VIEWS)
        of_view = np.bincount(flat[2][flat[1]], weights=weight_N, minlength=NUM_VIEWS) / NUM_TOKENS
        return masked_VL.mean(axis=1), np.array([view.t for view in views]), of_view

    return make


@pytest.mark.parametrize(
    ("chunk_size", "mean_share", "mean_weight", "spread"),
    [(1, 0.50, 1.00, 0.27), (2, 0.67, 1.49, 0.58), (4, 0.80, 2.07, 1.25)],
)
def test_whole_chunks_bias_one_over_t_upwards(draws, chunk_size, mean_share, mean_weight, spread):
    """With n tokens a chunk, E[share] = n / (n + 1) and E[share / t] = 1 + 1/2 + ... + 1/n."""
    share, t, _ = draws(chunk_size)
    assert share.mean() == pytest.approx(mean_share, abs=0.005)
    assert share.mean() == pytest.approx(chunk_size / (chunk_size + 1), abs=0.005)
    weight = share / t
    assert weight.mean() == pytest.approx(mean_weight, abs=0.005)
    assert weight.mean() == pytest.approx(sum(1 / i for i in range(1, chunk_size + 1)), abs=0.02)
    assert weight.std() == pytest.approx(spread, abs=0.005)


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_its_own_chance_counts_every_token_once_with_little_noise(draws, chunk_size):
    _, _, weight = draws(chunk_size)
    assert weight.mean() == pytest.approx(1, abs=0.01)
    assert weight.std() == pytest.approx(0.11, abs=0.005)


def test_what_weights_at_the_wrong_t_or_by_the_share_gave():
    """Complements of cosine views at their own t; and 1/share where chunks of one and of four tokens meet."""
    t = (np.arange(20_000) + 0.5) / 20_000
    own_t = 2 / np.pi * np.arcsin(1 - np.sin(np.pi / 2 * t))
    assert (np.pi / 2 * np.cos(np.pi / 2 * own_t)).mean() == pytest.approx(1.345, abs=0.002)
    assert np.sin(np.pi / 2 * t).mean() == pytest.approx(0.637, abs=5e-4)
    of_four, of_one = 1 - (1 - t) ** 4, t
    share = (of_four + of_one) / 2  # in the limit of a long sample
    assert (of_one / share).mean() == pytest.approx(0.70, abs=0.005)
    assert (of_four / share).mean() == pytest.approx(1.30, abs=0.005)


def test_the_two_weights_are_these(example):
    """Held on the objectives: where every token costs the same, a sample's weight is share / t, or 1 + 1/L."""
    case = example(1, num_samples=1, student=lambda teacher_NV: torch.zeros_like(teacher_NV))
    nll = math.log(12)
    (view,) = case.views
    share = view.is_student_masked_L.mean()
    of_scheduler, of_ratio = (
        case.loss(objective).item() / objective.count(case.targets) / nll
        for objective in (CrossEntropy("scheduler"), CrossEntropy("realised_ratio"))
    )
    assert 0 < share < 1
    assert of_scheduler == pytest.approx(share / view.t, rel=1e-4)
    assert of_ratio == pytest.approx(10 / 9, rel=1e-4)


def test_a_count_shrinks_the_midrange_term_to_376_thousandths():
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    mean_weight = Tidal(time_weight="midrange")._weight(t).mean()
    assert mean_weight.item() == pytest.approx(0.376, abs=5e-4)
    assert 0.15 * math.sqrt(2 * math.pi) * math.erf(0.5 / 0.15 / math.sqrt(2)) == pytest.approx(float(mean_weight))
