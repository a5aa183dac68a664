"""Runs become arms by what they share, and arms are paired by seed."""

import json

import pytest

from helpers.run_examples import evaluation, write_run
from tide_cache.reporting.comparing import arm_settings, compare_arms, make_arms
from tide_cache.reporting.runs import read_run, run_names


def read_all(folders):
    return [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]


def test_runs_that_differ_in_seeds_are_one_arm_and_arms_are_named_by_what_differs(tmp_path):
    folders = [
        write_run(tmp_path / "ce-0", kinds=("ce",), seed=0, steps=50),
        write_run(tmp_path / "kl-0", seed=0, steps=50),
        write_run(tmp_path / "ce-1", kinds=("ce",), seed=1, steps=50),
        write_run(tmp_path / "kl-long", seed=0, steps=100),
    ]
    arms = make_arms(read_all(folders))
    assert [arm.name for arm in arms] == ["ce", "ce + 0.5 kl, steps 50", "ce + 0.5 kl, steps 100"]
    assert [[run.seed for run in arm.runs] for arm in arms] == [[0, 1], [0], [0]]
    differing, common = arm_settings(arms)
    assert ["train.steps", "50", "50", "100"] in differing
    assert ["objective.1.kind", "-", "kl", "kl"] in differing
    assert ("data.cache", "caches/shared") in common
    assert not any("seed" in row[0] for row in [*differing, *common])


def test_the_same_settings_and_seed_twice_are_two_arms(tmp_path):
    arms = make_arms(read_all([write_run(tmp_path / name) for name in ("one", "two")]))
    assert [arm.name for arm in arms] == run_names([tmp_path / "one", tmp_path / "two"])


def test_arms_are_compared_by_held_out_nll_seed_by_seed(tmp_path):
    nll = {("ce",): (2.0, 3.0), ("ce", "kl"): (1.5, 3.1)}
    folders = [
        write_run(tmp_path / f"{len(kinds)}-{seed}", kinds=kinds, seed=seed, nll=values[seed])
        for kinds, values in nll.items()
        for seed in (0, 1)
    ]
    table = compare_arms(make_arms(read_all(folders)))
    assert table.measure == "held-out NLL (nats per token)"
    assert table.remarks == ()
    first, second = table.rows
    assert first.measure.value.mean == 2.5
    assert first.measure.difference is None
    assert second.measure.difference.mean == pytest.approx(-0.2)
    assert (second.measure.num_better, second.measure.num_paired) == (1, 2)
    assert second.accuracy.mean == 0.5


def test_without_an_evaluation_that_all_share_the_training_views_are_compared(tmp_path):
    folders = [write_run(tmp_path / "a", kinds=("ce",), nll=1.0), write_run(tmp_path / "b", nll=1.0)]
    (folders[1] / "eval.json").write_text(json.dumps(evaluation(1.0, num_samples=5)))
    table = compare_arms(make_arms(read_all(folders)))
    assert table.measure.startswith("NLL on the training views")
    assert "tide-cache eval" in table.remarks[0]
    assert [row.measure.value.mean for row in table.rows] == [5.0, 5.0], "the last line's loss, in nine buckets"
    assert table.rows[0].accuracy is None


def test_what_a_sweep_measured_is_an_evaluation(tmp_path):
    folders = [write_run(tmp_path / "a", kinds=("ce",)), write_run(tmp_path / "b")]
    for folder, nll in zip(folders, (2.0, 1.5), strict=True):
        scores = {"corpus": {"spec": "rows.jsonl"}, "max_length": 64, "nll": evaluation(nll)["nll"]}
        (folder / "held-out.json").write_text(json.dumps(scores))
        (folder / "model/tide_cache.json").write_text(json.dumps({"block_size": 8}))
    table = compare_arms(make_arms(read_all(folders)))
    assert table.measure == "held-out NLL (nats per token)"
    assert [row.measure.value.mean for row in table.rows] == [2.0, 1.5]


def test_runs_with_other_tokens_are_compared_by_bytes(tmp_path):
    folders = [write_run(tmp_path / "a", kinds=("ce",), nll=1.0), write_run(tmp_path / "b")]
    (folders[1] / "eval.json").write_text(json.dumps(evaluation(2.0, num_supervised=80, nats_per_byte=0.1)))
    table = compare_arms(make_arms(read_all(folders)))
    assert table.measure == "held-out NLL (nats per byte)"
    assert [row.measure.value.mean for row in table.rows] == [0.25, 0.1]
    assert "by bytes" in table.remarks[0]
