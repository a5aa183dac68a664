"""What cannot be read now is told apart from what is damaged: a permission or a device is no file's fault."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tide_cache.errors import UnreadableError
from tide_cache.locations import CachePath

_PERMISSION = "Give this user the right to read it, and to enter every folder above it"
_DEVICE = "The disk or network file system failed: see what `dmesg` says of it"
_WAYS_OUT = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EIO: _DEVICE,
    errno.ESTALE: _DEVICE,
    errno.ETIMEDOUT: _DEVICE,
    errno.EMFILE: "Too many files are open: raise `ulimit -n`",
}
_OF_THE_FILE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.ENAMETOOLONG}
)
"""What a path is, or that there is none: for the reader to judge."""
_OF_A_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Some readers write: unpacked archives, caches."""


def cannot_be_read_now(path: CachePath | str, error: OSError) -> UnreadableError:
    """Make the error of a path that cannot be read now.

    Args:
        path: What was to be read.
        error: What the system said.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UnreadableError(
        f"{path}: cannot be read now: {reason} (errno {error.errno}). "
        f"{_WAYS_OUT.get(error.errno or 0, 'Mend the cause')}, then run the same command again; nothing says that "
        "it is damaged."
    )


@contextmanager
def told_apart(path: CachePath | str) -> Iterator[None]:
    """Turn faults of the machine, met while a library reads, into the error that says so; leave all others as they are.

    A library's own OSErrors have no errno: they say that a file is not what its name says.

    Args:
        path: What is read; where an error names a file inside it, that one is named.

    Raises:
        UnreadableError: In place of an OSError with the errno of a permission, a device or a server.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in _OF_THE_FILE | _OF_A_WRITE:
            raise
        is_inside = isinstance(error.filename, str) and Path(str(path)) in Path(error.filename).parents
        raise cannot_be_read_now(error.filename if is_inside else path, error) from error


def is_there(path: Path) -> bool:
    """Tell whether a path names something; `os.path.exists` says no where nobody may look.

    Args:
        path: A file or folder.

    Raises:
        UnreadableError: It cannot be known now.
    """
    with told_apart(path):
        try:
            os.stat(path)
        except OSError as error:
            if error.errno not in _OF_THE_FILE:
                raise
            return False
    return True


def everything_in(folder: Path) -> list[Path]:
    """List what is in a folder and in those below, sorted; `rglob` passes over what it may not enter.

    Args:
        folder: Links to other folders are listed, and not followed.

    Raises:
        UnreadableError: A folder cannot be listed now.
    """

    def refuse(error: OSError) -> None:
        raise error

    with told_apart(folder):
        found = os.walk(folder, onerror=refuse)
        return sorted(Path(where, name) for where, folders, files in found for name in [*folders, *files])


def require_readable(path: Path) -> None:
    """Read a file's first byte, for libraries that call whatever they cannot open missing or damaged.

    Args:
        path: A file; what is wrong with it otherwise is left to its reader.

    Raises:
        UnreadableError: It cannot be read now.
    """
    with told_apart(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.pread(descriptor, 1, 0)
        except OSError as error:
            if error.errno not in _OF_THE_FILE | {errno.ESPIPE}:
                raise
        finally:
            os.close(descriptor)
