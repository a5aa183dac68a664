"""Files of an object store, through fsspec: one conditional put is a whole publication.

An object appears at once and complete, so there is neither a temporary file nor a rename; only the put must be
exclusive. Stores that offer this (S3, Google Cloud Storage, Azure) are used; others are refused before anything is
written.
"""

import errno
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.spec import AbstractFileSystem

from tide_cache.errors import RunFileError, UnreadableError
from tide_cache.locations import HUB, CachePath
from tide_cache.shards.files import LOCAL_FILES, Files
from tide_cache.shards.store_faults import (
    CONNECT_S,
    SAME_STORE,
    SILENCE_S,
    explained,
    is_refused,
    may_pass,
    persistently,
)

SINGLE_WRITER = "TIDE_CACHE_SINGLE_WRITER"
"""Variable by which a user promises that only one build at a time writes into a folder."""


class FsspecFiles:
    """Files by URL; credentials, endpoints and other options come from fsspec's configuration."""

    def create(self, path: CachePath, data: bytes) -> None:
        """Write an object under a free name; a taken name keeps its object (FileExistsError)."""
        system, name = _open(path)
        with _writing(path):
            if _has_single_writer():
                if _total(system, name) is not None:
                    raise FileExistsError(errno.EEXIST, "already there", str(path))
                _ask(system, "pipe_file", name, data, num_bytes=len(data))
                return
            if not _creates_exclusively(system):
                raise RunFileError(
                    f"{path}: fsspec's {type(system).__name__} cannot refuse to overwrite, so two writers could mix.\n"
                    f"{_WITHOUT_CONDITION}"
                )
            try:
                _ask(system, "pipe_file", name, data, mode="create", num_bytes=len(data))
            except Exception as error:
                # Stores refuse in different ways, and a put that was sent twice is refused the second time.
                if not is_refused(error) and not may_pass(error) and _is_there(system, name):
                    raise FileExistsError(errno.EEXIST, "already there", str(path)) from error
                raise

    def prove_exclusive(self, path: CachePath) -> None:
        """Write an object a second time under its own name: a store that accepts it would let two writers mix."""
        if _has_single_writer():
            return
        data = self.read(path, 0, self.size(path))
        try:
            self.create(path, data)
        except FileExistsError:
            return
        raise RunFileError(
            f"{path}: the store ignores conditional writes: it took a second put of a name that was taken, so two "
            f"writers could mix.\n{_WITHOUT_CONDITION}"
        )

    def replace(self, path: CachePath, data: bytes) -> None:
        """Replace an object."""
        with _writing(path):
            system, name = _open(path)
            _ask(system, "pipe_file", name, data, num_bytes=len(data))

    def remove(self, path: CachePath) -> None:
        """Remove an object if it exists."""
        with _writing(path):
            system, name = _open(path)
            if _total(system, name) is not None:
                _ask(system, "rm_file", name)

    def make_folder(self, folder: CachePath) -> None:
        """Do nothing: object stores have no folders."""

    def sync_folder(self, folder: CachePath) -> None:
        """Do nothing: a put returns when the object is durable."""

    def remove_leftovers(self, folder: CachePath) -> None:
        """Do nothing: a put that was cut off leaves no object."""

    def size(self, path: CachePath) -> int:
        """Return the bytes of an object."""
        with _reading(path):
            system, name = _open(path)
            total = _total(system, name)
            if total is None:
                raise FileNotFoundError(errno.ENOENT, "No such object", str(path))
            return total

    def read(self, path: CachePath, start: int, size: int) -> bytes:
        """Return a byte range; shorter only at the end of the object.

        Raises:
            UnreadableError: The store does not return it now, or returns another range.
        """
        if size <= 0:
            return b""
        with _reading(path):
            system, name = _open(path)
            try:
                found = bytes(_ask(system, "cat_file", name, start=start, end=start + size, num_bytes=size))
            except Exception as error:  # some stores refuse a range that starts at or after the end
                is_other = isinstance(error, FileNotFoundError) or is_refused(error) or may_pass(error)
                if is_other or start < (_total(system, name) or 0):
                    raise
                return b""
            total = start + size if len(found) == size else _total(system, name) or 0
        expected = max(0, min(size, total - start))
        if len(found) == expected:
            return found
        wrong = f"asked for {expected} bytes from byte {start}, got {len(found)}"
        if len(found) > expected:
            wrong += (
                ": the server ignores ranges (the HTTP header Range); take another one, or copy the cache to a folder"
            )
        raise UnreadableError(f"{path}: cannot be read now: {wrong}.\n{_TRY_AGAIN}")

    def list_folder(self, folder: CachePath) -> list[str]:
        """Return the names below a prefix, sorted; none if there are none."""
        with _reading(folder):
            system, name = _open(folder)
            try:
                found = _ask(system, "ls", name, detail=False)
            except FileNotFoundError:
                return []
            return sorted({entry.rstrip("/").rpartition("/")[2] for entry in found} - {""})


FSSPEC_FILES = FsspecFiles()


def reads_at_once(path: CachePath) -> int:
    """Return how many small files to ask for at once: a store takes milliseconds to answer, however many wait."""
    return 1 if isinstance(path, Path) else 16


def files_of(path: CachePath) -> Files:
    """Return the interface that reads and writes the files of a cache."""
    if isinstance(path, Path):
        return LOCAL_FILES
    if path.protocol == HUB:
        from tide_cache.shards.hub_files import HUB_FILES  # the hub's library takes half a second to import

        return HUB_FILES
    return FSSPEC_FILES


_TRY_AGAIN = "Fix that, then run the same command again; nothing says that it is damaged."
_WITHOUT_CONDITION = (
    "Build into a local folder and copy it there, or use a store with conditional writes (s3, gs, az). If nothing else "
    f"ever writes there while this command runs, say so with {SINGLE_WRITER}=1."
)


def _has_single_writer() -> bool:
    return os.environ.get(SINGLE_WRITER, "") not in {"", "0"}


def _open(path: CachePath) -> tuple[AbstractFileSystem, str]:
    """Open the file system of a URL; listings are never cached, since there may be other writers."""
    protocol = _protocol(path)
    options: dict[str, Any] = {}
    if SAME_STORE.get(protocol, protocol) == "s3":  # its own time limits are a minute each, with five repetitions
        ours = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S, "retries": {"max_attempts": 0}}
        theirs = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        options["config_kwargs"] = {**ours, **theirs}
    try:
        system, name = fsspec.core.url_to_fs(str(path), use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise RunFileError(
            f"{path}: cannot be opened: {error}.\n"
            "Install fsspec's package for this kind of URL (s3fs for s3://, gcsfs for gs://), or give a folder."
        ) from None
    if options:
        system.retries = 1  # this module repeats requests itself; with these options no one else shares the instance
    return system, name


def _ask(system: AbstractFileSystem, method: str, *arguments: Any, num_bytes: int = 0, **options: Any) -> Any:
    """Call a method of a file system; repeat it if that may help, and never wait for ever.

    Args:
        system: File system of the URL.
        method: Its name.
        arguments: Positional arguments.
        num_bytes: Number of bytes that it sends or receives.
        options: Keyword arguments.
    """
    if isinstance(system, AsyncFileSystem) and not system.asynchronous:
        coroutine = getattr(system, f"_{method}")
        return persistently(lambda s: sync(system.loop, coroutine, *arguments, timeout=s, **options), num_bytes)
    call = getattr(system, method)
    return persistently(lambda s: call(*arguments, **options), num_bytes)


def _total(system: AbstractFileSystem, name: str) -> int | None:
    """Return the bytes of an object; None if there is none."""
    try:
        info = _ask(system, "info", name)
    except FileNotFoundError:
        return None
    return int(info["size"]) if info["type"] == "file" else None


def _is_there(system: AbstractFileSystem, name: str) -> bool:
    """Return whether there is an object, as far as can be known; an error here must not hide an earlier one."""
    try:
        return _total(system, name) is not None
    except Exception:
        return False


def _creates_exclusively(system: AbstractFileSystem) -> bool:
    """Return whether a file system's put knows `mode`; fsspec's generic one checks first and then puts."""
    own: Any = getattr(type(system), "_pipe_file", None) or type(system).pipe_file
    return own is not AbstractFileSystem.pipe_file and "mode" in inspect.signature(own).parameters


@contextmanager
def _reading(path: CachePath) -> Iterator[None]:
    """Raise `UnreadableError` for what a store does not return now, as opposed to what does not exist."""
    try:
        yield
    except (RunFileError, UnreadableError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise type(error)(error.errno or errno.ENOENT, error.strerror or str(error), str(path)) from error
    except Exception as error:
        raise UnreadableError(
            f"{path}: cannot be read now: {explained(error, _protocol(path))}.\n{_TRY_AGAIN}"
        ) from error


@contextmanager
def _writing(path: CachePath) -> Iterator[None]:
    """Turn an error of a store's library into an `OSError` with the store's reason."""
    try:
        yield
    except (RunFileError, UnreadableError, FileExistsError):
        raise
    except Exception as error:
        is_denied = is_refused(error)
        usual = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        code = errno.EACCES if is_denied else (error.errno if isinstance(error, OSError) else None) or usual
        raise OSError(code, explained(error, _protocol(path)), str(path)) from error


def _protocol(path: CachePath) -> str:
    return str(path).partition("://")[0]
