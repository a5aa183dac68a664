"""A disk that is full, over quota or broken at any call: a message and exit 1, nothing half done, and a rerun works."""

import errno
import os

import pytest

from helpers.campaign import IS_FULL, broken_promises, record, tree
from tide_cache.shards import LOCAL_FILES

CALLS = "write,fsync,link,linkat,rename,renameat,renameat2,mkdir,mkdirat"
ERRORS = ("ENOSPC", "EDQUOT", "EIO")
QUICK_TRIALS = 24


@pytest.fixture(scope="module")
def calls(count_calls):
    """How often a worker makes each system call."""
    return count_calls(CALLS)


def test_an_error_of_the_disk_is_told_and_fixed_by_a_rerun(start, trace, finish, calls, tmp_path):
    places = [(name, k, e) for name in sorted(calls) for k in range(1, calls[name] + 1) for e in ERRORS]
    chosen = places if IS_FULL else places[:: max(1, len(places) // QUICK_TRIALS)]
    for name, number, error in chosen:
        trial = f"{error} at {name} {number}"
        root = tmp_path / trial.replace(" ", "-")
        worker = start(root, is_held=True)
        trace(worker, name, f"error={error}:when={number}")
        assert worker.wait() == 1, f"{trial}: {worker.message()}"
        code = getattr(errno, error)
        assert worker.message().startswith(str(tmp_path)), trial
        assert f"cannot be written: {os.strerror(code)} (errno {code})" in worker.message(), trial
        found = tree(root)
        assert not [name for name in found if name.endswith(".tmp")], trial
        assert not broken_promises(root, list(found), LOCAL_FILES), trial
        finish(root, trial)
    assert {name for name, _, _ in chosen} >= {"write", "fsync"}
    record("disk_errors", calls=sum(calls.values()), errors=len(chosen), resumed_identical=len(chosen))
