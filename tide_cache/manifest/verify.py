"""Whether a cache is what it says, file by file: collects every problem instead of stopping at the first."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tide_cache.config.base import Frozen
from tide_cache.errors import CacheMismatchError, ShardCorruptError, TideCacheError, UnreadableError, fault_list
from tide_cache.locations import CachePath
from tide_cache.manifest.commit import MAX_RECORD_BYTES, CommitRecord
from tide_cache.manifest.documents import read_document
from tide_cache.manifest.entries import add_statistics
from tide_cache.manifest.identity import differing_fields
from tide_cache.manifest.manifest import Manifest, read_plan, record_path, shard_path
from tide_cache.manifest.parts import PARTS_FOLDER, RecordParts
from tide_cache.manifest.plan import PlanDocument
from tide_cache.shards import Files, TableName, file_sha256, files_of


class Problem(Frozen):
    """One thing that is wrong.

    Attributes:
        shard: Path inside the cache of the shard (or document) that it concerns.
        file: Path inside the cache of the file that is at fault: the shard, or the commit record beside it.
        problem: What was found.
    """

    shard: str
    file: str
    problem: str


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
    files = files or files_of(root)
    try:
        manifest = Manifest.load(root, files)
    except ShardCorruptError as error:
        problem = Problem(shard="manifest.json", file="manifest.json", problem=str(error))
        return VerifyReport(ok=False, shards=0, bytes=0, problems=(problem,))
    total_bytes, done_bytes = manifest.cache_bytes, 0
    found = _plan_problems(root, manifest, files)
    problems = [Problem(shard="plan.json", file="plan.json", problem=problem) for problem in found]
    for record in _listed(manifest, problems):
        try:
            problems += _problems_of(root, manifest, record, deep, files)
        except UnreadableError as error:
            raise _with_problems(error, problems) from error
        done_bytes += record.size
        if progress is not None:
            progress(done_bytes, total_bytes)
    num_shards = manifest.plan.num_shards * len(manifest.tables)
    return VerifyReport(ok=not problems, shards=num_shards, bytes=total_bytes, problems=tuple(problems))


def _listed(manifest: Manifest, problems: list[Problem]) -> Iterator[CommitRecord]:
    """Yield the manifest's entry of each shard; of a part that is damaged, and of totals that are wrong, add a problem.

    Nothing is known of the shards of a damaged part; a repair writes it anew from the commit records.
    """
    for table in manifest.tables:
        records, sums, num_bytes, is_whole = manifest.shards[table], dict[str, int | float](), 0, True
        if not isinstance(records, RecordParts):  # totals were compared when the manifest was read
            yield from records
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
            yield from part
        if is_whole and (sums, num_bytes) != (manifest.totals[table], manifest.shard_bytes[table]):
            problem = f"{table}: totals are not the sums of the shards' statistics and bytes"
            problems.append(Problem(shard="manifest.json", file="manifest.json", problem=problem))


def _problems_of(
    root: CachePath, manifest: Manifest, record: CommitRecord, deep: bool, files: Files
) -> Iterator[Problem]:
    """Check one shard and its record."""
    shard = shard_path(Path(), record.table, record.shard)
    record_file = shard.with_suffix(".json").as_posix()
    for problem in _record_problems(root, record, files):
        yield Problem(shard=shard.as_posix(), file=record_file, problem=problem)
    for problem in _shard_problems(root, manifest, record, deep, files):
        yield Problem(shard=shard.as_posix(), file=shard.as_posix(), problem=problem)


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


def _record_problems(root: CachePath, record: CommitRecord, files: Files) -> Iterator[str]:
    record_file = record_path(root, record.table, record.shard)
    try:
        if read_document(record_file, CommitRecord, MAX_RECORD_BYTES, files) != record:
            yield f"{record_file.name} differs from its entry in manifest.json"
    except FileNotFoundError:
        yield f"{record_file.name} is missing"
    except (ShardCorruptError, CacheMismatchError) as error:
        yield str(error)


def _shard_problems(
    root: CachePath, manifest: Manifest, record: CommitRecord, deep: bool, files: Files
) -> Iterator[str]:
    try:
        manifest.reader(root, record.table, record.shard, files).check_footer()
    except (ShardCorruptError, CacheMismatchError) as error:
        yield str(error)
        return
    found = file_sha256(shard_path(root, record.table, record.shard), files)
    if found != record.sha256:
        yield f"found sha256 {found}, the commit record says {record.sha256}"
    if deep:
        yield from _row_problems(root, manifest, record.table, record.shard, files)


def _row_problems(root: CachePath, manifest: Manifest, table: TableName, shard: int, files: Files) -> Iterator[str]:
    """Decode every row group; the views of samples that cannot be read are left out, their pairs are named."""
    pairs_reader = manifest.reader(root, "pairs", shard, files)
    reader = manifest.reader(root, table, shard, files)
    for group in range(reader.layout.num_groups):
        try:
            pairs = pairs_reader.read_pairs(group)
        except ShardCorruptError as error:
            if table == "pairs":
                yield str(error)
            continue
        if table == "pairs":
            continue
        for view in range(manifest.identity.stored_views):
            try:
                reader.read_signals(view, group, pairs, thorough=True)
            except ShardCorruptError as error:
                yield str(error)
