"""Passes and the share of the demonstration are refused by name where they cannot work."""

import pytest

from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError

BUILD = {"corpus.spec": "a.jsonl", "teacher.model": "t", "student.tokenizer.path": "s", "build.out": "c"}
TRAIN = {"student.model": "s", "train.out": "o", "train.steps": 1}


def refuse(model, values):
    with pytest.raises(RunFileError) as caught:
        load_run_file(model, None, values)
    return str(caught.value)


@pytest.mark.parametrize("demo_ratio", [-0.1, 1.1, float("nan"), float("inf"), "half"])
def test_a_demo_ratio_that_is_no_probability_is_refused(demo_ratio):
    message = refuse(BuildRun, {**BUILD, "views.demo_ratio": demo_ratio})
    assert f"views.demo_ratio: found {demo_ratio!r}; Input should be" in message


@pytest.mark.parametrize("demo_ratio", [0, 0.5, 1])
def test_its_bounds_are_allowed(demo_ratio):
    assert load_run_file(BuildRun, None, {**BUILD, "views.demo_ratio": demo_ratio}).views.demo_ratio == demo_ratio


def test_passes_are_known_named_once_and_plain_by_default():
    assert load_run_file(BuildRun, None, BUILD).build.passes == ("plain",)
    message = refuse(BuildRun, {**BUILD, "build.passes": ["plain", "comp-demo"]})
    assert "build.passes.1: found 'comp-demo'; Input should be 'plain' or 'compdemo'" in message
    assert "passes plain, plain: name each pass once" in refuse(BuildRun, {**BUILD, "build.passes": ["plain", "plain"]})
    assert "build.passes" in refuse(BuildRun, {**BUILD, "build.passes": []})


def test_a_pass_is_of_a_cache():
    assert load_run_file(TrainRun, None, {**TRAIN, "data.cache": "c"}).data.signal_pass == "plain"
    message = refuse(TrainRun, {**TRAIN, "data.corpus.spec": "a.jsonl", "data.signal_pass": "compdemo"})
    assert "signal_pass names a pass of a cache, and corpus is given" in message
    message = refuse(TrainRun, {**TRAIN, "data.cache": "c", "data.signal_pass": "demo"})
    assert "data.signal_pass: found 'demo'; Input should be 'plain' or 'compdemo'" in message
