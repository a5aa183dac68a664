"""A worker that is killed at any system call on files leaves what another run completes, byte for byte."""

import pytest

from helpers.campaign import IS_FULL, broken_promises, record, tree
from tide_cache.shards import LOCAL_FILES

CALLS = "%file,%desc"
"""All system calls that take a file name or a descriptor."""

QUICK_TRIALS = 25


@pytest.fixture(scope="module")
def calls(count_calls):
    """How often a worker makes each system call."""
    counts = count_calls(CALLS)
    assert counts["fsync"] > 20
    return counts


def test_killed_at_any_system_call_a_build_resumes_byte_identical(start, trace, finish, calls, tmp_path):
    places = [(name, number) for name in sorted(calls) for number in range(1, calls[name] + 1)]
    chosen = places if IS_FULL else places[:: max(1, len(places) // QUICK_TRIALS)]
    killed = 0
    for name, number in chosen:
        root = tmp_path / f"{name}-{number}"
        worker = start(root, is_held=True)
        trace(worker, name, f"signal=KILL:when={number}")
        status = worker.wait()
        assert status in (-9, 0), f"{name} {number}: {worker.message()}"
        killed += status == -9
        assert not broken_promises(root, list(tree(root)), LOCAL_FILES), f"killed at {name} {number}"
        finish(root, f"killed at {name} {number}")
    assert killed >= 0.95 * len(chosen), "the kills missed the worker"
    record("kill_at_every_system_call", system_calls=len(places), kills=killed, resumed_identical=killed)
