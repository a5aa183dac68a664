"""Loading ahead changes nothing but the time: order, number, errors at their step, and no thread is left."""

import threading
import time
from dataclasses import dataclass

import pytest
import torch

from tide_cache.errors import ShardCorruptError
from tide_cache.loading.prefetch import Prefetcher
from tide_cache.modeling.moving import with_tensors


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_steps_come_once_and_in_order(ahead):
    loaded = []
    with Prefetcher(lambda step: loaded.append(step) or step * 10, range(3, 8), ahead) as prefetcher:
        assert [prefetcher.take() for _ in range(5)] == [30, 40, 50, 60, 70]
    assert loaded == [3, 4, 5, 6, 7]
    assert threads() == []


def test_no_more_is_loaded_than_asked_for():
    begun = threading.Semaphore(0)
    loaded = []

    def load(step):
        loaded.append(step)
        begun.release()
        return step

    with Prefetcher(load, range(100), ahead=2) as prefetcher:
        prefetcher.take()
        for _ in range(3):
            begun.acquire()
        assert loaded == [0, 1, 2]
        assert not begun.acquire(timeout=0.05)
    assert loaded == [0, 1, 2]


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_at_its_step(ahead):
    def load(step):
        if step == 2:
            raise ShardCorruptError("signals/plain/shard-000000.parquet: found 3 bytes")
        return step

    with Prefetcher(load, range(9), ahead) as prefetcher:
        assert [prefetcher.take(), prefetcher.take()] == [0, 1]
        with pytest.raises(ShardCorruptError, match=r"shard-000000.parquet: found 3 bytes"):
            prefetcher.take()
    assert threads() == []


def test_an_interruption_ends_the_thread_after_the_step_it_is_at():
    loading, may_go_on = threading.Event(), threading.Event()
    loaded = []

    def load(step):
        loading.set()
        may_go_on.wait()
        loaded.append(step)

    def interrupted():
        with Prefetcher(load, range(9), ahead=3):
            loading.wait()
            threading.Timer(0.2, may_go_on.set).start()  # by then, leaving the block has cancelled what has not begun
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert loaded == [0]
    assert threads() == []


def test_only_waiting_counts_as_a_stall():
    with Prefetcher(lambda step: time.sleep(0.1), range(3), ahead=0) as without:
        for _ in range(3):
            without.take()
    assert without.stall_s >= 0.3
    ready = threading.Event()
    with Prefetcher(lambda step: ready.set() if step == 2 else None, range(3), ahead=3) as ahead:
        ready.wait()
        for _ in range(3):
            ahead.take()
    assert ahead.stall_s < 0.3  # nothing, but for a machine that has other work


def test_tensors_of_a_record_and_its_parts_change_and_the_rest_stays():
    @dataclass(frozen=True)
    class Some:
        values_N: torch.Tensor
        name: str

    @dataclass(frozen=True)
    class Whole:
        part: Some
        t_N: torch.Tensor

    changed = with_tensors(Whole(Some(torch.ones(3), "x"), torch.zeros(1)), lambda tensor: tensor + 1)
    assert changed.part.values_N.tolist() == [2, 2, 2]
    assert changed.part.name == "x"
    assert changed.t_N.tolist() == [1]
