"""Full disks: one message with path and bytes, nothing half-written left behind, and nothing lost that was paid for."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from helpers import fresh
from tide_cache.config.base import load_run_file
from tide_cache.config.train import TrainRun
from tide_cache.errors import WriteError
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.progress import listen
from tide_cache.training.metrics import MetricsFile, StepMetrics, read_metrics
from tide_cache.training.run import _close as close_reporter
from tide_cache.training.run import train
from tide_cache_cli.phases import PhasePrinter

from .conftest import COMMAND, ENVIRONMENT, LIMIT_S

FULL = Path("/dev/full")
SMALL_FILE_BYTES = 16_000


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of so many kilobytes; only root may."""
    mounted = []

    def make(kilobytes):
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder]
        if (
            os.geteuid() != 0
            or shutil.which("mount") is None
            or subprocess.run(command, capture_output=True).returncode
        ):
            pytest.skip("mounting a small disk takes root")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def run_with_small_files(*arguments, cwd):
    """Run the installed command where no file may grow beyond a few kilobytes; that takes no root."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({SMALL_FILE_BYTES}, {SMALL_FILE_BYTES}))\n"
    code += "from tide_cache_cli.main import run; run()"
    return fresh.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=LIMIT_S,
    )  # fmt: skip


def test_a_conversion_that_does_not_fit_is_refused_before_it_begins(workshop, small_disk, call):
    disk = small_disk(32)
    result = call("convert", causal(workshop), "--out", disk / "students" / "start")
    assert result.exit_code == 1
    assert f"error: {disk}/students/start: found 32.8 kB free, the model takes " in result.stderr
    assert "Nothing was written." in result.stderr
    assert list(disk.iterdir()) == []


def test_a_model_that_cannot_be_written_leaves_nothing_behind(workshop, tmp_path):
    out = tmp_path / "students" / "start"
    done = run_with_small_files("convert", causal(workshop), "--out", out, cwd=workshop.root)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"error: {out}: cannot be written: File too large (errno 27); found " in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["view.parquet", "view.jsonl.zst"])
def test_an_export_that_does_not_fit_leaves_nothing_behind(small_disk, call, name):
    disk = small_disk(4)
    result = call("export", "cache", "--view", "0", "--out", disk / "new" / name)
    assert result.exit_code == 1
    assert f"error: {disk}/new/{name}: cannot be written: No space left on device (errno 28); found " in result.stderr
    assert list(disk.iterdir()) == []


def test_a_report_that_does_not_fit_leaves_the_old_one(small_disk, call):
    disk = small_disk(32)
    (disk / "page.html").write_text("old")
    result = call("report", "cache", "--out", disk / "page.html", "--force")
    assert result.exit_code == 1
    assert f"error: {disk}/page.html: cannot be written: No space left on device (errno 28); found " in result.stderr
    assert [(path.name, path.read_text()) for path in disk.iterdir()] == [("page.html", "old")]


def test_schemas_and_evaluations_too(small_disk, call):
    disk = small_disk(4)
    result = call("schema", "--out", disk / "schemas")
    assert result.exit_code == 1
    assert f"error: {disk}/schemas/" in result.stderr
    assert list(disk.iterdir()) == []
    (disk / "filler").write_bytes(b"0" * 4096)
    options = ("--dataset", "held-out.jsonl", "--max-length", "64", "--limit", "3", "--out", disk / "eval.json")
    result = call("eval", "teacher/model", *options)
    assert result.exit_code == 1
    assert f"error: {disk}/eval.json: cannot be written: No space left on device" in result.stderr
    assert "NLL" in result.stdout, "what was measured is shown all the same"


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_results_and_messages_that_cannot_be_written(workshop):
    """Results are missed, and that is said; messages are not worth the run."""
    with FULL.open("w") as full:
        lost = subprocess.run(
            [COMMAND, "verify", "cache"], cwd=workshop.root, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=LIMIT_S,
        )  # fmt: skip
        silent = subprocess.run(
            [COMMAND, "verify", "cache"], cwd=workshop.root, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=full,
            text=True, timeout=LIMIT_S,
        )  # fmt: skip
    assert lost.returncode == 1
    assert lost.stderr.splitlines()[-2:] == [
        "error: standard output: cannot be written: No space left on device (errno 28).",
        "Fix the cause (free space, quota, permissions) and run the same command again.",
    ]
    assert silent.returncode == 0
    assert "Whole" in silent.stdout


def causal(workshop):
    """Return the teacher's weights as a causal checkpoint, which `convert` takes."""
    folder = workshop.root / "causal"
    if not folder.exists():
        import json

        shutil.copytree(workshop.teacher, folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_that_does_not_fit_is_refused_before_it_begins(small_disk, call):
    disk = small_disk(32)
    options = ("--dataset", "tasks.jsonl", "--out", disk / "run", "--set", "train.checkpoint_every=1")
    result = call("train", "train.toml", *options)
    assert result.exit_code == 1
    assert f"error: {disk}/run: found 32.8 kB free, the run, a model of " in result.stderr
    assert "and 3 new checkpoints of " in result.stderr
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_costs_neither_the_run_nor_the_weights(
    workshop, small_disk, tmp_path, monkeypatch, capsys
):
    """From the first step on there is no byte: the run ends all the same, and its model is on another disk."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.chdir(workshop.root)
    disk = small_disk(4000)
    values = {"data.corpus.spec": "tasks.jsonl", "train.out": str(disk / "run"), "train.checkpoint_every": 2}
    run = load_run_file(TrainRun, Path("train.toml"), values)

    def fill(metrics, steps):
        with suppress(OSError), (disk / "filler").open("ab") as file:
            while True:
                file.write(b"0" * 512)
                file.flush()

    listen(PhasePrinter())
    try:
        with pytest.raises(WriteError) as caught:
            train(run, on_step=fill)
    finally:
        listen(None)
    [model] = elsewhere.glob("tide-cache-run-*/model")
    assert f"{disk}/run/model: cannot be written: No space left on device (errno 28); found " in str(caught.value)
    assert f"The finished weights are in {model} instead; move them to {disk}/run/model." in str(caught.value)
    assert read_checkpoint(str(model)).vocab_size
    load_backbone(read_checkpoint(str(model)), torch.float32, "cpu")
    assert "No checkpoint after step 2, the run goes on: " in capsys.readouterr().err
    assert sorted(path.name for path in (disk / "run").iterdir()) == ["checkpoints", "metrics.jsonl", "run.json"]
    assert list((disk / "run" / "checkpoints").iterdir()) == []


def test_figures_that_are_lost_do_not_cost_the_weights(capsys):
    class Full:
        def close(self):
            raise WriteError("metrics.jsonl: cannot be written")

    listen(PhasePrinter())
    try:
        close_reporter(Full())
    finally:
        listen(None)
    assert "The last figures are lost: metrics.jsonl: cannot be written" in capsys.readouterr().err


def test_figures_are_held_back_until_there_is_room(small_disk):
    disk = small_disk(8)
    file, full = MetricsFile(disk / "metrics.jsonl", 0), disk / "filler"
    lines = [StepMetrics(step, 0.0, 1.0, {}, [None] * 10, 0.1, None, None, 1.0, 0.0, 1, 1.0) for step in range(30)]
    file.write(lines[0])
    full.write_bytes(b"0" * 4096)
    for line in lines[1:]:
        file.write(line)
    assert read_metrics(disk / "metrics.jsonl") == lines[: len(read_metrics(disk / "metrics.jsonl"))]
    with pytest.raises(WriteError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        file.close()
    full.unlink()
    file.close()
    assert read_metrics(disk / "metrics.jsonl") == lines
