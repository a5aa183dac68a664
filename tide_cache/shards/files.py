"""The few file operations that publishing and reading need, behind one seam.

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
    """In the place of a file lies a link, a folder, a pipe or a device."""


class Files(Protocol):
    """A place where files appear whole and durable, or not at all.

    What reads them raises FileNotFoundError, NotADirectoryError or NotPlainFileError for what lies there, and
    UnreadableError where that cannot be known now. The first are for callers to judge; the last is for the user.
    """

    def create(self, path: CachePath, data: bytes) -> None:
        """Put a file under a name that is free; a name that is taken keeps its file (FileExistsError)."""

    def replace(self, path: CachePath, data: bytes) -> None:
        """Put a file in the place of another: at every moment there is the one or the other, whole."""

    def remove(self, path: CachePath) -> None:
        """Remove a file if it is there."""

    def make_folder(self, folder: CachePath) -> None:
        """Create a folder and those above it, where they are missing and the place has folders."""

    def sync_folder(self, folder: CachePath) -> None:
        """Wait until the folder's entries are durable."""

    def remove_leftovers(self, folder: CachePath) -> None:
        """Remove what writers that died have left in a folder."""

    def size(self, path: CachePath) -> int:
        """Bytes of a file."""

    def read(self, path: CachePath, start: int, size: int) -> bytes:
        """Read a byte range; shorter only where the file ends."""

    def list_folder(self, folder: CachePath) -> list[str]:
        """Names in a folder, sorted; none where the folder is missing."""

    def prove_exclusive(self, path: CachePath) -> None:
        """Find out whether this place keeps the promise of `create`.

        Args:
            path: A file that is there and whose bytes never change; it stays as it is.

        Raises:
            RunFileError: It does not.
        """


class LocalFiles:
    """Files on a local or mounted file system.

    Bytes go to a temporary file in the same folder, are forced to the device, and get their final name by an
    exclusive link, so a crash at any moment leaves either no file or the whole file.
    """

    def create(self, path: CachePath, data: bytes) -> None:
        """Put a file under a name that is free; a name that is taken keeps its file (FileExistsError)."""
        with self._temporary(path, data) as temporary:
            self.link(temporary, path)
            self.sync_folder(path.parent)

    def replace(self, path: CachePath, data: bytes) -> None:
        """Put a file in the place of another: at every moment there is the one or the other, whole."""
        with self._temporary(path, data) as temporary:
            self.rename(temporary, path)
            self.sync_folder(path.parent)

    def write_new(self, path: CachePath, data: bytes) -> None:
        """Create a file that must not exist, write all of it, and wait until it is on the device."""
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
        """Rename a file at one stroke; an existing target is replaced."""
        os.replace(str(source), str(target))

    def sync_folder(self, folder: CachePath) -> None:
        """Wait until the folder's entries are on the device."""
        sync(folder)

    def make_folder(self, folder: CachePath) -> None:
        """Create a folder and those above it, where they are missing, each with a durable entry."""
        if not os.path.isdir(str(folder)):
            self.make_folder(folder.parent)
            with contextlib.suppress(FileExistsError):  # another worker was faster
                os.mkdir(str(folder))
            self.sync_folder(folder.parent)

    def remove(self, path: CachePath) -> None:
        """Remove a file if it is there."""
        Path(str(path)).unlink(missing_ok=True)

    def remove_leftovers(self, folder: CachePath) -> None:
        """Remove temporary files of writers of this host that are no longer running; others are left alone."""
        for name in self.list_folder(folder):
            host, _, process = name.removesuffix(_TEMPORARY_SUFFIX).rpartition("-")[0].rpartition("-")
            is_temporary = name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX) and process.isdigit()
            if is_temporary and host.endswith(f".{_host()}") and not _is_running(int(process)):
                self.remove(folder / name)

    def size(self, path: CachePath) -> int:
        """Bytes of a plain file; anything else is refused as `read` refuses it."""
        with reading(path), _opened(path) as descriptor:
            return os.fstat(descriptor).st_size

    def read(self, path: CachePath, start: int, size: int) -> bytes:
        """Read a byte range of a plain file; shorter only where the file ends.

        Raises:
            NotPlainFileError: It is a link, a pipe or a device: a cache ends at its own folder, and nothing in it may
                make a reader wait.
            UnreadableError: It cannot be read now.
        """
        with reading(path), _opened(path) as descriptor:
            parts = []
            while size > 0 and (part := os.pread(descriptor, size, start)):
                parts.append(part)
                start, size = start + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def list_folder(self, folder: CachePath) -> list[str]:
        """Names in a folder, sorted; none where the folder is missing."""
        with reading(folder):
            try:
                return sorted(os.listdir(str(folder)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def prove_exclusive(self, path: CachePath) -> None:
        """Do nothing: a link is exclusive on every file system that has links."""

    @contextmanager
    def _temporary(self, path: CachePath, data: bytes) -> Iterator[CachePath]:
        """A durable temporary file beside `path`, for the caller to give it its name."""
        writer = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
        temporary = path.parent / f".{path.name}.{writer}{_TEMPORARY_SUFFIX}"
        try:
            self.write_new(temporary, data)
            yield temporary
        finally:
            with contextlib.suppress(OSError):  # the error before it counts; the next build of this host clears it
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
    """Tell what cannot be read now from what is missing, or is no file.

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
    """Whether a file of this name is on its way to another one."""
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
    """Open a plain file without following a link in its place, and without waiting for the other end of a pipe."""
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
