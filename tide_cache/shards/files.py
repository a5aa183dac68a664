"""The few file operations that publishing and reading need, behind one interface.

`LocalFiles` is for local and mounted file systems, `FsspecFiles` for object stores; `files_of` chooses. Tests of
crashes and full disks replace parts of `LocalFiles`; nothing else in the format code touches a file system.
"""

import contextlib
import errno
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tide_cache.locations import CachePath
from tide_cache.shards.exclusive_rename import rename_exclusively
from tide_cache.unreadable import cannot_be_read_now

_TEMPORARY_SUFFIX = ".tmp"
_WITHOUT_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NOT_PLAIN = {errno.ELOOP: "is a symbolic link, expected a plain file", errno.ENXIO: "is not a plain file"}


class NotPlainFileError(OSError):
    """There is a link, a folder, a pipe or a device in place of a file."""


class Files(Protocol):
    """A place where files appear complete and durable, or not at all.

    Reading raises FileNotFoundError, NotADirectoryError or NotPlainFileError for what is found, and UnreadableError if
    that cannot be known now. Callers decide about the first three; the last one is for the user.
    """

    def create(self, path: CachePath, data: bytes) -> None:
        """Write a file under a free name; a taken name keeps its file (FileExistsError)."""

    def replace(self, path: CachePath, data: bytes) -> None:
        """Replace a file: at every moment there is either the old or the new one, complete."""

    def remove(self, path: CachePath) -> None:
        """Remove a file if it exists."""

    def make_folder(self, folder: CachePath) -> None:
        """Create a folder and its missing parents, if the place has folders."""

    def sync_folder(self, folder: CachePath) -> None:
        """Wait until the folder's entries are durable."""

    def remove_leftovers(self, folder: CachePath) -> None:
        """Remove what dead writers have left in a folder."""

    def size(self, path: CachePath) -> int:
        """Return the bytes of a file."""

    def read(self, path: CachePath, start: int, size: int) -> bytes:
        """Return a byte range; shorter only at the end of the file."""

    def list_folder(self, folder: CachePath) -> list[str]:
        """Return the names in a folder, sorted; none if the folder is missing."""

    def prove_exclusive(self, path: CachePath) -> None:
        """Check that this place keeps the promise of `create`.

        Args:
            path: An existing file whose bytes never change; it is left as it is.

        Raises:
            RunFileError: It does not.
        """


class LocalFiles:
    """Files on a local or mounted file system.

    Bytes go to a temporary file in the same folder, are forced to the device, and get their final name by an
    exclusive link, so a crash at any moment leaves either no file or the whole file.
    """

    def create(self, path: CachePath, data: bytes) -> None:
        """Write a file under a free name; a taken name keeps its file (FileExistsError)."""
        with self._temporary(path, data) as temporary:
            self.link(temporary, path)
            self.sync_folder(path.parent)

    def replace(self, path: CachePath, data: bytes) -> None:
        """Replace a file: at every moment there is either the old or the new one, complete."""
        with self._temporary(path, data) as temporary:
            self.rename(temporary, path)
            self.sync_folder(path.parent)

    def write_new(self, path: CachePath, data: bytes) -> None:
        """Create a file that must not exist, write it, and wait until it is on the device."""
        with open(str(path), "xb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())

    def link(self, source: CachePath, target: CachePath) -> None:
        """Give a file its final name; an existing target is never replaced (FileExistsError).

        File systems without hard links (exFAT, FAT, some of FUSE) get an exclusive rename in place of the link.
        """
        try:
            os.link(str(source), str(target))
        except OSError as error:
            if error.errno not in _WITHOUT_LINKS:
                raise
            rename_exclusively(source, target)

    def rename(self, source: CachePath, target: CachePath) -> None:
        """Rename a file atomically; an existing target is replaced."""
        os.replace(str(source), str(target))

    def sync_folder(self, folder: CachePath) -> None:
        """Wait until the folder's entries are on the device."""
        sync(folder)

    def make_folder(self, folder: CachePath) -> None:
        """Create a folder and its missing parents, each with a durable entry."""
        if not os.path.isdir(str(folder)):
            self.make_folder(folder.parent)
            with contextlib.suppress(FileExistsError):  # another worker was faster
                os.mkdir(str(folder))
            self.sync_folder(folder.parent)

    def remove(self, path: CachePath) -> None:
        """Remove a file if it exists."""
        Path(str(path)).unlink(missing_ok=True)

    def remove_leftovers(self, folder: CachePath) -> None:
        """Remove temporary files of writers of this host that are no longer running; others are left alone."""
        for name in self.list_folder(folder):
            host, _, process = name.removesuffix(_TEMPORARY_SUFFIX).rpartition("-")[0].rpartition("-")
            is_temporary = name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX) and process.isdigit()
            if is_temporary and host.endswith(f".{_host()}") and not _is_running(int(process)):
                self.remove(folder / name)

    def size(self, path: CachePath) -> int:
        """Return the bytes of a plain file; anything else is refused as in `read`."""
        with reading(path), _opened(path) as descriptor:
            return os.fstat(descriptor).st_size

    def read(self, path: CachePath, start: int, size: int) -> bytes:
        """Return a byte range of a plain file; shorter only at the end of the file.

        Raises:
            NotPlainFileError: It is a link, a pipe or a device: a cache lies within its folder, and nothing in it may
                block a reader.
            UnreadableError: It cannot be read now.
        """
        with reading(path), _opened(path) as descriptor:
            parts = []
            while size > 0 and (part := os.pread(descriptor, size, start)):
                parts.append(part)
                start, size = start + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def list_folder(self, folder: CachePath) -> list[str]:
        """Return the names in a folder, sorted; none if the folder is missing."""
        with reading(folder):
            try:
                return sorted(os.listdir(str(folder)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def prove_exclusive(self, path: CachePath) -> None:
        """Do nothing: a link is exclusive on every file system that has links."""

    @contextmanager
    def _temporary(self, path: CachePath, data: bytes) -> Iterator[CachePath]:
        """Yield a durable temporary file next to `path`, for the caller to rename."""
        writer = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
        temporary = path.parent / f".{path.name}.{writer}{_TEMPORARY_SUFFIX}"
        try:
            self.write_new(temporary, data)
            yield temporary
        finally:
            with contextlib.suppress(OSError):  # the first error matters; the next build on this host removes the file
                self.remove(temporary)


def sync(path: CachePath) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the device."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: CachePath) -> Iterator[None]:
    """Raise `UnreadableError` for what cannot be read now, as opposed to what is missing or not a file.

    Raises:
        UnreadableError: In place of any other OSError.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, NotPlainFileError):
        raise
    except OSError as error:
        raise cannot_be_read_now(path, error) from error


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is temporary."""
    return name.endswith(_TEMPORARY_SUFFIX)


def _host() -> str:
    return "".join(character if character.isalnum() else "_" for character in socket.gethostname())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _opened(path: CachePath) -> Iterator[int]:
    """Open a plain file, without following a link and without waiting for the other end of a pipe."""
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if (code := error.errno or 0) in _NOT_PLAIN:
            raise NotPlainFileError(code, _NOT_PLAIN[code], str(path)) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotPlainFileError(errno.EINVAL, "is not a plain file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


LOCAL_FILES = LocalFiles()
