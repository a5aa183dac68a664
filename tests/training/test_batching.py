"""Whole runs: how micro-batches are made up changes no step, and views shown together are counted each."""

import json

import pytest

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import CheckpointError, RunFileError
from tide_cache.training.run import train

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}


@pytest.fixture(scope="module")
def cache(tmp_path_factory, build_values):
    """A build of four views."""
    run = BuildRun.model_validate(build_values(tmp_path_factory.mktemp("batching") / "cache"))
    build_cache(run)
    return run.build.out


@pytest.fixture
def losses(tmp_path, cache, vocabularies):
    """Train, and give the losses of each step."""

    def run(name, resume=False, **train_section):
        section = {"out": str(tmp_path / name), "steps": 4, "global_batch": 8, "micro_batch": 4, "precision": "float32"}
        values = {
            "student": {"shape": SHAPE, "tokenizer": {"path": str(vocabularies.second)}},
            "data": {"cache": str(cache)},
            "objective": [{"kind": "ce"}, {"kind": "kl"}, {"kind": "calm"}],
            "optimizer": {"lr": 1e-3},
            "train": section | {"checkpoint_every": 2, "log_every": 1, "device": "cpu"} | train_section,
        }
        train(TrainRun.model_validate(values), resume=resume)
        return [json.loads(line)["losses"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize("views_per_step", [1, 4])
def test_batching_changes_no_loss(losses, views_per_step):
    how = {"views_per_step": views_per_step}
    alone = losses("order", batching="order", micro_batch=1, **how)
    for batching in ("length", "packed"):
        for step, expected in zip(losses(batching, batching=batching, row_tokens=96, **how), alone, strict=True):
            assert step == pytest.approx(expected, rel=1e-4)


def test_views_belong_to_what_is_resumed_and_batching_does_not(losses):
    losses("run")
    with pytest.raises(CheckpointError, match=r"train\.views_per_step: checkpoint has 1, run declares 2"):
        losses("run", resume=True, views_per_step=2)
    losses("run", resume=True, batching="packed")


def test_more_views_than_the_cache_has_are_refused(losses):
    with pytest.raises(RunFileError, match=r"train\.views_per_step: found 5, data has 4 views.*build with more views"):
        losses("run", views_per_step=5)
