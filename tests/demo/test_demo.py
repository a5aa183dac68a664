"""The demonstration runs from nothing to its table and picture, goes on where it stopped, and guards its folder."""

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers import fresh
from tide_cache.demo.design import ARMS, FIRST_LOOK, FULL, QUICK, TEMPERATURES, WHOLE_TABLE, Table
from tide_cache.demo.measure import Measured
from tide_cache.demo.run import run_demo, summarise
from tide_cache.demo.stages import DemoFolder, make_data, student_run, train_teacher
from tide_cache.demo.students import all_jobs
from tide_cache.errors import Interrupted, RunFileError
from tide_cache.evaluation.comparison import half_interval
from tide_cache.manifest import verify
from tide_cache_cli.heartbeat import Heartbeat
from tide_cache_cli.main import app


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "tide_cache_cli.main", "demo", "--quick", "--out", str(out)]
    done = fresh.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done


def test_it_prints_every_student_and_where_everything_lies(finished):
    out, done = finished
    for arm in FIRST_LOOK.arms:
        assert f"│ {arm.name} " in done.stdout
    assert str(out / "demo.png") in done.stdout
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    assert len(results["arms"]) == len(FIRST_LOOK.arms)
    assert verify(out / "caches/shared", deep=True).ok
    assert verify(out / "caches/cross", deep=True).ok


def test_every_stage_is_shown_from_the_first_second(finished):
    stages = re.findall(r"^\S+ (\w+): \d+ of ", finished[1].stderr.replace(",", ""), re.MULTILINE)
    assert list(dict.fromkeys(stages)) == [
        "libraries",
        "corpus",
        "teacher",
        "capture",
        "starting",
        "students",
        "figures",
    ]


def test_a_larger_table_goes_on_in_the_same_folder(finished, forking):
    out, _ = finished
    models = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    stages = []
    table = Table((ARMS[0], ARMS[4]), seeds=(0, 1), views=(1,))
    found = run_demo(out, QUICK, table, lambda stage, done, total: stages.append((stage, done)))
    assert models.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}.items()
    assert [done for stage, done in stages if stage == "teacher"] == [0]
    assert set(found.nll_at_views) == {1, 8}
    assert [row.nll.num_paired for row in found.arms] == [0, 2]
    assert found.arms[1].interval > 0
    assert set(json.loads(found.results.read_text())["nll_at_views"]) == {"1", "8"}


def test_the_tables():
    few, all_of_them = (all_jobs(DemoFolder(Path("out")), FULL, table) for table in (FIRST_LOOK, WHOLE_TABLE))
    assert (len(few), len(all_of_them), len({job.name for job in all_of_them})) == (4, 39, 39)
    assert {job.run.train.out for job in few} <= {job.run.train.out for job in all_of_them}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.slug)
def test_an_arm_leaves_no_weight_or_temperature_to_a_default(arm, tmp_path):
    run = student_run(DemoFolder(tmp_path), FULL, arm, seed=0)
    for given, read in zip(arm.objectives, run.objective, strict=True):
        assert {"kind", "weight", {"ce": "time_weight"}.get(given["kind"], "temperature")} <= set(given)
        if given["kind"] in ("kl", "chunk_kl"):
            assert read.temperature_mode == "kept" or read.temperature in TEMPERATURES


def measured(nll, parts=()):
    return Measured(nll=nll, nll_by_part=tuple(parts), nll_at={}, accuracy=0.5, exact_match=0.0)


def test_one_seed_has_an_interval_over_the_tasks():
    base = measured(2.0, [1.0 + part for part in range(10)])
    ours = measured(1.5, [0.5 + part + 0.1 * (part % 2) for part in range(10)])
    row = summarise(ARMS[4], {0: ours}, {0: base})
    assert row.nll.difference.mean == -0.5
    assert row.interval == pytest.approx(half_interval([-0.5, -0.4] * 5))
    assert summarise(ARMS[0], {0: base}, None).interval is None


def test_several_seeds_have_an_interval_over_them():
    base = {0: measured(2.0), 1: measured(2.2), 2: measured(2.1)}
    ours = {0: measured(1.0), 1: measured(1.1), 2: measured(1.3)}
    assert summarise(ARMS[4], ours, base).interval == pytest.approx(half_interval([-1.0, -1.1, -0.8]))


def test_an_interval():
    assert half_interval([1.0]) is None
    assert half_interval([2.0, 2.0, 2.0]) == 0
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)


def test_a_stage_that_makes_no_headway_is_still_shown(capsys, monkeypatch):
    monkeypatch.setattr("tide_cache_cli.heartbeat.SECONDS", 0.02)
    with Heartbeat({"teacher": "steps"}) as heartbeat:
        heartbeat.update("teacher", 0, 5)
        shown, until_s = 0, time.monotonic() + 60
        while shown < 3 and time.monotonic() < until_s:
            time.sleep(0.02)
            shown += capsys.readouterr().err.count("teacher: 0 of 5 steps")
    assert shown >= 3


def test_a_teacher_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path):
    folder = DemoFolder(tmp_path)
    make_data(folder, QUICK)
    folder.teacher.mkdir()
    (folder.teacher / "run.json").write_text("")
    steps = []
    train_teacher(folder, QUICK, lambda metrics, _: steps.append(metrics.step))
    assert steps[-1] == QUICK.teacher_steps


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("step 1; use --resume")])
def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, error):
    def interrupted(*_):
        raise error

    monkeypatch.setattr("tide_cache.demo.run.run_demo", interrupted)
    result = CliRunner().invoke(app, ["demo", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 130
    stopped = f"Stopped; finished work is in {tmp_path}. Run the same command again to continue.\n"
    assert result.stderr.endswith(stopped)


def test_a_folder_of_something_else_is_left_alone(tmp_path, finished):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFileError, match="files that no demonstration wrote"):
        run_demo(tmp_path, QUICK, FIRST_LOOK, lambda *_: None)
    with pytest.raises(RunFileError, match="a demonstration of other sizes"):
        run_demo(finished[0], replace(QUICK, teacher_steps=7), FIRST_LOOK, lambda *_: None)
    for place, fault in ((tmp_path, "files that no demonstration wrote"), (tmp_path / "thesis.tex", "is a file")):
        result = CliRunner().invoke(app, ["demo", "--out", str(place)])
        assert result.exit_code == 2
        assert fault in result.stderr
        assert "loaded" not in result.stderr, "before torch is"
