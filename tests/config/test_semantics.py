"""`semantics` fills in what objectives leave open and nothing else, and the resolved run says so."""

from dataclasses import fields
from typing import get_args

import pytest

from tide_cache.config.base import load_run_file
from tide_cache.config.objectives import AnyObjective
from tide_cache.config.presets import PRESETS
from tide_cache.config.semantics import DECIDED
from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError

VALUES = {"student.model": "m", "data.cache": "c", "train.out": "o", "train.steps": 1}
DECISIONS = {"paper": ("scheduler", "count"), "corrected": ("realised_ratio", "weights")}
BOTH = [{"kind": "ce"}, {"kind": "tidal"}]


def decisions(run):
    """Weight of the first objective, `ce`, and divisor of the second, `tidal`."""
    return run.objective[0].time_weight, run.objective[1].normalise


@pytest.mark.parametrize("semantics", DECISIONS)
def test_it_decides_what_is_left_open(semantics):
    run = load_run_file(TrainRun, None, VALUES | {"semantics": semantics, "objective": BOTH})
    assert decisions(run) == DECISIONS[semantics]
    assert run.semantics == semantics


def test_corrected_is_the_default_also_for_the_default_objective():
    assert decisions(load_run_file(TrainRun, None, VALUES | {"objective": BOTH})) == DECISIONS["corrected"]
    assert load_run_file(TrainRun, None, VALUES).objective[0].time_weight == "realised_ratio"
    assert load_run_file(TrainRun, None, VALUES | {"semantics": "paper"}).objective[0].time_weight == "scheduler"


@pytest.mark.parametrize("semantics", DECISIONS)
@pytest.mark.parametrize("time_weight", ["scheduler", "realised_ratio", "uniform"])
@pytest.mark.parametrize("normalise", ["count", "weights"])
def test_a_stated_value_wins(semantics, time_weight, normalise):
    stated = [{"kind": "ce", "time_weight": time_weight}, {"kind": "tidal", "normalise": normalise}]
    run = load_run_file(TrainRun, None, VALUES | {"semantics": semantics, "objective": stated})
    assert decisions(run) == (time_weight, normalise)


def test_no_preset_states_what_semantics_decides():
    stated = [
        set(entry) & set(DECIDED["paper"].get(entry["kind"], {})) for p in PRESETS.values() for entry in p.objectives
    ]
    assert not any(stated)
    run = load_run_file(TrainRun, None, VALUES | {"preset": "shared/tide-shared", "semantics": "paper"})
    assert decisions(run) == DECISIONS["paper"]


@pytest.mark.parametrize("semantics", DECISIONS)
def test_it_decides_only_fields_that_are_open_by_default(semantics):
    for entry in get_args(AnyObjective):
        of_each_other = {"temperature", "temperature_mode"}  # either decides the other
        is_open = {field.name for field in fields(entry) if field.default is None} - of_each_other
        assert set(DECIDED[semantics].get(entry.kind, {})) == is_open, entry


@pytest.mark.parametrize("semantics", DECISIONS)
def test_a_resolved_run_read_again_is_the_same_run(semantics):
    run = load_run_file(TrainRun, None, VALUES | {"semantics": semantics, "objective": BOTH})
    assert TrainRun.model_validate(run.model_dump(mode="json")) == run
    assert TrainRun.model_validate(run.model_dump(mode="json") | {"semantics": "paper"}).objective == run.objective


def test_faults():
    with pytest.raises(RunFileError, match="semantics: found 'papr'; Input should be 'paper' or 'corrected'") as caught:
        load_run_file(TrainRun, None, VALUES | {"semantics": "papr", "objective": [{"kind": "cee"}]})
    assert "objective.0: found kind 'cee'; did you mean 'ce'?" in str(caught.value), "all faults at once"
