"""The experiment from teacher to tables, at toy size, on generated text."""

import multiprocessing
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from experiments.arms import (
    CALM,
    CHUNK_KL,
    FIRST,
    KEPT,
    KL,
    SHARE,
    SHARE_STAGES,
    STAGES,
    UNCERTAIN,
    Stage,
    across,
    taught,
)
from experiments.bytes_table import bytes_table
from experiments.pretraining import model_shape
from experiments.report import arm_table, read_results, rows_of, tables, write_results
from experiments.shares import share_figures, share_table
from experiments.sizes import SIZES
from experiments.stages import CertainTeacher, Experiment, Trial
from experiments.statistics import interval, paired
from experiments.trials import best_trial, known_trials, next_trial
from helpers.fresh import IS_FULL
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest

TOY = replace(
    SIZES["cpu"], teacher=(32, 1), teacher_epochs=1, teacher_steps=4, teacher_batch=4, teacher_views=2,
    student=(32, 1), student_epochs=1, student_steps=3, student_batch=4, seeds=(0, 1),
)  # fmt: skip
CROSS = taught("chunk_kl", "cross", CHUNK_KL, grid=(1.0,))
ARMS = (
    CROSS,
    replace(CROSS, name="chunk_kl, p = 1", source="certain"),
    taught("kl", "shared", KL, grid=(1.0,), source="live"),
    taught("calm, compdemo", "cross", CALM, grid=(1.0,), signal_pass="compdemo"),
    across("kl on projected, uncertain rows", KL | KEPT | UNCERTAIN),
)


@pytest.fixture(scope="module", autouse=True)
def forked_processes():
    """Processes that pretrain are forked from one that has imported what they need."""
    with pytest.MonkeyPatch.context() as patch:
        if not IS_FULL:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["experiments.stages", "experiments.pretraining", "transformers.trainer"])
            patch.setattr(multiprocessing, "get_context", lambda _: context)
        yield


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, vocabularies):
    made = Experiment(tmp_path_factory.mktemp("experiment"), TOY)
    (made.root / "material").mkdir()
    shutil.copytree(vocabularies.first.parent, made.root / "material/tokenizers")
    for seed, part in enumerate(("train", "validation", "test")):
        write_tasks(made.material.rows(part), make_tasks(12, seed))
    write_tasks(made.material.rows("text"), make_tasks(100, 3))
    made.train_teacher()
    return made


@pytest.fixture(scope="module")
def measured(experiment):
    found = {}
    for arm in ARMS:
        experiment.capture(arm, 8)
        trial = Trial(arm, 8, 1.0, 0)
        found[arm.name] = experiment.student(trial)
        assert experiment.student(trial) == found[arm.name]
    return found


def test_students_of_every_source_are_measured(measured):
    values = [student["test"]["nll"] for student in measured.values()]
    assert all(0 < value < 10 for value in values)
    assert len(set(values)) == len(ARMS)


def test_results_hold_every_student_and_capture(experiment, measured, tmp_path):
    write_results(experiment, tmp_path / "toy.json")
    results = read_results(tmp_path / "toy.json")
    found, expected = results["students"]["8/cross-chunk-kl/weight-1/seed-0"], measured["chunk_kl"]
    assert {**found, "test": None} == {**expected, "test": None}
    rows, expected_rows = found["test"].pop("rows"), expected["test"]["rows"]
    assert found["test"] == {name: value for name, value in expected["test"].items() if name != "rows"}
    np.testing.assert_allclose(rows.pop("nll"), expected_rows["nll"], atol=0.005)
    assert rows == {name: value for name, value in expected_rows.items() if name != "nll"}
    assert set(results["captures"]) == {
        "cross-8-plain", "shared-8-plain", "cross-8-compdemo", "cross-8-kinds-truth-chunks-projected-plain",
    }  # fmt: skip
    assert sum(rows["num_bytes"]) > sum(rows["num_supervised"]) > 0
    found = dict(tables(results))
    assert {"teacher", "cost", "300 shared", "grid"} <= found.keys()
    assert "share" not in found


def test_a_certain_teacher_knows_the_text_and_nothing_else(experiment, measured):
    cache = experiment.cache(CROSS, 8)
    source = CacheSource(cache, Manifest.load(cache))
    for before, after in zip(source.records(range(8), 0), CertainTeacher(source).records(range(8), 0), strict=True):
        chunks = after.signal.chunks
        assert not after.signal.truth_logprobs_N.any()
        assert np.array_equal(chunks.counts_A > 0, before.signal.chunks.counts_A > 0)
        spans = before.pair.chunks_C4[chunks.chunks_A[chunks.counts_A > 0], 2:]
        text = [token for start, end in spans for token in before.pair.student_ids_L[start:end]]
        assert chunks.ids_F.tolist() == text
        assert not chunks.logprobs_J.any()
        assert np.isneginf(chunks.log_tail_AT).all()


def measured_at(nll):
    return {"validation": {"nll": nll}, "test": {"nll": nll, "accuracy": 0.5, "exact_match": 0.1}}


def test_the_grid_comes_first_and_its_best_value_gets_the_other_seeds():
    arm = taught("kl", "shared", KL, grid=(0.3, 1.0, 3.0))
    stage, results = Stage("some", 8, (arm, CROSS)), {}
    for value, nll in zip(arm.grid, (3.0, 2.0, 2.5), strict=True):
        trial = next_trial(stage, (0, 1, 2), results, frozenset())
        assert trial == Trial(arm, 8, value, 0)
        results[trial.key] = measured_at(nll)
    assert [trial.seed for trial in known_trials(stage, arm, (0, 1, 2), results)] == [0, 0, 0, 1, 2]
    assert next_trial(stage, (0, 1, 2), results, frozenset()) == Trial(arm, 8, 1.0, 1)


def test_weights_of_fewer_samples_serve_more_and_shares_of_the_steps_are_tuned_again():
    arm, ce = taught("kl", "shared", KL, grid=(0.3, 1.0, 3.0)), FIRST[3]
    tuned, stage = Stage("some", 8, (arm, ce)), Stage("more", 20, (arm, ce), tuned_on=8)
    results = {}
    assert not known_trials(stage, arm, (0, 1), results)
    for of in (arm, ce):
        for value, nll in zip(of.grid, (3.0, 2.0, 2.5), strict=True):
            results[Trial(of, 8, value, 0).key] = measured_at(nll)
    assert known_trials(stage, arm, (0, 1), results) == (Trial(arm, 20, 1.0, 0), Trial(arm, 20, 1.0, 1))
    assert known_trials(tuned, arm, (0, 1), results)[3:] == (Trial(arm, 8, 1.0, 1),)
    assert [trial.value for trial in known_trials(stage, ce, (0, 1), results)] == list(ce.grid)


def test_the_next_arm_starts_while_a_grid_is_running():
    arm = taught("kl", "shared", KL)
    running = frozenset(Trial(arm, 8, value, 0).key for value in arm.grid)
    stage = Stage("some", 8, (arm, CROSS))
    assert next_trial(stage, (0,), {}, running) == Trial(CROSS, 8, 1.0, 0)
    assert next_trial(Stage("some", 8, (arm,)), (0,), {}, running) is None


def test_the_best_value_is_chosen_on_the_validation_rows():
    trials = known_trials(STAGES[0], FIRST[0], (0,), {})
    results = {
        trial.key: {"validation": {"nll": nll}, "test": {"nll": -nll}}
        for trial, nll in zip(trials, (2, 1, 3), strict=True)
    }
    assert best_trial(trials, results) is trials[1]


def test_different_jobs_have_different_folders():
    trials = [trial for stage in STAGES for arm in stage.arms for trial in known_trials(stage, arm, (0,), {})]
    by_key = {trial.key: _without_grid(trial) for trial in trials}
    assert len(by_key) > 50
    assert all(by_key[trial.key] == _without_grid(trial) for trial in trials)


def _without_grid(trial):
    """Where a value comes from makes no other student."""
    return replace(trial, arm=replace(trial.arm, grid=()))


def test_an_arm_is_compared_with_the_baseline_seed_by_seed():
    base, arm = FIRST[3], FIRST[4]
    results = {"size": {"seeds": [0, 1]}, "students": {}}
    for seed, nll in ((0, 2.0), (1, 4.0)):
        for value in base.grid:
            results["students"][Trial(base, 300, value, seed).key] = measured_at(nll)
        for value in arm.grid:
            results["students"][Trial(arm, 300, value, seed).key] = measured_at(nll - 0.5)
    rows = rows_of(results, "300 samples")
    assert [row.arm.name for row in rows] == ["ce, unweighted", "kl"]
    assert "**-0.500 ± 0.000**" in arm_table(rows, "shared", rows)


def test_the_share_is_of_the_arms_that_validation_likes_best(monkeypatch):
    monkeypatch.setattr("experiments.bootstrap.RESAMPLES", 200)
    gains = {"kl, T = 1": 0.1, "kl, T = 2 among the kept": 0.2, "x-token": 0.14, "chunk_kl, T = 1, p = 1": 0.5}
    results = {"size": {"seeds": [0, 1]}, "students": {}, "captures": {}}
    assert share_figures(results) == {}
    for arm in SHARE:
        for seed, weight in product((0, 1), arm.grid):
            nll = 4.0 - gains.get(arm.name, 0) * (weight == 1 or 0.5)
            results["students"][Trial(arm, 300, weight, seed).key] = {
                "validation": {"nll": nll}, "test": {"nll": nll, "nats_per_byte": nll / 2},
            }  # fmt: skip
    found = share_figures(results, "toy")
    assert found["share_of_gain_kept_toy"] == pytest.approx(0.7) == found["share_of_gain_kept_toy_low"]
    assert found["compared"] == {
        "chosen_on_validation": {"cross": "x-token, weight 1", "shared": "kl, T = 2 among the kept, weight 1"},
        "seeds": 2,
        "rows": None,
    }
    expected = "| x-token | cross | 1 | 2 | 0.1010 | 0.1010 to 0.1010 | 0.70 | 0.70 to 0.70 |"
    assert expected in share_table(results, SHARE_STAGES[""])
    assert [name for name, _ in tables(results)] == ["share"], "the queue's other stages were not run"


def test_gains_are_divided_by_the_megabytes_that_are_read():
    results = {"size": {"seeds": [0]}, "students": {}, "captures": {"shared-300-plain": {"bytes": 4e6}}}
    stage = next(stage for stage in STAGES if stage.name == "signals")
    for arm, nll in ((FIRST[3], 4.0), (stage.arms[1], 3.9)):
        results["students"][Trial(arm, 300, 1.0, 0).key] = measured_at(nll)
    assert "| 300 | kl, T = 1 | 2.0 | 0.100 | 0.0500 |" in bytes_table(results, "shared")


def test_intervals_are_those_of_students_t():
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.num_values) == (2.0, 3)
    assert found.half_width == pytest.approx(4.303 / 3**0.5)
    assert not found.excludes_zero
    assert interval([1.0]).half_width is None


def test_differences_are_taken_over_the_seeds_that_both_have():
    assert paired({0: 1.0, 1: 2.0, 2: 9.0}, {0: 2.0, 1: 3.0}).mean == -1.0
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("model", ["teacher", "student"])
def test_heads_share_keys_evenly(size, model):
    shape = model_shape(getattr(size, model))
    assert shape.hidden_size % 32 == 0
    assert shape.num_heads % shape.num_kv_heads == 0
