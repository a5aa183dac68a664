"""A run's figures are those of its files, whatever its length."""

import json
from dataclasses import asdict

import pytest

from helpers.run_examples import evaluation, metrics, write_run
from tide_cache.errors import RunFolderError
from tide_cache.reporting.runs import MOST_POINTS, read_run, run_names


def test_figures_are_those_of_the_files(tmp_path):
    found = read_run(write_run(tmp_path / "runs" / "student", seed=3, nll=1.5))
    assert (found.name, found.objectives, found.seed) == ("runs/student", "ce + 0.5 kl", 3)
    assert found.is_finished
    assert found.provenance is not None
    assert "cache_identity" not in found.provenance
    assert found.last.step == 50
    assert found.curve.steps == (10, 20, 30, 40, 50)
    assert found.curve.values["losses/ce"] == (8.5, 7.5, 6.5, 5.5, 4.5)
    assert "trust" not in found.curve.values, "figures that no line has are left out"
    assert [entry.nll.mean_nll for entry in found.evaluations] == [1.5]


def test_paths_of_the_machine_are_cut_everywhere(tmp_path):
    found = read_run(write_run(tmp_path / "runs" / "student", nll=1.5))
    text = json.dumps(asdict(found))
    assert "somebody" not in text
    assert str(tmp_path) not in text
    assert found.settings["data"]["cache"] == "caches/shared"
    assert found.evaluations[0].dataset == "data/held-out.jsonl"


def test_a_long_run_is_averaged_into_bins_that_keep_its_mean_and_its_last_step(tmp_path):
    num = 3 * MOST_POINTS
    lines = [metrics(step, float(step)) for step in range(1, num + 1)]
    found = read_run(write_run(tmp_path / "long", lines=lines))
    assert len(found.curve.steps) == MOST_POINTS
    assert found.curve.steps[-1] == num
    losses = found.curve.values["loss"]
    assert sum(losses) / len(losses) == pytest.approx((num + 1) / 2)


def test_nll_by_t_is_of_the_first_the_middle_and_the_last_tenth(tmp_path):
    lines = [metrics(step, float(step)) for step in range(1, 101)]
    first, middle, last = read_run(write_run(tmp_path / "run", lines=lines)).nll_stages
    assert (first.step_from, first.step_to, first.nll[1]) == (1, 10, 5.5)
    assert (middle.step_from, middle.step_to) == (46, 55)
    assert (last.step_from, last.step_to, last.nll[9]) == (91, 100, 95.5)
    assert last.nll[0] is None


def test_a_resumed_run_took_the_time_of_both_parts(tmp_path):
    lines = [metrics(1, 3.0, elapsed_s=7.0), metrics(2, 2.0, elapsed_s=9.0), metrics(3, 1.0, elapsed_s=4.0)]
    assert read_run(write_run(tmp_path / "run", lines=lines)).train_s == 13.0


def test_a_run_that_is_still_going_has_no_provenance(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "epo')
    found = read_run(folder)
    assert not found.is_finished
    assert found.last.step == 50, "a line that was cut off is none"


def test_names_are_as_short_as_tells_runs_apart(tmp_path):
    folders = [tmp_path / arm / "views-8" / f"seed-{seed}" for arm in ("ce", "kl") for seed in (0, 1)]
    assert run_names(folders) == ["ce/views-8/seed-0", "ce/views-8/seed-1", "kl/views-8/seed-0", "kl/views-8/seed-1"]


def test_files_of_another_kind_are_refused_by_name(tmp_path):
    def refusal(name, text):
        folder = write_run(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        (folder / name).write_text(text)
        with pytest.raises(RunFolderError) as caught:
            read_run(folder)
        return str(caught.value)

    assert "metrics.jsonl:2: step: " in refusal("metrics.jsonl", json.dumps(metrics(1, 1.0)) + '\n{"a": 1}\n')
    assert "found no logged step" in refusal("metrics.jsonl", "")
    assert "run.json: found no JSON document" in refusal("run.json", "{")
    assert "found list, expected a JSON object" in refusal("run.json", "[]")
    assert "found no objective or train.seed" in refusal("run.json", "{}")
    assert "eval-2.json: dataset: Field required; expected what `tide-cache eval" in refusal(
        "eval-2.json", '{"nll": {}}'
    )
    bad = evaluation(1.0) | {"max_length": "long"}
    assert "eval.json: max_length: " in refusal("eval.json", json.dumps(bad))


def test_evaluations_of_another_kind_are_named_and_left_out(tmp_path):
    folder = write_run(tmp_path / "run", nll=1.0)
    (folder / "eval-tasks.json").write_text('{"results": {"gsm8k": 0.5}}')
    found = read_run(folder)
    assert [entry.file for entry in found.evaluations] == ["eval.json"]
    assert found.other_evaluations == ("eval-tasks.json",)


def test_a_missing_run_file_is_named(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "run.json").unlink()
    with pytest.raises(RunFolderError, match=r"run\.json: cannot be read: No such file"):
        read_run(folder)
