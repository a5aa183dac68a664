"""Decoded row groups on a local disk: what has been read and checked once is mapped into memory afterwards.

A file holds a table of `READY`: one view of the samples of a row group. Its name is a hash of the footers of its
shards, which hold the hash of every row group, of its place there, and of what it is made ready for: another cache
never gets it. A file is read again before it gets its name. Later only its size and its head are checked.

    "TIDEHOT1" | bytes of the head, 4, little-endian | sha256 of the head | head, JSON | arrays, at multiples of 64

Log-probs that float16 holds exactly are stored as such, and stay so: a batch widens what it takes.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tide_cache.errors import RunFileError
from tide_cache.loading.ready_views import ReadyColumn, ReadyColumns
from tide_cache.progress import tell
from tide_cache.shards import Array, Ragged

VERSION = 2
MARKER = "hot-cache.json"
MAGIC = b"TIDEHOT1"
SUFFIX, TEMPORARY = ".hot", ".tmp"
_ALIGNMENT = 64
_BEGIN = len(MAGIC) + 4 + 32


class HotCache:
    """A folder of decoded row groups, shared by the processes of a machine; nothing is lost with it."""

    def __init__(self, folder: Path, most_bytes: int):
        """Take a folder that `hot_cache_faults` accepts; it is created with the first file.

        Args:
            folder: On a local disk.
            most_bytes: Of all files. Those that this process has not used are removed first; then nothing is added.
        """
        self._folder, self._most_bytes = folder, most_bytes
        self._started_s = time.time()
        self._is_open = True
        self._bytes = sum(size for _, size, _ in self._files())

    def get(self, content: str, read: Callable[[], ReadyColumns]) -> ReadyColumns:
        """Return a table, and keep it when it was not there.

        Args:
            content: Says which table it is; it has hashes of all that determines it.
            read: Reads and checks it.
        """
        name = hashlib.sha256(content.encode()).hexdigest()
        path = self._folder / name[:2] / f"{name}{SUFFIX}"
        found = load(path)
        if found is not None:
            with contextlib.suppress(OSError):
                os.utime(path)  # it is in use
            return found
        columns = halved(read())
        if self._is_open:
            with self._or_without():
                self._keep(path, columns)
        return columns

    def _keep(self, path: Path, columns: ReadyColumns) -> None:
        parts = pack(columns)
        size = sum(map(len, parts))
        if self._bytes + size > self._most_bytes:
            self._make_room(size)
        if self._bytes + size > self._most_bytes:
            self._is_open = False
            tell(f"{self._folder}: full at {self._most_bytes >> 30} GiB (data.hot_cache_gib); what is in it is used.")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (self._folder / MARKER).exists():
            (self._folder / MARKER).write_text(json.dumps({"version": VERSION}) + "\n")
        temporary = path.with_name(f".{path.name}-{os.getpid()}{TEMPORARY}")
        try:
            with temporary.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())  # else a name could outlive its bytes
            if not is_same(load(temporary), columns):
                raise OSError(errno.EIO, "what was written reads back as something else")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._bytes += size

    def _make_room(self, size: int) -> None:
        """Remove files that no run has used since this one began, the oldest first."""
        files = sorted(self._files(), key=lambda file: file[2])
        self._bytes = sum(of_file for _, of_file, _ in files)
        for path, of_file, used_s in files:
            if self._bytes + size <= self._most_bytes or used_s >= self._started_s:
                return
            path.unlink(missing_ok=True)
            self._bytes -= of_file

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        for path in self._folder.glob(f"??/*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                status = path.stat()
                yield path, status.st_size, status.st_mtime

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        """Go on without keeping anything where the disk is full, or refuses."""
        try:
            yield
        except OSError as error:
            self._is_open = False
            tell(f"{self._folder}: nothing more is kept there, and the run goes on without: {error.strerror}.")


def hot_cache_faults(folder: Path) -> list[str]:
    """Say why a folder cannot be a hot cache of this release, if it cannot: files in it are removed to make room."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [f"data.hot_cache: {folder} is a file; give a folder"]
    try:
        version = json.loads((folder / MARKER).read_bytes())["version"]
    except FileNotFoundError:
        is_empty = not any(folder.iterdir())
        return [] if is_empty else [f"data.hot_cache: {folder} holds other files; give an empty folder, or a new one"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"data.hot_cache: {folder / MARKER} cannot be read ({error!r}); remove the folder, or give another one"]
    if version != VERSION:
        return [
            f"data.hot_cache: {folder} has version {version}, this release reads version {VERSION}; remove the folder, "
            "which is filled again from the cache, or give another one"
        ]
    return []


def open_hot_cache(folder: Path, gib: float) -> HotCache:
    """Open a hot cache.

    Raises:
        RunFileError: The folder is something else, or of another version.
    """
    if faults := hot_cache_faults(folder):
        raise RunFileError(faults[0])
    return HotCache(folder, int(gib * 2**30))


def pack(columns: ReadyColumns) -> list[bytes]:
    """Return the parts of a file."""
    entries: list[dict[str, Any]] = []
    parts: list[bytes] = []
    at = 0

    def add(array: Array) -> tuple[str, int, int]:
        nonlocal at
        data = np.ascontiguousarray(array).tobytes()
        data += bytes(-len(data) % _ALIGNMENT)
        place = array.dtype.str, at, len(array)
        parts.append(data)
        at += len(data)
        return place

    for name, column in columns.items():
        if isinstance(column, Ragged):
            entries.append({"name": name, "offsets": add(column.offsets), "values": add(column.values)})
        else:
            entries.append({"name": name, "array": add(column)})
    head = json.dumps({"version": VERSION, "columns": entries, "bytes": at}).encode()
    head += b" " * (-(_BEGIN + len(head)) % _ALIGNMENT)
    return [MAGIC, len(head).to_bytes(4, "little"), hashlib.sha256(head).digest(), head, *parts]


def load(path: Path) -> dict[str, ReadyColumn] | None:
    """Return the columns of a file, mapped into memory; None where there is none, or not a whole one."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # it is not there, or empty
        return None
    size = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    head = data[_BEGIN : _BEGIN + size]
    if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) + 4 : _BEGIN] != hashlib.sha256(head).digest():
        return None
    content = json.loads(head)
    start = _BEGIN + size
    if content["version"] != VERSION or start + content["bytes"] != len(data):
        return None

    def array(place: tuple[str, int, int]) -> Array:
        dtype, at, count = place
        return np.frombuffer(data, np.dtype(dtype), count, start + at)

    result: dict[str, ReadyColumn] = {}
    for entry in content["columns"]:
        if "array" in entry:
            result[entry["name"]] = array(entry["array"])
        else:
            result[entry["name"]] = Ragged(array(entry["offsets"]), array(entry["values"]))
    return result


def is_same(one: ReadyColumns | None, other: ReadyColumns) -> bool:
    """Tell whether columns are equal to the last bit."""
    if one is None or one.keys() != other.keys():
        return False
    return all(_bytes_of(one[name]) == _bytes_of(other[name]) for name in other)


def _bytes_of(column: ReadyColumn) -> list[tuple[str, bytes]]:
    arrays = (column.offsets, column.values) if isinstance(column, Ragged) else (column,)
    return [(array.dtype.str, array.tobytes()) for array in arrays]


def halved(columns: ReadyColumns) -> dict[str, ReadyColumn]:
    """Return columns of lists as float16 where that loses nothing."""
    return {
        name: Ragged(column.offsets, _halved(column.values)) if isinstance(column, Ragged) else column
        for name, column in columns.items()
    }


def _halved(values: Array) -> Array:
    """Return float32 as float16 where that loses nothing; zeros keep their sign."""
    if values.dtype != np.float32 or not len(values):
        return values
    with np.errstate(over="ignore"):
        half: Array = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32).view(np.uint32), values.view(np.uint32)) else values
