"""Disks that are full or refuse a write: check for room before the work, and name path, bytes and reason in errors.

Files are written by many libraries, and each says in its own way that a disk is full: an `OSError` without a file
name, a `SafetensorError`, a bare `Exception`. `writing` turns them all into one error.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tide_cache.errors import TideCacheError, UnreadableError, WriteError
from tide_cache.locations import CachePath
from tide_cache.unreadable import cannot_be_read_now, errno_of, is_folder, way_out
from tide_cache.wording import size

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Codes for no room: on the disk, in the quota, or for one file."""
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_WAY_OUT = "Fix the cause (free space, quota, permissions) and run the same command again."
_TEXTS = {os.strerror(code): code for code in FULL | {errno.EROFS}}


def refusal_code(error: BaseException) -> int | None:
    """Return the errno with which the file system refused something, whichever library raised it; None for others."""
    if (code := errno_of(error)) is not None:
        return code
    return next((code for text, code in _TEXTS.items() if text in str(error)), None)


def free_bytes(path: CachePath) -> int | None:
    """Return the free space where a path is or will be; None where it is unknown, as in an object store."""
    if not isinstance(path, Path):
        return None
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    with suppress(OSError):
        usage = shutil.disk_usage(there)
        return usage.free if usage.total else None  # some mounted stores say 0 of 0
    return None


def require_room(path: CachePath, needed: float, what: str, way_out: str = "") -> None:
    """Refuse to begin work that will not fit on the disk.

    Args:
        path: Where it will be written.
        needed: Bytes.
        what: What takes them, for example `the model`.
        way_out: A sentence on what helps besides freeing space.

    Raises:
        WriteError: There is less free space.
    """
    free = free_bytes(path)
    if free is not None and needed > free:
        raise WriteError(
            f"{path}: found {size(free)} free, {what} takes {size(needed)}. Nothing was written.\n"
            f"Free space there, or use a folder on a larger disk. {way_out}".rstrip()
        )


def refused(path: CachePath | str, error: BaseException, *, needed: float | None = None, kept: str = "") -> WriteError:
    """Make the error for a path that could not be written.

    Args:
        path: What was to be written; a text where it is no path.
        error: What a library raised; `refusal_code` knows it.
        needed: Bytes that were to be written, where that is known.
        kept: What remains of the work; a sentence without its full stop.
    """
    code = refusal_code(error)
    reason = os.strerror(code) if code is not None and (code in FULL or not _says_more(error)) else _words(error)
    found = ""
    if code in FULL and (free := None if isinstance(path, str) else free_bytes(path)) is not None:
        found = f"; found {size(free)} free there" + (f", {size(needed)} are needed" if needed is not None else "")
    state = f"; {kept}" if kept else ""
    return WriteError(f"{path}: cannot be written: {reason} (errno {code}){found}{state}.\n{_WAY_OUT}")


def told_refusal(error: Exception) -> str | None:
    """Return a message for a refused write that nothing nearer to the file has reported; None for other errors.

    Args:
        error: What came all the way up.
    """
    code = refusal_code(error)
    name = error.filename if isinstance(error, OSError) else None
    if isinstance(error, BrokenPipeError) or (name is None and code not in FULL | {errno.EROFS}):
        return None
    if name is None:
        places = {"the current folder": Path.cwd(), "that of temporary files": Path(tempfile.gettempdir())}
        free = ", ".join(f"{size(free_bytes(path) or 0)} in {what} ({path})" for what, path in places.items())
        return f"a file could not be written: {_words(error)}; found free: {free}.\n{_WAY_OUT}"
    path = Path(str(name))
    if code in FULL | {errno.EROFS} or (code in FORBIDDEN and _was_written(path)):
        return str(refused(path, error))
    if (helps := way_out(code)) is not None:
        return f"{name}: cannot be read now: {_words(error)} (errno {code}). {helps}, then run the same command again."
    return f"{name}: {_words(error)}; check the path"


def _was_written(path: Path) -> bool:
    """Return whether the missing permission was one to write."""
    with suppress(TideCacheError, OSError):
        if path.exists():
            return os.access(path, os.R_OK, effective_ids=True)
        return is_folder(path.parent)
    return False


def _says_more(error: BaseException) -> bool:
    """Return whether the error has its own text for its number: those of object stores do."""
    return isinstance(error, OSError) and error.errno is not None and error.strerror != os.strerror(error.errno)


def _words(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def writing(path: CachePath | str, *, needed: float | None = None, kept: str = "") -> Iterator[None]:
    """Make every write that fails in the `with` block name a path and the bytes.

    Args:
        path: What is written; where an error names a file inside it, that one is named.
        needed: As for `refused`.
        kept: As for `refused`.

    Raises:
        WriteError: Instead of what the file system, or a library that writes, raised.
        UnreadableError: What was to be copied cannot be read now.
    """
    try:
        yield
    except (BrokenPipeError, TideCacheError):
        raise
    except Exception as error:
        if not isinstance(error, OSError) and refusal_code(error) is None:
            raise
        if (unread := _read_elsewhere(path, error)) is not None:
            raise unread from error
        raise refused(_named(path, error), error, needed=needed, kept=kept) from error


def _read_elsewhere(path: CachePath | str, error: Exception) -> UnreadableError | None:
    """Make the error for a file that could not be read while it was being copied."""
    if not isinstance(error, OSError) or error.errno not in FORBIDDEN or not isinstance(error.filename, str):
        return None
    if "://" in error.filename:  # a store's error, which a separate class reads
        return None
    named = Path(error.filename)
    is_target = isinstance(path, Path) and (named == path or path in named.parents)
    return None if is_target or _was_written(named) else cannot_be_read_now(named, error)


def _named(path: CachePath | str, error: Exception) -> CachePath | str:
    """Return the file inside a folder that an error names; a temporary name is not shown."""
    named = getattr(error, "filename", None)
    if isinstance(named, str) and isinstance(path, Path) and path in Path(named).parents:
        return Path(named)
    return path


@contextmanager
def new_folder(folder: Path, *, needed: float | None = None) -> Iterator[None]:
    """Write into a folder; where the `with` block fails and it was not there before, nothing of it is left behind.

    Args:
        folder: Made if missing, with those above it.
        needed: As for `refused`.

    Raises:
        WriteError: As for `writing`.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        with writing(folder, needed=needed):
            folder.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made[1:]:
            with suppress(OSError):  # others may have added files meanwhile
                parent.rmdir()
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to a file; at the end of the `with` block it replaces the file.

    Raises:
        WriteError: As for `writing`; the old file, if any, is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        WriteError: As for `whole_file`.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def second_places(path: Path, needed: float) -> Sequence[Path]:
    """List folders on other disks (temporary, current, home) that have room for what did not fit.

    Args:
        path: What could not be written.
        needed: Bytes.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    taken, found = {there.stat().st_dev}, []
    for folder in (Path(tempfile.gettempdir()), Path.cwd(), Path.home()):
        with suppress(OSError):
            device = folder.stat().st_dev
            if device not in taken and os.access(folder, os.W_OK) and (free_bytes(folder) or 0) > needed:
                found.append(folder)
                taken.add(device)
    return found
