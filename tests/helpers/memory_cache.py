"""A complete cache as bytes by name, so that tens of thousands of damaged copies cost no disk."""

import os
import tempfile
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from helpers.cache_examples import IDENTITY, PLAN
from helpers.shard_examples import encode_both
from tide_cache.manifest import CacheFolder, Manifest
from tide_cache.records import SamplePair, ViewRecord
from tide_cache.shards import LocalFiles

IS_FULL = os.environ.get("TIDE_CACHE_FAULTS") == "full"
SHARDS = tuple(f"{folder}/shard-{i:06d}.parquet" for folder in ("pairs", "signals/plain") for i in range(2))
RECORDS = tuple(name.replace(".parquet", ".json") for name in SHARDS)
ROOT = Path("/no-such-folder/cache")


@dataclass(frozen=True, eq=False)
class MemoryCache(LocalFiles):
    """Files by name inside the cache; reads as a folder at `ROOT`."""

    content: dict[str, bytes]

    @classmethod
    def build(cls) -> "MemoryCache":
        """Two shards of 66 and 3 samples, so that one has two groups."""
        identity = IDENTITY.model_copy(update={"num_rows": 69})
        plan = PLAN.model_copy(update={"num_rows": 69, "samples_per_shard": 66})
        with tempfile.TemporaryDirectory() as temporary:
            folder = CacheFolder(Path(temporary))
            folder.begin(identity, plan, ["plain"])
            for shard in range(2):
                header = folder.header("pairs", shard)
                for encoded in encode_both(shard, len(plan.rows_of(shard)), identity.shard_rules, header, max_chunks=4):
                    folder.commit(encoded, {"samples": encoded.num_samples, "share": 0.5})
            folder.finish(["plain"])
            paths = [path for path in Path(temporary).rglob("*") if path.is_file()]
            return cls({path.relative_to(temporary).as_posix(): path.read_bytes() for path in paths})

    def size(self, path: Any) -> int:
        return len(self._at(path))

    def read(self, path: Any, start: int, size: int) -> bytes:
        return self._at(path)[max(start, 0) : max(start + size, 0)]

    def list_folder(self, folder: Any) -> list[str]:
        inside = [
            Path(name).relative_to(folder.relative_to(ROOT)) for name in self.content if self._is_in(name, folder)
        ]
        return sorted({path.parts[0] for path in inside})

    def _is_in(self, name: str, folder: Path) -> bool:
        return Path(name).is_relative_to(folder.relative_to(ROOT))

    def _at(self, path: Path) -> bytes:
        try:
            return self.content[path.relative_to(ROOT).as_posix()]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", str(path)) from None

    def changed(self, **content: bytes) -> "MemoryCache":
        """A copy with other bytes under some names."""
        return replace(self, content=self.content | content)

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.load(ROOT, self)

    @cached_property
    def records(self) -> dict[tuple[str, int, int], list[Any]]:
        """What every row group of every shard holds, by name, view and group."""
        found: dict[tuple[str, int, int], list[Any]] = {}
        for name in SHARDS:
            reader = self.reader(name)
            for group in range(reader.layout.num_groups):
                for view in range(reader.layout.num_views):
                    found[name, view, group] = self.read_group(name, view, group, found)
        return found

    def reader(self, name: str, manifest: Manifest | None = None) -> Any:
        table, shard = ("pairs" if name.startswith("pairs") else "plain"), SHARDS.index(name) % 2
        return (manifest or self.manifest).reader(ROOT, table, shard, self)

    def read_group(self, name: str, view: int, group: int, found: Any = None, manifest: Any = None) -> list[Any]:
        """Read one row group, with the pairs of the undamaged cache where it needs them."""
        reader = self.reader(name, manifest)
        if name.startswith("pairs"):
            return list(reader.read_pairs(group))
        pairs: list[SamplePair] = (found or self.records)[name.replace("signals/plain", "pairs"), 0, group]
        records: list[ViewRecord] = reader.read_signals(view, group, pairs)
        return records


def alike(one: Any, other: Any) -> bool:
    """Whether two records, or lists of them, are equal to the last bit."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if is_dataclass(one):
        return type(one) is type(other) and all(
            alike(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return type(one) is type(other) and bool(one == other)
