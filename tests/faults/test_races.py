"""Any number of workers on one folder, stopped, woken and killed at any time, leave the tree of an undisturbed run."""

import shutil
import signal
import time

import pytest

from helpers.campaign import broken_promises, record, seeded, tree, trials
from tide_cache.shards import LOCAL_FILES

NUM_RACERS = 8


@pytest.fixture(scope="module")
def run_s(start, undisturbed, tmp_path_factory):
    """How long one worker takes on its own, here and now; faults fall into that time."""

    def once(number):
        root = tmp_path_factory.mktemp("alone") / str(number)
        begun = time.monotonic()
        assert start(root).wait() == 0
        return time.monotonic() - begun

    return min(map(once, range(3)))


def test_racing_writers_agree(start, undisturbed, tmp_path):
    races = trials(quick=4, full=50)
    for seed, random in seeded(races):
        root = tmp_path / str(seed)
        racers = [start(root, order=random.randrange(1000), is_held=True) for _ in range(NUM_RACERS)]
        for racer in racers:
            racer.send(signal.SIGCONT)
        for racer in racers:
            assert racer.wait() == 0, f"seed {seed}: {racer.message()}"
        assert tree(root) == undisturbed, f"seed {seed}"
        shutil.rmtree(root)
    record("racing_writers", races=races, writers=NUM_RACERS, identical=races)


def test_a_paused_writer_whose_shards_were_taken_over_changes_nothing(start, undisturbed, run_s, tmp_path):
    """It may have been stopped in the middle of a publication; what it then finds is what it would have written."""
    pauses = trials(quick=8, full=100)
    num_paused = 0
    for seed, random in seeded(pauses):
        root = tmp_path / str(seed)
        slow = start(root, order=random.randrange(1000))
        time.sleep(random.uniform(0, run_s))
        slow.send(signal.SIGSTOP)
        num_paused += slow.state() != "Z"
        other = start(root)
        assert other.wait() == 0, f"seed {seed}: {other.message()}"
        slow.send(signal.SIGCONT)
        assert slow.wait() == 0, f"seed {seed}: {slow.message()}"
        assert tree(root) == undisturbed, f"seed {seed}"
        shutil.rmtree(root)
    assert num_paused >= pauses // 2, "the pauses came too late to be a test"
    record("paused_writers", trials=pauses, paused_in_time=num_paused, identical=pauses)


def test_workers_killed_at_random_times_leave_what_a_rerun_completes(start, finish, run_s, tmp_path):
    rounds = trials(quick=15, full=200)
    num_killed = 0
    for seed, random in seeded(rounds):
        root = tmp_path / str(seed)
        workers = [start(root, order=random.randrange(1000)) for _ in range(3)]
        for worker in workers[: random.randint(1, 3)]:
            time.sleep(random.uniform(0, run_s))
            worker.send(signal.SIGKILL)
        for worker in workers:
            status = worker.wait()
            assert status in (0, -signal.SIGKILL), f"seed {seed}: {worker.message()}"
            num_killed += status != 0
        if root.exists():
            assert not broken_promises(root, list(tree(root)), LOCAL_FILES), f"seed {seed}"
        finish(root, f"seed {seed}")
    assert num_killed >= rounds // 4, "the kills came too late to be a test"
    record("random_kills", trials=rounds, killed=num_killed, resumed_identical=rounds)
