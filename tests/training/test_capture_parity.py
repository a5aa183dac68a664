"""A student trained from a cache equals one trained with the teacher in the loop, for every objective."""

import json
from dataclasses import replace
from functools import cache

import pytest

from helpers.fresh import IS_FULL
from tide_cache.building.driver import build_cache
from tide_cache.building.prepare import prepare_build
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.config.settings import LANES
from tide_cache.config.train import TrainRun
from tide_cache.loading.order import LaneOrder
from tide_cache.loading.source import LiveTeacher
from tide_cache.manifest import Manifest
from tide_cache.objectives import OBJECTIVES
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train, train_prepared

STEPS = 30 if IS_FULL else 12
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
ARMS = {
    "ce": ("plain", {"kind": "ce"}),
    "kl": ("plain", {"kind": "kl", "temperature": 1.0}),
    "kl sampled": ("plain", {"kind": "kl", "temperature": 1.0, "tail": "sampled"}),
    "reverse_kl": ("plain", {"kind": "reverse_kl"}),
    "calm": ("plain", {"kind": "calm"}),
    "reverse_calm": ("plain", {"kind": "reverse_calm"}),
    "bernoulli_kl": ("plain", {"kind": "bernoulli_kl"}),
    "chunk_kl": ("plain", {"kind": "chunk_kl", "temperature": 1.0}),
    "tidal over kl": ("plain", {"kind": "tidal", "over": "kl", "time_weight": "midrange"}),
    "tidal over calm": ("compdemo", {"kind": "tidal", "over": "calm", "time_weight": "midrange"}),
    "tide-shared": ("compdemo", {"kind": "tidal", "over": "kl", "time_weight": "midrange"}),
}
BOUNDS = {"kl": 0.1, "kl sampled": 0.1, "reverse_kl": 0.35, "chunk_kl": 0.01, "tidal over kl": 0.4, "tide-shared": 0.4}
"""How far the mean loss of the run may lie from the whole vocabulary's, relative, at the default top_k and top_p.

Seen: .06, .01, .23, .002, .28, .28 at T = 2 (chunk_kl at T = 1). What needs the truth alone is exact.
"""
BELOW = ("kl", "reverse_kl", "chunk_kl")
"""Grouping outcomes never raises a KL."""
ALL_IDS = {"signals__top_k": 512, "signals__top_p": 1.0, "signals__logprob_dtype": "float32"}


@pytest.fixture(scope="module")
def trained_teacher(tmp_path_factory, corpus_file, vocabularies):
    """A teacher that has learned something, so that its distributions have the shape of real ones."""
    out = tmp_path_factory.mktemp("trained") / "teacher"
    values = {
        "student": {"shape": SHAPE, "tokenizer": {"path": str(vocabularies.second)}, "block_size": 8, "max_length": 64},
        "data": {"corpus": {"spec": str(corpus_file)}},
        "objective": [{"kind": "ce", "time_weight": "uniform"}],
        "optimizer": {"lr": 5e-3},
        "train": {
            "out": str(out), "steps": 200, "global_batch": 16, "micro_batch": 16, "precision": "float32",
            "device": "cpu", "checkpoint_every": 0, "log_every": 100,
        },
    }  # fmt: skip
    return train(TrainRun.model_validate(values)).model


@pytest.fixture(scope="module")
def builds(tmp_path_factory, build_values, trained_teacher):
    """One cache with every id in float32, one with the default signals; both with all signals and passes."""
    made = {}
    for name, signals in (("exact", ALL_IDS), ("default", {"signals__top_k": 64})):
        values = build_values(
            tmp_path_factory.mktemp("parity") / name, build__passes=("plain", "compdemo"),
            teacher__model=str(trained_teacher), signals__kinds=("truth", "topk", "chunks"), signals__tail_samples=16,
            signals__temperatures=(1.0, 2.0), **signals,
        )  # fmt: skip
        made[name] = BuildRun.model_validate(values)
        build_cache(made[name])
    return made


@pytest.fixture(scope="module")
def live(builds):
    """The teacher that answered for the exact cache, in each of its passes."""
    build = prepare_build(builds["exact"])
    pairs = build.pairer.pair_many(list(build.corpus)).pairs
    teacher = load_teacher(builds["exact"], build, "cpu")
    return {
        "plain": LiveTeacher(pairs, build.views, teacher),
        "compdemo": LiveTeacher(pairs, build.views, teacher, demo_ratio=build.views.demo_ratio),
    }


class _Grouped:
    """A live teacher in a cache's groups, so that both visit the samples in the same order."""

    def __init__(self, live, groups):
        self.groups = groups
        self.records, self.ready = live.records, live.ready


@pytest.fixture(scope="module")
def losses(tmp_path_factory, builds, live, vocabularies):
    """`losses(arm, "exact" | "default" | "live")`: of all steps, in the same order of samples."""
    key = Manifest.load(builds["exact"].build.out).identity.cache_id

    @cache
    def run(arm, source):
        signal_pass, objective = ARMS[arm]
        out = tmp_path_factory.mktemp("run") / "run"
        values = {
            "student": {"shape": SHAPE, "tokenizer": {"path": str(vocabularies.second)}, "block_size": 8},
            "data": {"cache": str(builds["default" if source == "default" else "exact"].build.out)},
            "objective": [objective],
            "optimizer": {"lr": 1e-3},
            "train": {
                "out": str(out), "steps": STEPS, "global_batch": 4, "micro_batch": 4, "device": "cpu",
                "precision": "float32", "checkpoint_every": 0, "log_every": 1,
            },
        }  # fmt: skip
        values["data"]["signal_pass"] = signal_pass
        run, world = TrainRun.model_validate(values), World(0, 1, 0)
        prepared = prepare(run, world, resume=False)
        prepared = replace(prepared, order=LaneOrder(prepared.source.groups, key, 0, LANES))
        if source == "live":
            prepared = replace(prepared, source=_Grouped(live[signal_pass], prepared.source.groups))
        train_prepared(run, prepared, world)
        return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]

    return run


def test_every_objective_is_here():
    assert {objective["kind"] for _, objective in ARMS.values()} == set(OBJECTIVES)


@pytest.mark.parametrize("arm", ARMS)
def test_steps_from_the_cache_are_the_steps_beside_the_teacher(losses, arm):
    assert len(losses(arm, "live")) == STEPS
    assert losses(arm, "exact") == pytest.approx(losses(arm, "live"), rel=1e-5, abs=1e-6)
    assert losses(arm, "live")[-1] != losses(arm, "live")[0]


@pytest.mark.parametrize("arm", ARMS)
def test_with_the_default_signals_they_are_within_the_stated_bound(losses, arm):
    found, expected = sum(losses(arm, "default")), sum(losses(arm, "live"))
    assert found == pytest.approx(expected, rel=BOUNDS.get(arm, 1e-5))
    if arm in BELOW:
        assert found < expected * (1 + 1e-3)
