"""Where shards are built, from the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import fresh
from tide_cache.building import identity

SMALL = ("--set", "build.samples_per_shard=4")
LIMIT_S = 120
COMMAND = Path(sys.executable).with_name("tide-cache")


def build(*options, out):
    return ("build-teacher-shards", "build.toml", "--out", out, *SMALL, *options)


def test_parts_of_a_plan_end_well_and_say_what_is_missing(call, tmp_path, monkeypatch):
    out = tmp_path / "cache"
    part = call(*build("--shard-range", "0:2", out=out))
    assert part.exit_code == 0, part.stderr
    assert "2 of 6 shards committed. The run that completes the cache writes the manifest." in part.stderr
    assert "2 (0 already existed)" in part.stdout
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    document = json.loads(call(*build("--shard-range", "auto", "--json", out=out)).stdout)
    assert (document["first_shard"], document["end_shard"], document["shards_committed"]) == (3, 6, 5)
    assert not document["is_complete"]
    last = json.loads(call(*build("--shard-range", "1/2", "--json", out=out)).stdout)
    assert not last["is_complete"], "the variables of Slurm count for auto alone"
    last = json.loads(call(*build("--shard-range", "0/2", "--json", out=out)).stdout)
    assert last["is_complete"]
    assert last["num_samples"] == 24
    assert call("verify", out, "--deep").exit_code == 0


def test_two_workers_build_the_cache_of_one(installed, workshop, tmp_path, call):
    done = installed(*build("--workers", "2", "--json", out=tmp_path / "two"), cwd=workshop.root)
    assert done.returncode == 0, done.stderr
    assert "shard 6 of 6" in done.stderr
    assert call(*build(out=tmp_path / "one")).exit_code == 0
    one, two = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_workers(workshop, tmp_path, number, code):
    out = tmp_path / "cache"
    options = ("--workers", "2", "--set", "views.num_views=60", "--set", "build.batch_tokens=64")
    command = [COMMAND, *map(str, build(*options, out=out))]
    process = fresh.Process(command, cwd=workshop.root, env={**os.environ, "OMP_NUM_THREADS": "1"},
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        while not any(out.glob("signals/plain/*.parquet")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT_S)  # ten seconds, but for a machine that has other work
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, err
    assert "of 6 shards committed in" in err
    assert "Traceback" not in err


def test_no_worker_outlives_a_command_that_is_killed(workshop, tmp_path):
    out = tmp_path / "cache"
    options = ("--workers", "2", "--set", "views.num_views=60", "--set", "build.batch_tokens=64")
    command = [COMMAND, *map(str, build(*options, out=out))]
    process = fresh.Process(command, cwd=workshop.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not any(out.glob("signals/plain/*.parquet")):
            assert process.poll() is None
            time.sleep(0.05)
        workers = [pid for pid in children_of(process.pid) if os.getsid(pid) == pid]  # not what forks them
        assert len(workers) == 2
    finally:
        process.kill()
        process.wait()
    deadline_s = time.monotonic() + LIMIT_S
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def children_of(pid):
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_cannot_be_combined_is_refused(call, tmp_path):
    refused = call(*build("--ray-address", "head:6379", out=tmp_path / "cache"))
    assert refused.exit_code == 2
    assert "--ray-address head:6379: only Ray actors have one; add --executor ray" in refused.stderr
    assert call(*build("--workers", "0", out=tmp_path / "cache")).exit_code == 2
    outside = call(*build("--shard-range", "0:7", out=tmp_path / "cache"))
    assert outside.exit_code == 2
    assert "--shard-range 0:7: the plan has 6 shards" in outside.stderr
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_predicted(call, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"total": 2000, "free": 1000}))
    with monkeypatch.context() as patch:
        patch.setattr(identity, "fetch_weights", None)  # before they are fetched and hashed
        refused = call(*build(out=tmp_path / "cache"))
    assert refused.exit_code == 1
    assert "found 1.0 kB free, and 6 shards are still to be written" in refused.stderr
    assert call(*build("--no-disk-check", out=tmp_path / "cache")).exit_code == 0
