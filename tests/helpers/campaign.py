"""What the fault campaigns share: how many trials, where their counts go, and the small cache that they publish.

`TIDE_CACHE_FAULTS=full` runs every trial, otherwise a quick share of them. `TIDE_CACHE_FAULTS_JSON=FILE` collects the
counts of all campaigns in one document.
"""

import fcntl
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from helpers.cache_examples import IDENTITY, PLAN
from helpers.shard_examples import encode_both, encode_compdemo
from tide_cache.locations import CachePath
from tide_cache.manifest import CacheFolder, PlanDocument, tables_of, verify
from tide_cache.shards import EncodedShard, Files, PassName, ShardHeader, TableName, file_sha256

IS_FULL = os.environ.get("TIDE_CACHE_FAULTS") == "full"

SMALL_PLAN = PLAN.model_copy(update={"samples_per_shard": 5})
BUILDS: tuple[tuple[PassName, ...], ...] = (("plain",), ("plain", "compdemo"))
"""A build, and then another that adds a pass, so that a manifest is published and later replaced."""


def trials(quick: int, full: int) -> int:
    """Number of trials of a campaign in the form that was asked for."""
    return full if IS_FULL else quick


def seeded(num_trials: int) -> Iterator[tuple[int, random.Random]]:
    """Return each trial's seed and its random numbers."""
    return ((seed, random.Random(seed)) for seed in range(num_trials))


def record(name: str, **counts: int | float) -> None:
    """Add a campaign's counts to the document of `TIDE_CACHE_FAULTS_JSON`; campaigns may run at the same time."""
    if (path := os.environ.get("TIDE_CACHE_FAULTS_JSON")) is None:
        return
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        document = {**(json.loads(text) if text else {}), name: {"form": "full" if IS_FULL else "quick", **counts}}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(document, indent=2, sort_keys=True) + "\n")


def encode_shards() -> dict[tuple[TableName, int], EncodedShard]:
    """Every shard of the small cache."""
    document = PlanDocument(identity=IDENTITY, plan=SMALL_PLAN)
    result: dict[tuple[TableName, int], EncodedShard] = {}
    for shard in range(SMALL_PLAN.num_shards):
        header = ShardHeader(document.cache_id, document.plan_hash, "pairs", shard)
        arguments = (shard, len(SMALL_PLAN.rows_of(shard)), IDENTITY.shard_rules, header)
        for encoded in (*encode_both(*arguments), encode_compdemo(*arguments)):
            result[encoded.header.table, shard] = encoded
    return result


def work(
    root: CachePath, shards: dict[tuple[TableName, int], EncodedShard], files: Files | None = None, order: int = 0
) -> None:
    """Do a whole worker's part: plan, every shard that nobody has committed yet, manifest.

    Args:
        root: Folder of the cache.
        shards: Of the whole cache.
        files: The file system.
        order: Seed of the order of the shards; 0 for the order of the plan.
    """
    for passes in BUILDS:
        folder = CacheFolder(root, files)
        folder.begin(IDENTITY, SMALL_PLAN, passes)
        keys = [(table, shard) for shard in range(SMALL_PLAN.num_shards) for table in tables_of(passes)]
        if order:
            random.Random(order).shuffle(keys)
        for table, shard in keys:
            if not folder.is_committed(table, shard):
                folder.commit(shards[table, shard], {"samples": shards[table, shard].num_samples})
        folder.finish(passes)


def broken_promises(root: CachePath, names: list[str], files: Files) -> list[str]:
    """Say what a cache claims that is not so: a record without its shard, a manifest without the whole.

    Args:
        root: Folder of the cache.
        names: Paths of its files, inside it.
        files: The file system.
    """
    faults = []
    for name in names:
        if name.endswith(".json") and "/shard-" in name:
            document = json.loads(files.read(root / name, 0, 1 << 20))
            shard = name.removesuffix(".json") + ".parquet"
            if shard not in names or file_sha256(root / shard, files) != document["sha256"]:
                faults.append(f"{name}: committed, but the shard is not there or has another hash")
    if "manifest.json" in names:
        faults += [f"{problem.shard}: {problem.problem}" for problem in verify(root, deep=True, files=files).problems]
    return faults


def tree(root: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
