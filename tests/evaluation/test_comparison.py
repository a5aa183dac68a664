"""Comparisons are paired by seed; a single seed has no spread."""

import pytest

from tide_cache.evaluation.comparison import compare, spread


def test_spread_is_mean_and_sample_deviation():
    assert str(spread([1.0, 2.0, 3.0])) == "2.000 ± 1.000"
    assert str(spread([0.5])) == "0.500"


def test_differences_are_taken_seed_by_seed():
    arm, baseline = {0: 1.0, 1: 5.0, 2: 9.0}, {0: 2.0, 1: 4.5, 3: 0.0}
    found = compare(arm, baseline)
    assert (found.num_paired, found.num_better) == (2, 1)
    assert found.difference.mean == pytest.approx(-0.25)
    assert found.value.mean == pytest.approx(5.0)


def test_the_baseline_has_no_difference():
    assert compare({0: 1.0}, None).difference is None
