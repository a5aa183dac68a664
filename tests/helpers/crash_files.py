"""A file system in memory that can lose its power: what was not synced may be dropped, reordered or torn.

Bytes of a file are durable once it is synced, names once their folder is. At a power loss every unsynced file keeps
random ranges of its bytes, and of the unsynced changes of names a random subset happened, in a random order; a rename
happens whole or not at all. That is all that POSIX promises, and less than common file systems keep.
"""

import errno
import os
import random as random_numbers
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tide_cache.locations import CachePath
from tide_cache.shards import LocalFiles, is_temporary


class KilledError(Exception):
    """The worker died here; no handler of the product catches it."""


@dataclass
class Inode:
    """A file, or with `entries` a folder."""

    data: bytes = b""
    is_synced: bool = False
    entries: "dict[str, Inode] | None" = None
    durable: "dict[str, Inode]" = field(default_factory=dict)
    unsynced: "list[list[tuple[str, Inode | None]]]" = field(default_factory=list)


class CrashFiles(LocalFiles):
    """Loses its worker, and if asked to its power, when `lives` changes have been made."""

    def __init__(self, lives: int | None = None) -> None:
        self.root = Inode(entries={})
        self.lives = lives
        self.changes = 0

    def lose_power(self, random: random_numbers.Random) -> None:
        """Keep what is durable, and some of the rest."""
        _crash(self.root, random)

    def files(self) -> dict[str, bytes]:
        """Bytes of every file, by path."""
        return dict(_files(self.root, PurePosixPath()))

    def write_new(self, path: CachePath, data: bytes) -> None:
        folder = self._folder(path)
        if path.name in folder:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._live()
        inode = Inode()
        self._name(path.parent, {path.name: inode})
        for end in (len(data) // 2, len(data)):  # a worker can die in the middle of a write
            self._live()
            inode.data = data[:end]
        self._live()
        inode.is_synced = True

    def link(self, source: CachePath, target: CachePath) -> None:
        if target.name in self._folder(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        self._live()
        self._name(target.parent, {target.name: self._folder(source)[source.name]})

    def rename(self, source: CachePath, target: CachePath) -> None:
        assert source.parent == target.parent
        self._live()
        self._name(target.parent, {source.name: None, target.name: self._folder(source)[source.name]})

    def sync_folder(self, folder: CachePath) -> None:
        self._live()
        inode = self._find(folder)
        assert inode.entries is not None
        inode.durable, inode.unsynced = dict(inode.entries), []

    def make_folder(self, folder: CachePath) -> None:
        if folder.name in ("", "."):
            return
        self.make_folder(folder.parent)
        if folder.name not in self._folder(folder):
            self._live()
            self._name(folder.parent, {folder.name: Inode(entries={})})
            self.sync_folder(folder.parent)

    def remove(self, path: CachePath) -> None:
        self._live()
        if path.name in self._folder(path):
            self._name(path.parent, {path.name: None})

    def remove_leftovers(self, folder: CachePath) -> None:
        """After a power loss no writer is left."""
        for name in self.list_folder(folder):
            if is_temporary(name):
                self.remove(folder / name)

    def size(self, path: CachePath) -> int:
        return len(self._find(path).data)

    def read(self, path: CachePath, start: int, size: int) -> bytes:
        return self._find(path).data[start : start + size]

    def list_folder(self, folder: CachePath) -> list[str]:
        try:
            return sorted(self._find(folder).entries or {})
        except FileNotFoundError:
            return []

    def _live(self) -> None:
        self.changes += 1
        if self.lives is not None and self.changes > self.lives:
            raise KilledError  # at every later call too: a dead worker cleans nothing up

    def _find(self, path: CachePath) -> Inode:
        here = self.root
        for part in Path(str(path)).parts:
            if here.entries is None or part not in here.entries:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            here = here.entries[part]
        return here

    def _folder(self, path: CachePath) -> dict[str, Inode]:
        entries = self._find(path.parent).entries
        assert entries is not None
        return entries

    def _name(self, folder: CachePath, changes: dict[str, Inode | None]) -> None:
        inode = self._find(folder)
        assert inode.entries is not None
        inode.unsynced.append(list(changes.items()))
        _apply(inode.entries, inode.unsynced[-1])


def _apply(entries: dict[str, Inode], changes: list[tuple[str, Inode | None]]) -> None:
    for name, inode in changes:
        if inode is None:
            entries.pop(name, None)
        else:
            entries[name] = inode


def _crash(folder: Inode, random: random_numbers.Random) -> None:
    survivors = [changes for changes in folder.unsynced if random.random() < 0.5]
    random.shuffle(survivors)
    for changes in survivors:
        _apply(folder.durable, changes)
    folder.entries, folder.unsynced = dict(folder.durable), []
    for inode in folder.entries.values():
        if inode.entries is not None:
            _crash(inode, random)
        elif not inode.is_synced:
            inode.data, inode.is_synced = _torn(inode.data, random), True


def _torn(data: bytes, random: random_numbers.Random) -> bytes:
    """Some blocks of the bytes; the others are zeros, or past the end."""
    block = 512
    kept = data[: random.randint(0, len(data))]
    blocks = [kept[at : at + block] for at in range(0, len(kept), block)]
    return b"".join(one if random.random() < 0.5 else bytes(len(one)) for one in blocks)


def _files(folder: Inode, path: PurePosixPath) -> Iterator[tuple[str, bytes]]:
    for name, inode in (folder.entries or {}).items():
        if inode.entries is None:
            yield str(path / name), inode.data
        else:
            yield from _files(inode, path / name)


class DyingFiles(LocalFiles):
    """Dies at the n-th change of the file system; a dead process cleans nothing up."""

    def __init__(self, lives: int) -> None:
        self.lives = lives

    def _live(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise KilledError

    def write_new(self, path: Path, data: bytes) -> None:
        if self.lives == 0:
            path.write_bytes(data[: len(data) // 2])
        self._live()
        super().write_new(path, data)

    def link(self, source: Path, target: Path) -> None:
        self._live()
        super().link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self._live()
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._live()
        super().sync_folder(folder)

    def make_folder(self, folder: Path) -> None:
        self._live()
        super().make_folder(folder)

    def remove(self, path: Path) -> None:
        self._live()
        super().remove(path)
