"""The demonstration runs from nothing to its table and picture, goes on where it stopped, and guards its folder."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tide_cache.demo.plan import ARMS, QUICK
from tide_cache.demo.run import run_demo
from tide_cache.demo.stages import DemoFolder, make_data, train_teacher
from tide_cache.errors import Interrupted, RunFileError
from tide_cache.manifest import verify
from tide_cache_cli.main import app


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "tide_cache_cli.main", "demo", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done


def test_it_prints_a_table_of_every_arm_and_where_everything_lies(finished):
    out, done = finished
    for arm in ARMS:
        assert arm.name in done.stdout
    assert str(out / "demo.png") in done.stdout
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    assert len(results["arms"]) == len(ARMS)
    assert set(results["nll_at_views"]) == {"1", "2", "4", "8"}
    assert verify(out / "caches/shared", deep=True).ok
    assert verify(out / "caches/cross", deep=True).ok


def test_a_second_run_uses_what_is_there_and_finds_the_same(finished):
    out, _ = finished
    before = (out / "results.json").read_text()
    models = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    stages = []
    run_demo(out, QUICK, lambda stage, done, total: stages.append(stage))
    assert models == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert "teacher" not in stages
    found, known = json.loads((out / "results.json").read_text()), json.loads(before)
    assert found["arms"] == known["arms"]


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
    assert result.stderr == f"Stopped; what is done lies in {tmp_path}. Run the same command again to continue.\n"


def test_a_folder_of_something_else_is_left_alone(tmp_path, finished):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFileError, match="files that no demonstration wrote"):
        run_demo(tmp_path, QUICK, lambda *_: None)
    (finished[0] / "demo.json").write_text("{}")
    with pytest.raises(RunFileError, match="a demonstration of other sizes"):
        run_demo(finished[0], QUICK, lambda *_: None)
