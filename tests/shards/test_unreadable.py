"""What a local disk does not give now is not called damaged; and a name is given once where there are no links."""

import errno
import os

import pytest

from tide_cache.errors import ShardCorruptError, TideCacheError, UnreadableError
from tide_cache.inspecting.inspection import inspect
from tide_cache.manifest import verify
from tide_cache.shards import LOCAL_FILES, OtherBytesError, exclusive_rename, publish, store_faults

NOBODY = 65534


@pytest.fixture
def broken_disk(monkeypatch):
    """`broken_disk(call, code, name)`: the system call fails with this code on files of this name."""

    def break_it(call, code, name):
        before = getattr(os, call)

        def fail(target, *arguments, **options):
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
            if path.endswith(name):
                raise OSError(code, os.strerror(code), path)
            return before(target, *arguments, **options)

        monkeypatch.setattr(os, call, fail)

    return break_it


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "shard-000001.json", "shard-000001.parquet"])
@pytest.mark.parametrize(("call", "code"), [("open", errno.EACCES), ("pread", errno.EIO)])
def test_a_file_that_cannot_be_read_now_is_told_apart(tiny_cache, broken_disk, call, code, name):
    broken_disk(call, code, name)
    with pytest.raises(UnreadableError) as caught:
        verify(tiny_cache)
    assert f"{name}: cannot be read now: {os.strerror(code)} (errno {code})" in str(caught.value)
    assert "run the same command again; nothing says that it is damaged" in str(caught.value)
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, ShardCorruptError)


def test_a_folder_of_others_is_not_taken_for_an_empty_one(tiny_cache, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        for look in (LOCAL_FILES.list_folder, inspect, verify):
            with pytest.raises(
                UnreadableError, match=r"cannot be read now: Permission denied \(errno 13\)\. Give this"
            ):
                look(closed)
    finally:
        if is_root:
            os.seteuid(0)
        closed.chmod(0o700)


def test_problems_that_were_found_before_are_told_with_it(tiny_cache, tmp_path, broken_disk):
    import shutil

    cache = tmp_path / "cache"
    shutil.copytree(tiny_cache, cache)
    with (cache / "pairs" / "shard-000000.parquet").open("ab") as file:
        file.write(b"more")
    broken_disk("pread", errno.EIO, "signals/plain/shard-000001.parquet")
    with pytest.raises(UnreadableError, match=r"errno 5(?s:.*)Before it.*\n  - pairs/shard-000000\.parquet: .*bytes"):
        verify(cache)


def without_links(monkeypatch, code=errno.EPERM):
    def refuse(source, target):
        raise OSError(code, os.strerror(code), source)

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_a_name_is_given_once_by_a_rename(tmp_path, monkeypatch, code):
    without_links(monkeypatch, code)
    publish(tmp_path / "a", b"data")
    publish(tmp_path / "a", b"data")
    with pytest.raises(OtherBytesError):
        publish(tmp_path / "a", b"DATA")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"data"


def test_without_either_one_message_says_so(tmp_path, monkeypatch):
    without_links(monkeypatch)
    monkeypatch.setattr(exclusive_rename, "_renameat2", lambda: None)
    with pytest.raises(TideCacheError, match=r"a: cannot be written: this file system has neither hard links nor"):
        publish(tmp_path / "a", b"data")
    assert os.listdir(tmp_path) == []


def test_waits_are_bounded_and_drawn_anew(monkeypatch):
    now_s, waits, limits = [0.0], [], []
    monkeypatch.setattr(store_faults.time, "monotonic", lambda: now_s[0])

    def wait(duration_s):
        waits.append(duration_s)
        now_s[0] += duration_s

    monkeypatch.setattr(store_faults.time, "sleep", wait)

    def hang(limit_s):
        limits.append(limit_s)
        now_s[0] += store_faults.SILENCE_S
        raise TimeoutError

    with pytest.raises(TimeoutError):
        store_faults.persistently(hang)
    assert now_s[0] <= store_faults.GIVE_UP_S
    assert len(limits) == 2
    assert limits[0] == store_faults.GIVE_UP_S
    assert 0 <= waits[0] <= store_faults.FIRST_WAIT_S
