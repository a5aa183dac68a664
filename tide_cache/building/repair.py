"""Repair a damaged cache: bad files move to a separate folder, and only those are computed again.

The manifest says which bytes every shard has, so a shard that was computed again is published only when it is those
bytes. It is computed before the bad file is moved: whatever fails, the cache is no worse than before. Nothing that
was paid for is ever deleted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from tide_cache.building.driver import OnProgress, build_prepared, load_teacher
from tide_cache.building.executors import InProcess
from tide_cache.building.prepare import prepare_build
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.shard import encode_table, pair_rows
from tide_cache.config.base import Frozen
from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheIncompleteError, CacheMismatchError, RunFileError, ShardCorruptError, fault_list
from tide_cache.locations import CachePath
from tide_cache.manifest import (
    CacheFolder,
    CommitRecord,
    Manifest,
    PlanDocument,
    Problem,
    record_path,
    require_same_identity,
    shard_path,
    tables_of,
    verify,
)
from tide_cache.manifest.manifest import read_plan
from tide_cache.manifest.parts import PARTS_FOLDER
from tide_cache.manifest.quarantine import Quarantine
from tide_cache.modeling.backbone import resolve_device
from tide_cache.shards import (
    PASSES,
    Files,
    PassName,
    TableName,
    at_former_levels,
    files_of,
    publish,
    publish_json,
)

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class RepairReport:
    """What was wrong with a cache, and what became of it.

    Attributes:
        cache: Folder of the cache.
        problems: What `verify` found.
        quarantine: Where the bad files are now; None when none was moved.
        moved: Those files, as paths inside the cache.
        recomputed: Shards that were computed again.
        is_repaired: Whether the cache is now complete and undamaged.
    """

    cache: CachePath
    problems: tuple[Problem, ...]
    quarantine: CachePath | None = None
    moved: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()
    is_repaired: bool = False

    @property
    def bad_files(self) -> tuple[str, ...]:
        """Files that are damaged or missing, each once."""
        return tuple(sorted({problem.file for problem in self.problems}))


def find_damage(root: CachePath, on_bytes: OnBytes | None = None) -> RepairReport:
    """Report what a repair would fix; needs only the cache and changes nothing.

    Args:
        root: Folder of the cache.
        on_bytes: Called with the bytes checked and the bytes in all.

    Raises:
        CacheIncompleteError: The build has not finished, or the folder is no cache.
    """
    report = verify(root, progress=on_bytes)
    return RepairReport(root, report.problems, is_repaired=report.ok)


def repair_cache(
    damage: RepairReport,
    run: BuildRun | None = None,
    on_progress: OnProgress | None = None,
    files: Files | None = None,
) -> RepairReport:
    """Repair what `find_damage` found.

    Args:
        damage: Its report.
        run: The run file that the cache was built with; needed only where a shard must be computed again.
        on_progress: As for `build_cache`, in the one case that needs a whole build: a lost manifest.
        files: The file system; by default the one that the cache lies in.

    Raises:
        RunFileError: Shards must be computed again, and there is no run file.
        CacheMismatchError: The run file describes another cache, or a shard that was computed again has other bytes
            than the manifest says; the bad file is where it was.
        TideCacheError: Corpus, tokenizer or teacher cannot be read, or the file system refused.
    """
    if damage.is_repaired:
        return damage
    files = files or files_of(damage.cache)
    quarantine = Quarantine(damage.cache, files)
    bad_manifest = [name for name in damage.bad_files if name == "manifest.json" or name.startswith(f"{PARTS_FOLDER}/")]
    if bad_manifest:
        recomputed = _make_manifest(damage.cache, bad_manifest, run, quarantine, on_progress, files)
    else:
        recomputed = _repair_files(damage, run, quarantine, files)
    left = verify(damage.cache, files=files)
    return RepairReport(
        damage.cache, damage.problems, quarantine.folder, tuple(quarantine.moved), tuple(recomputed), left.ok
    )


def _repair_files(damage: RepairReport, run: BuildRun | None, quarantine: Quarantine, files: Files) -> list[str]:
    """Restore plan, records and shards as the manifest describes them; return the shards computed again."""
    root, bad = damage.cache, set(damage.bad_files)
    manifest = Manifest.load(root, files)
    plan = PlanDocument.of(manifest.identity, manifest.plan)
    listed = (record for table in manifest.tables for record in manifest.shards[table])
    records = [record for record in listed if _name(record) in bad or _record_name(record) in bad]
    lost = [record for record in records if _name(record) in bad]
    if lost:
        run = _required(run, root, [_name(record) for record in lost])
        if any(record.table != "pairs" for record in lost):
            InProcess().check(run)
        build = prepare_build(run)
        require_same_identity(root / "manifest.json", plan, PlanDocument.of(build.identity, build.plan))
        _repair_shards(root, run, build, lost, quarantine, files)
    documents: dict[str, Frozen] = {"plan.json": plan}
    documents |= {_record_name(record): record for record in records}
    for name in (name for name in documents if name in bad):
        quarantine.take(name)
        files.make_folder((root / name).parent)
        publish_json(root / name, documents[name].model_dump(mode="json"), files)
    return [_name(record) for record in lost]


def _repair_shards(
    root: CachePath,
    run: BuildRun,
    build: PreparedBuild,
    lost: Sequence[CommitRecord],
    quarantine: Quarantine,
    files: Files,
) -> None:
    needs_teacher = any(record.table != "pairs" for record in lost)
    teacher = load_teacher(run, build, resolve_device(run.teacher.device)) if needs_teacher else None
    for shard, of_shard in groupby(sorted(lost, key=lambda record: record.shard), lambda record: record.shard):
        paired = pair_rows(build, shard)
        for record in of_shard:
            path = shard_path(root, record.table, shard)
            encoded, _ = encode_table(build, teacher, paired, record.header, lambda _: None)
            if encoded.sha256 != record.sha256:
                encoded = at_former_levels(encoded)
            if encoded.sha256 != record.sha256:
                raise CacheMismatchError(
                    f"{path}: computed again, it has sha256 {encoded.sha256}, manifest.json says {record.sha256}; it "
                    "was not published, and the bad file was not moved.\nThe same inputs gave other bytes: on "
                    "another machine, device or library release the last bits differ. Run the repair where the cache "
                    "was built, restore this file from a copy, or rebuild the cache in another folder."
                )
            quarantine.take(_name(record))
            files.make_folder(path.parent)
            publish(path, encoded.data, files)


def _make_manifest(
    root: CachePath,
    bad: Sequence[str],
    run: BuildRun | None,
    quarantine: Quarantine,
    on_progress: OnProgress | None,
    files: Files,
) -> list[str]:
    """Rebuild a lost manifest from the commit records; shards that they do not vouch for are computed again."""
    build = prepare_build(run) if run is not None else None
    plan_is_bad = False
    try:
        plan = read_plan(root, files)
    except (ShardCorruptError, CacheIncompleteError):
        plan_is_bad = True
        run = _required(run, root, ["plan.json"])
        assert build is not None
        plan = PlanDocument.of(build.identity, build.plan)
    if build is not None:
        require_same_identity(root / "plan.json", plan, PlanDocument.of(build.identity, build.plan))
    passes = _whole_passes(root, plan, files) | set(build.passes if build else ())
    faults = _unvouched(root, plan, tables_of(passes), files)
    if faults:
        run = _required(run, root, faults)
        InProcess().check(run)  # before anything is moved
    for name in dict.fromkeys(["manifest.json", *bad, *(["plan.json"] if plan_is_bad else [])]):
        quarantine.take(name)
    if plan_is_bad:
        publish_json(root / "plan.json", plan.model_dump(mode="json"), files)
    for name in faults:
        quarantine.take(name)
        quarantine.take(Path(name).with_suffix(".json").as_posix())
    if faults:
        assert run is not None
        assert build is not None
        build_prepared(run, replace(build, passes=tuple(name for name in PASSES if name in passes)), on_progress)
    else:
        CacheFolder(root, files).finish(passes)
    return faults


def _whole_passes(root: CachePath, plan: PlanDocument, files: Files) -> set[PassName]:
    """Return the passes whose shards all have a file: those that a lost manifest can have listed."""
    wanted = plan.plan.num_shards
    found = {name: files.list_folder(shard_path(root, name, 0).parent) for name in PASSES}
    return {name for name, entries in found.items() if sum(e.endswith(".parquet") for e in entries) >= wanted}


def _unvouched(root: CachePath, plan: PlanDocument, tables: Sequence[TableName], files: Files) -> list[str]:
    """Return the shards whose commit record is missing, or says something else."""
    folder = CacheFolder(root, files)
    folder.plan_document = plan  # the one on disk may be the damaged one
    result = []
    for table in tables:
        for shard in range(plan.plan.num_shards):
            try:
                is_good = folder.is_committed(table, shard, is_hashed=True)
            except (ShardCorruptError, CacheMismatchError, OSError):
                is_good = False
            if not is_good:
                result.append(shard_path(Path(), table, shard).as_posix())
    return result


def _name(record: CommitRecord) -> str:
    return shard_path(Path(), record.table, record.shard).as_posix()


def _record_name(record: CommitRecord) -> str:
    return record_path(Path(), record.table, record.shard).as_posix()


def _required(run: BuildRun | None, root: CachePath, lost: Sequence[str]) -> BuildRun:
    """Return the run file, or raise an error that says why it is needed."""
    if run is None:
        raise RunFileError(
            fault_list(
                f"{root}: these must be computed again, which needs the run file that the cache was built with:",
                lost,
                "The release that began this cache did not keep it. Give it in place of the folder: tide-cache repair "
                "RUN.toml; or write a new one with the same options (build-teacher-shards --dry-run prints it). "
                "Nothing was changed.",
            )
        )
    return run
