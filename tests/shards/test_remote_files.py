"""An object store keeps the promises of a local file system: exclusive names, whole files, errors that name the URL."""

import errno
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from tide_cache.errors import RunFileError, TideCacheError
from tide_cache.locations import RemotePath, cache_path
from tide_cache.shards import LOCAL_FILES, FsspecFiles, LocalFiles, OtherBytesError, files_of, publish, replace_json

FILES = FsspecFiles()


@pytest.fixture
def root():
    root = cache_path("memory://bucket/caches/one")
    yield root
    fsspec.filesystem("memory").store.clear()


def test_a_path_or_a_url_decides(tmp_path, root):
    assert isinstance(files_of(root), FsspecFiles)
    assert files_of(tmp_path) is LOCAL_FILES
    assert files_of(cache_path(f"file://{tmp_path}")) is LOCAL_FILES


def test_a_name_is_given_once(root):
    publish(root / "a", b"data")
    publish(root / "a", b"data")
    with pytest.raises(OtherBytesError, match=r"memory://bucket/caches/one/a: already there with other bytes"):
        publish(root / "a", b"DATA")
    assert FILES.read(root / "a", 0, 100) == b"data"
    replace_json(root / "a", {})
    assert FILES.read(root / "a", 0, 100) == b"{}\n"


def test_what_is_read_is_what_a_local_file_gives(root, tmp_path):
    for files, folder in ((FILES, root), (LocalFiles(), tmp_path)):
        files.make_folder(folder / "signals")
        files.create(folder / "signals" / "b", b"0123456789")
        files.create(folder / "a", b"")
        assert files.size(folder / "signals" / "b") == 10
        assert [files.read(folder / "signals" / "b", *part) for part in ((0, 3), (8, 9), (10, 1), (4, 0))] == [
            b"012", b"89", b"", b"",
        ]  # fmt: skip
        assert files.read(folder / "a", 0, 5) == b""
        assert files.list_folder(folder) == ["a", "signals"]
        assert files.list_folder(folder / "signals") == ["b"]
        assert files.list_folder(folder / "missing") == []
        files.remove(folder / "a")
        files.remove(folder / "a")
        assert files.list_folder(folder) == ["signals"]
        with pytest.raises(FileNotFoundError) as caught:
            files.size(folder / "missing")
        assert caught.value.filename == str(folder / "missing")


def test_a_put_that_was_sent_twice_counts_once(root, monkeypatch):
    """A store may take a put, lose the answer, and refuse the repetition with an error of its own."""
    put = MemoryFileSystem.pipe_file

    def repeated(self, path, value, mode="overwrite", **options):
        put(self, path, value, mode=mode)
        raise RuntimeError("PreconditionFailed")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", repeated)
    publish(root / "a", b"data")
    assert FILES.read(root / "a", 0, 100) == b"data"


def test_an_error_of_a_store_names_the_url_and_the_reason(root, monkeypatch):
    def refuse(self, path, value, mode="overwrite", **options):
        raise RuntimeError("AccessDenied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(TideCacheError) as caught:
        publish(root / "a", b"data")
    expected = f"{root}/a: cannot be written: RuntimeError: AccessDenied (errno {errno.EIO}); nothing was published."
    assert str(caught.value).startswith(expected)


def test_a_store_without_exclusive_puts_is_refused(root, monkeypatch):
    monkeypatch.setattr(
        fsspec.core, "url_to_fs", lambda url, **options: (DirFileSystem("/x", fs=MemoryFileSystem()), "a")
    )
    with pytest.raises(RunFileError, match=r"DirFileSystem cannot refuse to overwrite(?s:.*)local folder"):
        publish(root / "a", b"data")


@pytest.mark.parametrize("url", ["nonsense://bucket/cache", "oci://bucket/cache"])
def test_an_unknown_or_uninstalled_protocol_is_refused_with_what_to_install(url):
    with pytest.raises(RunFileError, match=rf"{url}/plan.json: cannot be opened(?s:.*)Install fsspec's package"):
        FILES.size(cache_path(url) / "plan.json")


def test_urls_are_joined_and_taken_apart_as_paths_are():
    url = cache_path("S3://bucket/cache/")
    assert isinstance(url, RemotePath)
    shard = url / "pairs" / "shard-000000.parquet"
    assert str(shard) == "s3://bucket/cache/pairs/shard-000000.parquet"
    assert (shard.name, str(shard.with_suffix(".json").name)) == ("shard-000000.parquet", "shard-000000.json")
    assert shard.parent.parent == url
    assert hash(shard.parent.parent) == hash(url)
    assert shard.relative_to(url).as_posix() == "pairs/shard-000000.parquet"
    assert str(cache_path("memory://") / "cache") == "memory://cache"
    assert cache_path("/data/cache") == cache_path("file:///data/cache") == Path("/data/cache")
    assert repr(url) == "RemotePath('s3://bucket/cache')"
