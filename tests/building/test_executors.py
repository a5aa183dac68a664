"""Where shards are built makes no difference to them, whoever dies meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import fresh
from tide_cache.building.driver import PartialBuild, build_cache, build_shards
from tide_cache.building.executors import InProcess, LocalProcesses
from tide_cache.building.executors import processes as processes_module
from tide_cache.building.executors.answers import answer_of, built_of
from tide_cache.building.executors.devices import worker_devices
from tide_cache.building.executors.phases import PhaseMirror, PhaseTeller
from tide_cache.building.executors.queue import MAX_DEATHS, ShardQueue
from tide_cache.building.prepare import prepare_build
from tide_cache.building.shard import BuiltShard
from tide_cache.building.worker import ShardWorker
from tide_cache.config.build import TeacherConfig
from tide_cache.errors import (
    CacheIncompleteError,
    CacheMismatchError,
    Interrupted,
    PairingError,
    RunFileError,
    TideCacheError,
)
from tide_cache.manifest import verify
from tide_cache.progress import Phase, listen

pytestmark = pytest.mark.usefixtures("one_thread", "forking")


def workers():
    """Ids of worker processes that this process has started and not buried."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        is_forked = b"fresh_server" in command and int(folder.name) not in fresh.servers
        if parent == os.getpid() and (is_forked or b"worker_process" in command):
            found.append(int(folder.name))
    return found


class Hears:
    """Hears of phases, and keeps those that are not at their end."""

    def __init__(self):
        self.titles, self.open, self.told = [], [], []

    def begin(self, phase):
        self.titles.append(phase.title)
        self.open.append(phase)

    def end(self, phase):
        self.open.remove(phase)

    def hear(self, text):
        self.told.append(text)


@pytest.fixture
def hears():
    listener = Hears()
    listen(listener)
    yield listener
    listen(None)


def test_phases_of_workers_are_those_of_one_where_the_slowest_counts(hears):
    messages, mirror = [], PhaseMirror()
    teller, phase = PhaseTeller(lambda message: messages.append(json.loads(json.dumps(message)))), Phase("Hashing", 10)
    teller.begin(phase)
    (begun,) = messages
    mirror.start("a")
    mirror.start("b")
    assert hears.titles == ["Workers: Starting Python and torch"]
    assert mirror.hear("a", {**begun, "done": 7})
    assert mirror.hear("b", begun)
    (shown,) = hears.open
    assert (shown.title, shown.done, shown.total) == ("Workers: Hashing", 0, 10)
    teller.end(phase)
    teller.hear("a word")
    for message in messages[1:]:
        assert mirror.hear("b", message)
    assert hears.told == ["a word"]
    assert hears.open == [shown], "the other is at it"
    assert not mirror.hear("a", {"views": 3, "shard": 0})
    mirror.forget("a")
    assert hears.open == []
    mirror.hear("b", begun)
    mirror.close()
    assert hears.open == []


def test_two_processes_give_the_same_bytes_when_one_is_killed_in_mid_shard(tmp_path, run_in, undisturbed, tree, hears):
    seen, killed = [], []

    def kill_one(progress):
        seen.append(progress)
        if progress.views_done > 40 and not killed:
            assert len(workers()) == 2
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    run = run_in(tmp_path / "cache")
    summary = build_cache(run, kill_one, LocalProcesses(2))
    assert killed
    assert workers() == []
    assert {"Workers: Starting Python and torch", f"Workers: Loading weights of {run.teacher.model}"} <= {*hears.titles}
    assert hears.open == []
    assert tree(tmp_path / "cache") == tree(undisturbed)
    assert summary.num_shards == seen[-1].shards_done == 5
    assert seen[-1].views_done == seen[-1].num_views == 40 * 4, "views of the dead worker are not counted twice"
    assert 0 <= summary.cache_bytes - seen[-1].bytes_written < 0.1 * summary.cache_bytes, "but what the dead one wrote"


def test_a_shard_that_kills_every_worker_fails_the_build(tmp_path, run_in):
    def kill_all(progress):
        for pid in workers():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(TideCacheError, match=r"3 workers died on shard \d, the last one killed by SIGKILL") as caught:
        build_cache(run_in(tmp_path / "cache"), kill_all, LocalProcesses(1))
    assert "memory ran out" in str(caught.value)
    assert workers() == []


def test_what_a_worker_refuses_comes_back_once_with_its_kind_and_message(tmp_path, run_in, tiny_teacher, monkeypatch):
    copy = tmp_path / "teacher"
    copy.mkdir()
    for path in tiny_teacher.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    run = run_in(tmp_path / "cache", teacher__model=str(copy))
    build = prepare_build(run)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"more")
    with pytest.raises(CacheMismatchError, match=r"teacher.weights_sha256: cache has") as caught:
        build_shards(run, build, range(5), executor=LocalProcesses(2))
    assert caught.value.exit_code == 3
    assert workers() == []


def test_a_stop_ends_all_workers_within_ten_seconds(tmp_path, run_in):
    def stop(progress):
        if progress.views_done:
            os.kill(os.getpid(), signal.SIGTERM)

    started_s = time.monotonic()
    with pytest.raises(Interrupted, match=r"of 5 shards committed") as caught:
        build_cache(run_in(tmp_path / "cache"), stop, LocalProcesses(2))
    assert caught.value.exit_code == 143
    assert time.monotonic() - started_s < 120
    assert workers() == []


def test_a_worker_ends_with_the_process_that_waits_for_it(tmp_path):
    """As after SIGKILL of the parent: the end of stdin is all that a worker hears."""
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", processes_module.WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin is not None
    worker.stdin.write(b'{"run": {}, "device": "cpu"}\n')
    worker.stdin.close()
    assert worker.wait(timeout=120) == 0
    assert worker.stdout is not None
    worker.stdout.close()


def test_runs_with_ranges_share_a_folder_and_the_last_one_writes_the_manifest(tmp_path, run_in, undisturbed, tree):
    run = run_in(tmp_path / "cache")
    build = prepare_build(run)
    first = build_shards(run, build, range(3, 5))
    assert isinstance(first, PartialBuild)
    assert (first.shards_committed, first.num_shards, first.shards_reused) == (2, 5, 0)
    assert not (tmp_path / "cache/manifest.json").exists()
    with pytest.raises(CacheIncompleteError):
        verify(tmp_path / "cache")
    again = build_shards(run, build, range(2, 4))
    assert (again.shards_committed, again.shards_reused) == (3, 1)
    empty = build_shards(run, build, range(2, 2))
    assert (empty.shards_committed, empty.shards_reused) == (3, 0)
    last = build_shards(run, build, range(0, 3))
    assert not isinstance(last, PartialBuild)
    assert (last.num_samples, last.shards_reused) == (40, 1)
    assert tree(tmp_path / "cache") == tree(undisturbed)


def test_a_shard_that_another_run_committed_meanwhile_is_not_built_again(run_in, undisturbed, monkeypatch):
    run = run_in(undisturbed)
    worker = ShardWorker(run, prepare_build(run), "cpu")
    monkeypatch.setattr("tide_cache.building.worker.load_teacher", lambda *_: pytest.fail("nothing is missing"))
    assert worker.build(1, lambda _: None).result() == BuiltShard(1, 0, 0)
    worker.close()


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path, run_in):
    with pytest.raises(CacheIncompleteError, match=r"finds no plan.json there; build.out must lie on a file system"):
        ShardWorker.elsewhere(run_in(tmp_path / "cache"), "cpu")


def test_three_deaths_are_counted_by_shard():
    queue = ShardQueue([4, 5])
    assert (queue.take(), queue.take(), queue.take()) == (4, 5, None)
    for shard in (4, 5, 4, 5):
        queue.put_back(shard, "so")
    assert (len(queue), queue.take()) == (4, 5), "what was put back comes first"
    with pytest.raises(TideCacheError, match=f"{MAX_DEATHS} workers died on shard 4, the last one so"):
        queue.put_back(4, "so")
    queue.put_back(None, "so")
    queue.put_back(None, "so")
    with pytest.raises(TideCacheError, match="died before they had a shard"):
        queue.put_back(None, "so")


def test_answers_carry_results_refusals_and_faults():
    def fail(error):
        raise error

    built = BuiltShard(3, 10, 2)
    assert built_of(answer_of(lambda: built)) == built
    refusal = PairingError("no template")
    with pytest.raises(PairingError, match="no template"):
        built_of(answer_of(lambda: fail(refusal)))
    stop = Interrupted("stopped")
    stop.exit_code = 143
    with pytest.raises(Interrupted) as caught:
        built_of(answer_of(lambda: fail(stop)))
    assert caught.value.exit_code == 143
    with pytest.raises(RuntimeError, match=r"a worker failed:\n(.|\n)*KeyError: 'lost'"):
        built_of(answer_of(lambda: fail(KeyError("lost"))))


def test_each_worker_gets_a_gpu_of_its_own_or_all_get_the_cpu(monkeypatch):
    def teacher(device, **options):
        return TeacherConfig(model="teacher", device=device, **options)

    assert worker_devices(teacher("cpu"), 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert worker_devices(teacher("auto"), 2) == ["cuda:0", "cuda:1"]
    assert worker_devices(teacher("cuda"), 1) == ["cuda"]
    assert worker_devices(teacher("cuda:1"), 1) == ["cuda:1"]
    assert worker_devices(teacher("cuda", device_map="auto"), 1) == ["cuda"]
    with pytest.raises(RunFileError, match=r"--workers 3: found 2 GPUs"):
        worker_devices(teacher("auto"), 3)
    with pytest.raises(RunFileError, match=r"--workers 2: teacher.device names one GPU, cuda:1"):
        worker_devices(teacher("cuda:1"), 2)
    with pytest.raises(RunFileError, match=r"--workers 2: teacher.device_map = 'auto' spreads one teacher over all"):
        worker_devices(teacher("cuda", device_map="auto"), 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("executor", [InProcess(), LocalProcesses(2)], ids=["in process", "processes"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path, run_in, executor):
    with pytest.raises(RunFileError, match="no CUDA device"):
        build_cache(run_in(Path(tmp_path / "cache"), teacher__device="cuda"), executor=executor)
    assert not (tmp_path / "cache").exists()
