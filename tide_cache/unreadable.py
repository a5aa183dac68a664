"""Distinguish what cannot be read now from what is damaged: a permission or a device is not the file's fault."""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tide_cache.errors import TideCacheError, UnreadableError

_PERMISSION = "Give this user permission to read it and to enter every folder above it"
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
"""Codes about what a path is, or that it does not exist; left to the reader."""
_OF_A_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Some readers also write: unpacked archives, caches."""
_OF_NETWORKS_TOO = frozenset({errno.EACCES, errno.EPERM, errno.ETIMEDOUT})
"""Codes that a connection may also raise, without a file name."""
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def errno_of(error: BaseException) -> int | None:
    """Return the errno of a refused system call, also where a Rust library reports it; None for other errors."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _RUST_ERROR.search(str(error))
    return int(found[1]) if found else None


def way_out(code: int | None) -> str | None:
    """Return what helps against an errno that is not the file's fault; None for others."""
    return _WAYS_OUT.get(code or 0)


def cannot_be_read_now(path: object, error: OSError) -> UnreadableError:
    """Make the error for a path that cannot be read now.

    Args:
        path: What was to be read; named as `str` writes it.
        error: What the system said.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UnreadableError(
        f"{path}: cannot be read now: {reason} (errno {error.errno}). "
        f"{_WAYS_OUT.get(error.errno or 0, 'Fix the cause')}, then run the same command again; nothing says that "
        "it is damaged."
    )


@contextmanager
def told_apart(path: object) -> Iterator[None]:
    """Turn machine faults that occur while a library reads into `UnreadableError`; leave other errors unchanged.

    A library's own errors have no errno: they say that a file is not what its name says, unless a fault of the machine
    led to them.

    Args:
        path: What is read; where an error names a file inside it, that one is named.

    Raises:
        UnreadableError: In place of an error with the errno of a permission, a device or a server.
    """
    try:
        yield
    except TideCacheError:
        raise
    except Exception as error:
        if (fault := fault_of_the_machine(error)) is None:
            raise
        is_inside = isinstance(fault.filename, str) and Path(str(path)) in Path(fault.filename).parents
        raise cannot_be_read_now(fault.filename if is_inside else path, fault) from error


def fault_of_the_machine(error: Exception) -> OSError | None:
    """Return the permission, device or server that an error is about, or that led to it; None where there is none.

    Args:
        error: Of the system, or of a library that reads.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return None if error.errno in _OF_THE_FILE | _OF_A_WRITE else error
    for one in chain_of(error):
        code = errno_of(one)
        is_of_a_network = isinstance(one, OSError) and one.filename is None and code in _OF_NETWORKS_TOO
        if code in _WAYS_OUT and code is not None and not is_of_a_network:
            return one if isinstance(one, OSError) and one.errno else OSError(code, os.strerror(code))
    return None


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_there(path: Path) -> bool:
    """Return whether a path exists; `os.path.exists` says no where permission is missing.

    Args:
        path: A file or folder.

    Raises:
        UnreadableError: It cannot be determined now.
    """
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Return whether a path names a plain file, as `is_there` does."""
    return stat.S_ISREG(_mode(path) or 0)


def is_folder(path: Path) -> bool:
    """Return whether a path names a folder, as `is_there` does."""
    return stat.S_ISDIR(_mode(path) or 0)


def _mode(path: Path) -> int | None:
    with told_apart(path):
        try:
            return os.stat(path).st_mode
        except OSError as error:
            if error.errno not in _OF_THE_FILE:
                raise
            return None


def everything_in(folder: Path) -> list[Path]:
    """List what is in a folder and its subfolders, sorted; `rglob` skips what it may not enter.

    Args:
        folder: Links to other folders are listed but not followed.

    Raises:
        UnreadableError: A folder cannot be listed now.
    """

    def refuse(error: OSError) -> None:
        raise error

    with told_apart(folder):
        found = os.walk(folder, onerror=refuse)
        return sorted(Path(where, name) for where, folders, files in found for name in [*folders, *files])


def names_in(folder: Path) -> list[str]:
    """List the names in a folder, sorted; none where there is no folder. `glob` skips what it may not list.

    Args:
        folder: Its subfolders are not searched.

    Raises:
        UnreadableError: It cannot be listed now.
    """
    with told_apart(folder):
        return sorted(os.listdir(folder)) if is_folder(folder) else []


def require_all_readable(folder: Path, names: Iterable[str]) -> None:
    """Read the first byte of each named file that exists in a folder, as `require_readable` does.

    Args:
        folder: Where they lie.
        names: Which.

    Raises:
        UnreadableError: One cannot be read now.
    """
    for name in names:
        if is_file(folder / name):
            require_readable(folder / name)


def require_readable(path: Path) -> None:
    """Read a file's first byte, for libraries that report any file they cannot open as missing or damaged.

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
