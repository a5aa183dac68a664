"""A preset stands for the objectives and the pass of a row of the paper's table, and for nothing else."""

import pytest
from pydantic import TypeAdapter

from tide_cache.config.base import load_run_file
from tide_cache.config.objectives import AnyObjective
from tide_cache.config.presets import PRESETS
from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError
from tide_cache.objectives import OBJECTIVES, objective_of

VALUES = {"student.model": "m", "data.cache": "c", "train.out": "o", "train.steps": 1}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_run(name):
    run = load_run_file(TrainRun, None, VALUES | {"preset": name})
    assert [entry.kind for entry in run.objective] == [entry["kind"] for entry in PRESETS[name].objectives]
    assert run.data.signal_pass == PRESETS[name].signal_pass
    assert run.preset is None
    assert load_run_file(TrainRun, None, VALUES | run.model_dump(mode="json", include={"objective"})).objective


def test_the_papers_own_methods():
    shared = load_run_file(TrainRun, None, VALUES | {"preset": "shared/tide-shared"})
    assert (shared.objective[1].over, shared.objective[1].time_weight) == ("kl", "midrange")
    assert shared.data.signal_pass == "compdemo"
    cross = load_run_file(TrainRun, None, VALUES | {"preset": "cross/tide-cross"})
    assert (cross.objective[1].kind, cross.objective[1].temperature) == ("reverse_calm", 5.0)


def test_another_pass_may_be_asked_for():
    run = load_run_file(TrainRun, None, VALUES | {"preset": "shared/tide-shared", "data.signal_pass": "plain"})
    assert run.data.signal_pass == "plain"


def test_the_baseline_preset_trains_from_a_corpus_too():
    values = {key: value for key, value in VALUES.items() if key != "data.cache"}
    run = load_run_file(TrainRun, None, values | {"data.corpus.spec": "a.jsonl", "preset": "cross/bd3lm"})
    assert [entry.kind for entry in run.objective] == ["ce"]


def test_faults():
    with pytest.raises(RunFileError, match=r"preset: found 'cross/tide-cros'; did you mean 'cross/tide-cross'"):
        load_run_file(TrainRun, None, VALUES | {"preset": "cross/tide-cros"})
    with pytest.raises(RunFileError, match="preset and objective: give one of them"):
        load_run_file(TrainRun, None, VALUES | {"preset": "cross/kl", "objective": [{"kind": "ce"}]})


@pytest.mark.parametrize("kind", ["kl", "chunk_kl"])
def test_an_entry_that_names_a_temperature_keeps_its_meaning(kind):
    def read(**named):
        entry = TypeAdapter(AnyObjective).validate_python({"kind": kind, **named})
        assert objective_of(entry) == OBJECTIVES[kind](**named)
        return entry.temperature, entry.temperature_mode

    assert read() == (2.0, "kept")
    assert read(temperature=2.0) == (2.0, "captured")
    assert read(temperature_mode="captured") == (1.0, "captured")
    assert read(temperature_mode="kept") == (2.0, "kept")
    assert read(temperature=3.0, temperature_mode="kept") == (3.0, "kept")


def test_draws_from_tails_keep_t_at_one():
    entry = TypeAdapter(AnyObjective).validate_python({"kind": "kl", "tail": "sampled"})
    assert (entry.temperature, entry.temperature_mode) == (1.0, "captured")
