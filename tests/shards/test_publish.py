"""A file lies in the cache whole and durable, or not at all, and is never replaced."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tide_cache.errors import ShardCorruptError, TideCacheError
from tide_cache.shards import (
    LocalFiles,
    canonical_json,
    file_sha256,
    publish,
    publish_json,
    replace_json,
)


class Recorder(LocalFiles):
    """Notes the order of operations, and fails the one it is told to."""

    def __init__(self, fails: str = "", error: OSError | None = None) -> None:
        self.calls: list[str] = []
        self._fails = fails
        self._error = error

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self._fails and self._error is not None:
            raise self._error

    def write_new(self, path: Path, data: bytes) -> None:
        self._note("write_new")
        super().write_new(path, data)

    def link(self, source: Path, target: Path) -> None:
        self._note("link")
        super().link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self._note("rename")
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._note("sync_folder")
        super().sync_folder(folder)

    def remove(self, path: Path) -> None:
        self._note("remove")
        super().remove(path)


def test_order_of_a_publication(tmp_path):
    files = Recorder()
    publish(tmp_path / "a", b"data", files)
    assert files.calls == ["write_new", "link", "sync_folder", "remove"]
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"data"


def test_the_same_bytes_again_change_nothing(tmp_path):
    publish(tmp_path / "a", b"data")
    before = (tmp_path / "a").stat()
    publish(tmp_path / "a", b"data")
    assert (tmp_path / "a").stat().st_ino == before.st_ino
    assert os.listdir(tmp_path) == ["a"]


def test_other_bytes_never_replace(tmp_path):
    publish(tmp_path / "a", b"data")
    with pytest.raises(ShardCorruptError, match=r"already there with other bytes: found sha256 3a6eb.*(?s:.*)Delete"):
        publish(tmp_path / "a", b"DATA")
    assert (tmp_path / "a").read_bytes() == b"data"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("step", ["write_new", "link"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_publishes_nothing_and_says_where(tmp_path, step, code):
    files = Recorder(step, OSError(code, os.strerror(code)))
    with pytest.raises(TideCacheError) as error:
        publish(tmp_path / "a", b"data", files)
    assert f"{tmp_path / 'a'}: cannot be written: {os.strerror(code)} (errno {code})" in str(error.value)
    assert "run the same command again" in str(error.value)
    assert os.listdir(tmp_path) == []
    publish(tmp_path / "a", b"data")


def test_canonical_json_is_one_form(tmp_path):
    assert canonical_json({"b": 1, "a": ["ä", None, 0.5]}) == '{"a":["ä",null,0.5],"b":1}'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": float("nan")})
    publish_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_bytes() == b'{"a":1}\n'


def test_a_document_replaces_another_at_one_stroke(tmp_path):
    publish_json(tmp_path / "a.json", {"a": 1})
    files = Recorder()
    replace_json(tmp_path / "a.json", {"a": 2}, files)
    assert files.calls == ["write_new", "rename", "sync_folder", "remove"]
    assert (tmp_path / "a.json").read_bytes() == b'{"a":2}\n'
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["write_new", "rename"])
def test_a_document_that_cannot_be_replaced_stays(tmp_path, step):
    publish_json(tmp_path / "a.json", {"a": 1})
    files = Recorder(step, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(TideCacheError, match=r"a\.json: cannot be written: No space left"):
        replace_json(tmp_path / "a.json", {"a": 2}, files)
    assert (tmp_path / "a.json").read_bytes() == b'{"a":1}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_hash_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    """A writer that is killed before its link leaves a temporary file, and no other trace."""
    code = (
        "import os, pathlib, sys\n"
        "from tide_cache.shards import LocalFiles, publish\n"
        "class Killed(LocalFiles):\n"
        "    def link(self, source, target):\n"
        "        os._exit(9)\n"
        "publish(pathlib.Path(sys.argv[1]) / 'shard-000000.parquet', b'half', Killed())\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    (leftover,) = os.listdir(tmp_path)
    living = leftover.replace(leftover.split("-")[-2], str(os.getpid()))
    elsewhere = leftover.replace(".parquet.", ".parquet.other_host_")
    for name in (living, elsewhere, "shard-000001.parquet", ".hidden.tmp"):
        (tmp_path / name).write_bytes(b"")
    LocalFiles().remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([living, elsewhere, "shard-000001.parquet", ".hidden.tmp"])


def test_a_temporary_file_that_cannot_be_removed_does_not_hide_what_happened(tmp_path):
    publish(tmp_path / "a", b"data", Recorder("remove", OSError(errno.EIO, os.strerror(errno.EIO))))
    assert (tmp_path / "a").read_bytes() == b"data"


def test_equal_bytes_of_a_writer_that_died_are_made_durable(tmp_path):
    """It may have been killed between its link and its sync; a record that follows must not outlive the shard."""
    publish(tmp_path / "a", b"data")
    files = Recorder()
    publish(tmp_path / "a", b"data", files)
    assert files.calls == ["write_new", "link", "remove", "sync_folder"]
