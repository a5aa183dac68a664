"""Files of an object store, through fsspec: one conditional put is a whole publication.

An object appears at once and whole, so there is neither a temporary file nor a rename; what has to be exclusive is the
put. Stores that offer that (S3, Google Cloud Storage, Azure) are taken, others are refused before anything is written.
"""

import errno
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from tide_cache.errors import RunFileError
from tide_cache.locations import CachePath
from tide_cache.shards.files import LOCAL_FILES, Files


class FsspecFiles:
    """Files by URL; credentials, endpoints and other options are those that fsspec is configured with."""

    def create(self, path: CachePath, data: bytes) -> None:
        """Put an object under a name that is free; a name that is taken keeps its object (FileExistsError)."""
        system, name = _open(path)
        if not _creates_exclusively(system):
            raise RunFileError(
                f"{path}: fsspec's {type(system).__name__} cannot refuse to overwrite, so two writers could mix.\n"
                "Build into a local folder and copy it there, or use a store with conditional writes (s3, gs, az)."
            )
        with _as_os_errors(path):
            try:
                system.pipe_file(name, data, mode="create")
            except Exception as error:
                # Stores name the refusal differently, and a put that was sent twice is refused the second time.
                if system.exists(name):
                    raise FileExistsError(errno.EEXIST, "already there", str(path)) from error
                raise

    def replace(self, path: CachePath, data: bytes) -> None:
        """Put an object in the place of another."""
        with _as_os_errors(path):
            system, name = _open(path)
            system.pipe_file(name, data)

    def remove(self, path: CachePath) -> None:
        """Remove an object if it is there."""
        with _as_os_errors(path):
            system, name = _open(path)
            if system.exists(name):
                system.rm_file(name)

    def make_folder(self, folder: CachePath) -> None:
        """Do nothing: object stores have no folders."""

    def sync_folder(self, folder: CachePath) -> None:
        """Do nothing: a put returns when the object is durable."""

    def remove_leftovers(self, folder: CachePath) -> None:
        """Do nothing: a put that was cut off leaves no object."""

    def size(self, path: CachePath) -> int:
        """Bytes of an object."""
        with _as_os_errors(path):
            system, name = _open(path)
            info = system.info(name)
            if info["type"] != "file":
                raise FileNotFoundError(errno.ENOENT, "No such object", str(path))
            return int(info["size"])

    def read(self, path: CachePath, start: int, size: int) -> bytes:
        """Read a byte range; shorter only where the object ends."""
        with _as_os_errors(path):
            system, name = _open(path)
            try:
                return bytes(system.cat_file(name, start=start, end=start + size)) if size > 0 else b""
            except Exception:  # some stores refuse a range that begins at or after the end
                if start < int(system.info(name)["size"]):
                    raise
                return b""

    def list_folder(self, folder: CachePath) -> list[str]:
        """Names below a prefix, sorted; none where there are none."""
        with _as_os_errors(folder):
            system, name = _open(folder)
            try:
                found = system.ls(name, detail=False)
            except FileNotFoundError:
                return []
            return sorted({entry.rstrip("/").rpartition("/")[2] for entry in found} - {""})


FSSPEC_FILES = FsspecFiles()


def files_of(path: CachePath) -> Files:
    """Give what reads and writes the files of a cache."""
    return LOCAL_FILES if isinstance(path, Path) else FSSPEC_FILES


def _open(path: CachePath) -> tuple[AbstractFileSystem, str]:
    """Open the file system of a URL; listings are never cached, since other writers are at work."""
    try:
        system, name = fsspec.core.url_to_fs(str(path), use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise RunFileError(
            f"{path}: cannot be opened: {error}.\n"
            "Install fsspec's package for this kind of URL (s3fs for s3://, gcsfs for gs://), or give a folder."
        ) from None
    return system, name


def _creates_exclusively(system: AbstractFileSystem) -> bool:
    """Whether a file system has a put of its own that knows `mode`; fsspec's general one looks first and then puts."""
    own: Any = getattr(type(system), "_pipe_file", None) or type(system).pipe_file
    return own is not AbstractFileSystem.pipe_file and "mode" in inspect.signature(own).parameters


@contextmanager
def _as_os_errors(path: CachePath) -> Iterator[None]:
    """Stores raise errors of their own libraries; for callers they are errors of input and output."""
    try:
        yield
    except (OSError, RunFileError) as error:
        if isinstance(error, OSError) and error.filename is None:
            code = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO)
            raise type(error)(code, error.strerror or str(error), str(path)) from error
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", str(path)) from error
