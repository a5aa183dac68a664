"""Intervals by bootstrap: the figure on all rows and students, what is paired, and what narrows or widens it."""

import math

import numpy as np
import pytest

from experiments import bootstrap
from experiments.bootstrap import gain, share_of_gain


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)


def report(nll_R, tokens_per_byte=0.5, has_rows=True):
    """A student's figures: one time, four masked tokens in each row."""
    num_rows = len(nll_R)
    rows = {
        "sample_id": [f"row {r}" for r in range(num_rows)],
        "num_supervised": [10] * num_rows,
        "num_bytes": [round(10 / tokens_per_byte)] * num_rows,
        "num_masked": [[4]] * num_rows,
        "nll": [[4 * nll] for nll in nll_R],
    }
    return {"nats_per_byte": float(np.mean(nll_R)) * tokens_per_byte, "rows": rows if has_rows else None}


def arms(gains, has_rows=True, tokens_per_byte=0.5, noise=0.0):
    """An arm and its baseline, whose rows differ much, by start and seed."""
    random = np.random.default_rng(1)
    base_R = random.uniform(2, 6, 40)
    noise_R = noise * random.standard_normal(40)
    options = {"has_rows": has_rows, "tokens_per_byte": tokens_per_byte}
    baseline = {student: report(base_R, **options) for student in gains}
    return {student: report(base_R - value + noise_R, **options) for student, value in gains.items()}, baseline


STUDENTS = [("even", 0), ("even", 1), ("ends", 0), ("ends", 1)]


def test_equal_gains_leave_no_interval_however_rows_differ():
    found = gain(*arms(dict.fromkeys(STUDENTS, 0.1)))
    want = 0.1 * 0.5 / math.log(2)
    assert (found.value, found.low, found.high) == pytest.approx((want, want, want))
    assert (found.students, found.rows) == (4, 40)


def test_rows_seeds_and_starts_widen_it():
    even = dict.fromkeys(STUDENTS, 0.1)
    by_start = {student: 0.05 if student[0] == "even" else 0.15 for student in STUDENTS}
    width = {
        name: (found := gain(*made)).high - found.low
        for name, made in {
            "nothing": arms(even),
            "rows": arms(even, noise=0.3),
            "starts": arms(by_start),
            "both": arms(by_start, noise=0.3),
        }.items()
    }
    assert width["nothing"] < 1e-9 < 0.01 < width["rows"]
    assert max(width["rows"], width["starts"]) < width["both"]


def test_records_without_rows_are_read_as_before():
    by_seed = {student: 0.1 + 0.02 * student[1] for student in STUDENTS}
    old, new = (gain(*arms(by_seed, has_rows=has)) for has in (False, True))
    assert old.rows is None
    assert (old.value, old.low, old.high) == pytest.approx((new.value, new.low, new.high), abs=1e-3)


def test_a_share_compares_what_both_have():
    cross, cross_ce = arms(dict.fromkeys(STUDENTS, 0.1), tokens_per_byte=0.25)
    shared, shared_ce = arms(dict.fromkeys(STUDENTS[:3], 0.2))
    found = share_of_gain(cross, cross_ce, shared, shared_ce)
    assert found.students == 3
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5) == found.high
    with pytest.raises(ValueError, match="in common"):
        share_of_gain(cross, cross_ce, shared, {})


def test_students_of_other_rows_are_refused():
    arm, baseline = arms(dict.fromkeys(STUDENTS, 0.1))
    arm["even", 0]["rows"]["sample_id"][3] = "another"
    with pytest.raises(ValueError, match="different rows"):
        gain(arm, baseline)
