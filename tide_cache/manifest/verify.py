"""Whether a cache is what it says, file by file: collects every problem instead of stopping at the first."""

from collections.abc import Callable, Iterator, Sequence

from tide_cache.config.base import Frozen
from tide_cache.errors import ShardCorruptError, TideCacheError, UnreadableError, fault_list
from tide_cache.locations import CachePath
from tide_cache.manifest.checkers import Checkers, ShardRecords
from tide_cache.manifest.commit import CommitRecord
from tide_cache.manifest.entries import add_statistics
from tide_cache.manifest.identity import differing_fields
from tide_cache.manifest.manifest import Manifest, read_plan
from tide_cache.manifest.parts import PARTS_FOLDER, RecordParts
from tide_cache.manifest.plan import PlanDocument
from tide_cache.manifest.shard_check import Problem, ShardCheck
from tide_cache.shards import Files, files_of


class VerifyReport(Frozen):
    """What `verify` found."""

    ok: bool
    shards: int
    bytes: int
    problems: tuple[Problem, ...]


def verify(
    root: CachePath,
    deep: bool = False,
    progress: Callable[[int, int], None] | None = None,
    files: Files | None = None,
) -> VerifyReport:
    """Check the manifest, every commit record, and size, footer and hash of every shard.

    Args:
        root: Folder of the cache.
        deep: Also decode every row and check it against the rules of the format.
        progress: Called after each shard with the bytes done and the bytes in all.
        files: The file system.

    Raises:
        CacheIncompleteError: The build has not finished, or the folder is no cache.
        CacheMismatchError: It was written in a newer format.
        UnreadableError: A file cannot be read now, so nothing can be said of it; tells what was wrong with others.
    """
    is_readable_elsewhere, files = files is None, files or files_of(root)
    try:
        manifest = Manifest.load(root, files)
    except ShardCorruptError as error:
        problem = Problem(shard="manifest.json", file="manifest.json", problem=str(error))
        return VerifyReport(ok=False, shards=0, bytes=0, problems=(problem,))
    total_bytes, done_bytes = manifest.cache_bytes, 0
    found = _plan_problems(root, manifest, files)
    problems = [Problem(shard="plan.json", file="plan.json", problem=problem) for problem in found]
    check = ShardCheck(root, manifest.identity, deep, files)
    with Checkers(check, total_bytes, is_readable_elsewhere) as checkers:
        try:
            for record, found_of_shard in checkers.problems(_listed(manifest, problems)):
                problems += found_of_shard
                done_bytes += record.size
                if progress is not None:
                    progress(done_bytes, total_bytes)
        except UnreadableError as error:
            raise _with_problems(error, problems) from error
    num_shards = manifest.plan.num_shards * len(manifest.tables)
    return VerifyReport(ok=not problems, shards=num_shards, bytes=total_bytes, problems=tuple(problems))


def _listed(manifest: Manifest, problems: list[Problem]) -> Iterator[ShardRecords]:
    """Yield the manifest's entry of each shard and of its pairs; add problems of damaged parts and wrong totals.

    Nothing is known of the shards of a damaged part; a repair writes it anew from the commit records.
    """
    for table in manifest.tables:
        records, sums, num_bytes, is_whole = manifest.shards[table], dict[str, int | float](), 0, True
        if not isinstance(records, RecordParts):  # totals were compared when the manifest was read
            yield from zip(records, manifest.shards["pairs"], strict=True)
            continue
        for number in range(records.num_parts):
            try:
                part = records.part(number)
            except ShardCorruptError as error:
                name = f"{PARTS_FOLDER}/{records.path(number).name}"
                problems.append(Problem(shard=name, file=name, problem=str(error)))
                is_whole = False
                continue
            for record in part:
                add_statistics(sums, record.statistics)
                num_bytes += record.size
            yield from zip(part, _pairs_of(manifest, number), strict=True)
        if is_whole and (sums, num_bytes) != (manifest.totals[table], manifest.shard_bytes[table]):
            problem = f"{table}: totals are not the sums of the shards' statistics and bytes"
            problems.append(Problem(shard="manifest.json", file="manifest.json", problem=problem))


def _pairs_of(manifest: Manifest, number: int) -> Sequence[CommitRecord | None]:
    pairs = manifest.shards["pairs"]
    assert isinstance(pairs, RecordParts)
    try:
        return pairs.part(number)
    except ShardCorruptError:
        return [None] * len(pairs.shards_of(number))


def _with_problems(error: UnreadableError, problems: Sequence[Problem]) -> UnreadableError:
    """Add to what cannot be read what was found before it."""
    if not problems:
        return error
    faults = [f"{problem.file}: {problem.problem}" for problem in problems]
    return UnreadableError(fault_list(f"{error}\nBefore it, problems were found:", faults))


def _plan_problems(root: CachePath, manifest: Manifest, files: Files) -> Iterator[str]:
    try:
        found = read_plan(root, files)
    except UnreadableError:
        raise
    except TideCacheError as error:
        yield str(error)
        return
    expected = PlanDocument.of(manifest.identity, manifest.plan)
    for name, one, other in differing_fields(found, expected):
        yield f"{name}: found {one!r}, the manifest says {other!r}"
