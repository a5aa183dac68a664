"""Weights of masked tokens against sums over every mask and integrals over t, and against closed forms."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pair_examples import pairs
from tide_cache.config.sections import ViewsConfig
from tide_cache.views import draw_view
from tide_cache.views.schedule import MIN_T
from tide_cache.views.weights import ViewLaw, denoising_weights, unit_sizes

LAWS = [ViewLaw(*law) for law in product(("linear", "cosine"), (False, True))]
by_law = pytest.mark.parametrize("law", LAWS, ids=repr)


def level(t, law):
    return t if law.schedule == "linear" else np.sin(np.pi / 2 * t)


def weights(counts, masked, law):
    """Weight of each size in one sample; `counts` and `masked` give how many units of each size there are and fall."""
    unit, is_masked = [], []
    for size, number in counts.items():
        unit += [size] * (size * number)
        is_masked += [True] * (size * masked[size]) + [False] * (size * (number - masked[size]))
    unit_L, is_masked_L = np.array(unit, np.int32), np.array(is_masked)
    found = denoising_weights(unit_L, is_masked_L, np.zeros(len(unit_L), np.int64), [law])
    return dict(zip(unit_L[is_masked_L].tolist(), found.tolist(), strict=True))


@by_law
@pytest.mark.parametrize("counts", [{1: 1}, {4: 1}, {1: 2, 4: 2}, {1: 3, 2: 1, 10: 2}], ids=str)
def test_a_token_counts_once_on_average_and_each_noise_level_alike(counts, law):
    """Sum over all masks, integral over t: the mean of weight x mask is 1, and with a loss that of 1 / (g r)."""
    t = MIN_T + (1 - MIN_T) * (np.arange(20_000) + 0.5) / 20_000
    p = level(t, law)
    slope = 1 if law.schedule == "linear" else np.pi / 2 * np.cos(np.pi / 2 * t)
    chance = {n: (1 - p) ** n if law.is_complement else 1 - (1 - p) ** n for n in counts}
    mean, of_loss, expected = (dict.fromkeys(counts, 0.0) for _ in range(3))
    random = np.random.default_rng(0)
    for of_sizes in product(*(range(number + 1) for number in counts.values())):
        masked = dict(zip(counts, of_sizes, strict=True))
        found, nll = weights(counts, masked, law), random.uniform(1, 9)
        ways = [
            math.comb(k, m) * chance[n] ** m * (1 - chance[n]) ** (k - m)
            for (n, k), m in zip(counts.items(), of_sizes, strict=True)
        ]
        likelihood = np.prod(ways, axis=0)
        for n in (n for n in counts if masked[n]):
            share = masked[n] / counts[n]
            mean[n] += share * found[n] * likelihood.mean()
            of_loss[n] += share * found[n] * nll * likelihood.mean()
            expected[n] += (slope * share / chance[n] * nll * likelihood).mean()
    assert mean == pytest.approx(dict.fromkeys(counts, 1), abs=2e-3)
    for n in counts:
        if n == 1 or not law.is_complement:
            assert of_loss[n] == pytest.approx(expected[n], rel=2e-3)


@pytest.mark.parametrize("masked", [64, 400, 1900])
def test_single_tokens_of_the_linear_schedule_have_the_share_s_inverse(masked):
    for is_complement in (False, True):
        found = weights({1: 2000}, {1: masked}, ViewLaw("linear", is_complement))
        assert found[1] == pytest.approx(2001 / masked, rel=2e-3)


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (LAWS[0], {1: 2, 4: 5 / 4, 10: 11 / 10}),
        (LAWS[1], {1: 2, 4: 5, 10: 11}),
        (LAWS[2], {1: math.pi / 2}),
        (LAWS[3], {1: 1 / (1 - 2 / math.pi)}),
    ],
    ids=repr,
)
def test_a_unit_alone_counts_by_the_inverse_of_its_mean_chance(law, expected):
    for size, weight in expected.items():
        assert weights({size: 1}, {size: 1}, law)[size] == pytest.approx(weight, rel=0.012)  # t is at least MIN_T


@given(pair=pairs(), seed=st.integers(0, 99))
def test_units_are_what_draws_mask_at_once(pair, seed):
    size_L = unit_sizes(pair.is_supervised_L, pair.chunks_C4[:, 2:])
    assert ((size_L > 0) == pair.is_supervised_L).all()
    for start, end in pair.chunks_C4[:, 2:].tolist():
        supervised = pair.is_supervised_L[start:end]
        assert (size_L[start:end][supervised] == supervised.sum()).all()
    in_chunk = np.zeros(len(size_L), bool)
    for start, end in pair.chunks_C4[:, 2:].tolist():
        in_chunk[start:end] = True
    assert (size_L[~in_chunk & pair.is_supervised_L] == 1).all()
    view = draw_view(pair, 0, ViewsConfig(1, seed, "uniform", "linear", False))
    assert not (view.is_student_masked_L & (size_L == 0)).any()


def test_views_of_a_batch_have_the_weights_that_they_have_alone():
    sizes = [np.array([1, 1, 4, 4, 4, 4], np.int32), np.array([0, 2, 2], np.int32), np.array([1, 3, 3, 3], np.int32)]
    masks = [np.array([True, False, True, True, True, True]), np.array([False, True, True]), np.zeros(4, bool)]
    laws = [LAWS[0], LAWS[3], LAWS[0]]
    view_L = np.repeat([0, 1, 2], [6, 3, 4])
    together = denoising_weights(np.concatenate(sizes), np.concatenate(masks), view_L, laws)
    alone = [
        denoising_weights(unit, mask, np.zeros(len(unit), np.int64), [law])
        for unit, mask, law in zip(sizes, masks, laws, strict=True)
    ]
    assert together.tolist() == np.concatenate(alone).tolist()
    assert len(together) == 7


def test_nothing_supervised_and_no_view():
    nothing = np.zeros(3, np.int32)
    assert denoising_weights(nothing, nothing > 0, np.zeros(3, np.int64), [LAWS[0]]).shape == (0,)
