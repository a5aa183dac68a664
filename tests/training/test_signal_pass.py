"""Training reads the pass that it is told to, and a cache that lacks it is refused with the command that adds it."""

import json

import pytest

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import CacheMismatchError, CheckpointError
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}


@pytest.fixture
def build(tmp_path, build_values):
    def run(*passes):
        build_cache(BuildRun.model_validate(build_values(tmp_path / "cache", build__passes=passes)))

    return run


@pytest.fixture
def run_of(tmp_path, vocabularies):
    def make(name, **data):
        return TrainRun.model_validate(
            {
                "student": {"shape": SHAPE, "tokenizer": {"path": str(vocabularies.second)}, "block_size": 8},
                "data": {"cache": str(tmp_path / "cache"), **data},
                "objective": [{"kind": "calm"}],
                "train": {
                    "out": str(tmp_path / name), "steps": 2, "global_batch": 8, "micro_batch": 8, "device": "cpu",
                    "precision": "float32", "checkpoint_every": 1, "log_every": 1,
                },
            }
        )  # fmt: skip

    return make


def losses(run):
    return [json.loads(line)["losses"] for line in (run.train.out / "metrics.jsonl").read_text().splitlines()]


def test_a_cache_without_the_pass_is_refused_with_the_command_that_adds_it(build, run_of, tmp_path):
    build("plain")
    run = run_of("student", signal_pass="compdemo")
    with pytest.raises(CacheMismatchError) as caught:
        prepare(run, World(0, 1, 0), resume=False)
    message = str(caught.value)
    assert "data.signal_pass: found compdemo, cache has ['plain']; add it: " in message
    assert f"build-teacher-shards RUN.toml --out {tmp_path / 'cache'} --passes plain,compdemo" in message
    build("plain", "compdemo")
    assert prepare(run, World(0, 1, 0), resume=False).steps == 2


def test_a_student_learns_from_the_pass_it_names_and_resumes_with_no_other(build, run_of):
    build("plain", "compdemo")
    plain, demonstrated = run_of("plain"), run_of("compdemo", signal_pass="compdemo")
    train(plain)
    train(demonstrated)
    assert losses(plain)[0] != losses(demonstrated)[0]
    with pytest.raises(CheckpointError, match=r"data\.signal_pass: checkpoint has 'compdemo', run declares None"):
        train(run_of("compdemo"), resume=True)
