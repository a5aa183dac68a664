"""`tide-cache repair`: repair a damaged cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tide_cache.config.base import load_run_file, parse_assignments
from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheIncompleteError, RunFileError
from tide_cache.locations import CachePath, cache_path

from .console import chatter_to_stderr, complain, number, print_fields, print_json, print_table, say
from .options import Json, Out, Set, given
from .progress import ProgressReport

if TYPE_CHECKING:
    from tide_cache.building.repair import RepairReport

REFUSED = 3


def repair(
    where: Annotated[
        str,
        typer.Argument(
            metavar="CACHE|RUN.toml",
            help="Folder or URL of the cache, or the run file it was built with. A cache begun by an older "
            "release needs the run file if shards must be computed again.",
        ),
    ],
    out: Out = None,
    assignments: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is bad, and change nothing.")] = False,
    json: Json = False,
) -> None:
    """Find damaged or missing files of a cache, move the bad ones aside, and compute only those again.

    A shard that is computed again must have the very bytes that manifest.json says it had. Bad files go to a folder
    `quarantine` inside the cache; nothing is deleted. Exit 3 when --dry-run finds damage.
    """
    cache, run = _find(where, {**given({"build.out": out}), **parse_assignments(assignments or ())})
    with chatter_to_stderr():
        from tide_cache.building.repair import find_damage, repair_cache

        with ProgressReport("check", "bytes") as report:
            found = find_damage(cache, report.update)
        if not dry_run and not found.is_repaired:
            say(f"{cache}: repairing {number(len(found.bad_files))} files")
            found = repair_cache(found, run)
    if json:
        print_json(_document(found, dry_run))
    else:
        _show(found, dry_run)
    if not found.is_repaired:
        complain(f"error: {cache} is damaged: {', '.join(found.bad_files)}")
        if dry_run:
            complain("Run the same command without --dry-run to repair it.")
        raise typer.Exit(REFUSED)


def _find(where: str, overrides: dict[str, Any]) -> tuple[CachePath, BuildRun | None]:
    """Return the cache and, where it is known, how it was built.

    Raises:
        RunFileError: A run file cannot be used, or options change a run that is not known.
        CacheIncompleteError: There is no such folder.
    """
    cache = cache_path(where)
    if isinstance(cache, Path) and not cache.is_dir():
        if cache.exists() or cache.suffix == ".toml":
            run = load_run_file(BuildRun, cache, overrides)
            return run.build.out, run
        raise CacheIncompleteError(
            f"{where}: no such folder; give the folder of a cache, or its URL: s3://bucket/cache"
        )
    from tide_cache.building.run_record import read_record

    if "build.out" in overrides:
        raise RunFileError(f"--out {overrides['build.out']}: found the cache {where} already; leave one of them out")
    record = read_record(cache)
    if record is not None:
        whole = {**record.run, "build": {**record.run["build"], "out": str(cache)}}
        return cache, load_run_file(BuildRun, None, {**whole, **overrides})
    if overrides:
        raise RunFileError(
            f"{where}: found {', '.join(overrides)}, but no build.json that they could change; give the run file in "
            "place of the folder, or leave them out"
        )
    return cache, None


def _document(found: "RepairReport", dry_run: bool) -> dict[str, Any]:
    return {
        "cache": str(found.cache),
        "ok": found.is_repaired,
        "dry_run": dry_run,
        "problems": [problem.model_dump(mode="json") for problem in found.problems],
        "quarantine": None if found.quarantine is None else str(found.quarantine),
        "moved": list(found.moved),
        "recomputed": list(found.recomputed),
    }


def _show(found: "RepairReport", dry_run: bool) -> None:
    if not found.problems:
        print_fields("Healthy: nothing to repair", [("cache", str(found.cache))])
        return
    rows = ((problem.file, problem.problem) for problem in found.problems)
    print_table(f"Damaged in {found.cache}: {number(len(found.bad_files))} files", ["file", "problem"], rows, (0, 1))
    if dry_run:
        return
    print_fields(
        "Repaired" if found.is_repaired else "Not repaired",
        [
            ("cache", str(found.cache)),
            ("computed again", ", ".join(found.recomputed) or "-"),
            ("moved aside", "-" if found.quarantine is None else f"{number(len(found.moved))}, to {found.quarantine}"),
        ],
    )
