"""Full disks: one message with path and bytes, nothing half-written left behind, and nothing lost that was paid for."""

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

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

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE_BYTES, SMALL_FILE_BYTES))

    return subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT_S,
        preexec_fn=limit,
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
            [COMMAND, "inspect", "cache"], cwd=workshop.root, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=LIMIT_S,
        )  # fmt: skip
        silent = subprocess.run(
            [COMMAND, "verify", "cache"], cwd=workshop.root, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=full,
            text=True, timeout=LIMIT_S,
        )  # fmt: skip
    assert lost.returncode == 1
    assert lost.stderr.splitlines()[-2:] == [
        "error: standard output: cannot be written: No space left on device (errno 28).",
        "Mend the cause (free space, quota, permissions) and run the same command again.",
    ]
    assert silent.returncode == 0
    assert "Whole" in silent.stdout


def causal(workshop):
    """Give the teacher's weights as a causal checkpoint, which `convert` takes."""
    folder = workshop.root / "causal"
    if not folder.exists():
        import json

        shutil.copytree(workshop.teacher, folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config))
    return folder
