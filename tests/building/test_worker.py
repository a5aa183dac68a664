"""A worker writes one shard while its teacher is at the next, and says so when writing fails."""

import pickle
import threading

import pytest

from tide_cache.building import worker as worker_module
from tide_cache.building.driver import build_cache
from tide_cache.building.executors.queue import ShardQueue
from tide_cache.building.prepare import prepare_build
from tide_cache.building.worker import ShardWorker
from tide_cache.errors import TideCacheError
from tide_cache.manifest import CacheFolder
from tide_cache.teacher import capture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def worker(tmp_path, run_in):
    run = run_in(tmp_path / "cache")
    build = prepare_build(run)
    folder = CacheFolder(run.build.out)
    folder.begin(build.identity, build.plan, build.passes)
    worker = ShardWorker(run, build, "cpu")
    yield worker
    worker.close()


def test_the_teacher_goes_on_while_a_shard_is_written(worker, monkeypatch):
    may_write, commit = threading.Event(), CacheFolder.commit

    def slow(self, encoded, statistics):
        assert may_write.wait(60)
        return commit(self, encoded, statistics)

    monkeypatch.setattr(CacheFolder, "commit", slow)
    first = worker.build(0, lambda _: None)
    captured = []

    def on_views(count):
        captured.append(first.done())
        may_write.set()

    second = worker.build(1, on_views)
    assert captured[0] is False, "the second shard was captured before the first was written"
    assert first.result().shard == 0
    assert second.result().shard == 1
    assert all(worker._folder.is_committed(table, shard) for table in ("pairs", "plain") for shard in (0, 1))


def test_a_writer_that_fails_stops_the_worker(worker, monkeypatch):
    def full(self, encoded, statistics):
        raise TideCacheError("no space left")

    monkeypatch.setattr(CacheFolder, "commit", full)
    failed = worker.build(0, lambda _: None)
    with pytest.raises(TideCacheError, match="no space left"):
        failed.result()
    with pytest.raises(TideCacheError, match="no space left"):
        worker.build(1, lambda _: None)


class Pickled:
    """What `Aside` does, without the process."""

    def __init__(self, original):
        self._copy = pickle.loads(pickle.dumps(original))

    def call(self, method, *arguments):
        answer = getattr(self._copy, method)(*pickle.loads(pickle.dumps(arguments)))
        return pickle.loads(pickle.dumps(answer))


def test_sorted_and_encoded_aside_as_beside_a_gpu_a_cache_has_the_same_bytes(tmp_path, run_in, tree, monkeypatch):
    changes = {"pipeline": "cross", "signals__kinds": ("truth", "chunks", "projected"), "build__samples_per_shard": 20}
    changes["signals__chunk_passes"] = 1
    build_cache(run_in(tmp_path / "here", **changes))
    for module in (capture, worker_module):
        monkeypatch.setattr(module, "Aside", Pickled)
    monkeypatch.setattr(worker_module, "works_aside", lambda device: True)
    build_cache(run_in(tmp_path / "aside", **changes))
    assert tree(tmp_path / "aside") == tree(tmp_path / "here")


def test_of_the_last_shards_nobody_takes_two():
    queue = ShardQueue(range(5))
    assert [queue.share(num_workers) for num_workers in (1, 4, 5)] == [2, 2, 1]
    for _ in range(5):
        queue.take()
    assert queue.share(1) == 1
