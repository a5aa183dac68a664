"""`tide-cache repair`: mend a damaged cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tide_cache.config.base import load_run_file, parse_assignments
from tide_cache.config.build import BuildRun

from .console import chatter_to_stderr, complain, number, print_fields, print_json, print_table, say
from .options import Json, Out, Set, given
from .progress import ProgressReport

if TYPE_CHECKING:
    from tide_cache.building.repair import RepairReport

REFUSED = 3


def repair(
    where: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.toml|CACHE",
            help="Run file that the cache was built with. The cache's folder is enough for --dry-run, and to mend "
            "everything but shards.",
        ),
    ],
    out: Out = None,
    assignments: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is bad, change nothing.")] = False,
    json: Json = False,
) -> None:
    """Find damaged or missing files of a cache, move the bad ones aside, and compute again only those.

    A shard that is computed again must have the very bytes that manifest.json says it had. Bad files go to a folder
    `quarantine` inside the cache; nothing is deleted. Exit 3 when --dry-run finds damage.
    """
    overrides = {**given({"build.out": out}), **parse_assignments(assignments or ())}
    run = None if where.is_dir() else load_run_file(BuildRun, where, overrides)
    cache = where if run is None else run.build.out
    with chatter_to_stderr():
        from tide_cache.building.repair import find_damage, repair_cache

        with ProgressReport("check", "bytes") as report:
            found = find_damage(cache, report.update)
        if not dry_run and not found.is_mended:
            say(f"{cache}: mending {number(len(found.bad_files))} files")
            found = repair_cache(found, run)
    if json:
        print_json(_document(found, dry_run))
    else:
        _show(found, dry_run)
    if not found.is_mended:
        complain(f"error: {cache} is damaged: {', '.join(found.bad_files)}")
        if dry_run:
            complain("Run the same command without --dry-run, with the run file in place of the folder, to mend it.")
        raise typer.Exit(REFUSED)


def _document(found: "RepairReport", dry_run: bool) -> dict[str, Any]:
    return {
        "cache": str(found.cache),
        "ok": found.is_mended,
        "dry_run": dry_run,
        "problems": [problem.model_dump(mode="json") for problem in found.problems],
        "quarantine": None if found.quarantine is None else str(found.quarantine),
        "moved": list(found.moved),
        "recomputed": list(found.recomputed),
    }


def _show(found: "RepairReport", dry_run: bool) -> None:
    if not found.problems:
        print_fields("Healthy: nothing to mend", [("cache", str(found.cache))])
        return
    rows = ((problem.file, problem.problem) for problem in found.problems)
    print_table(f"Damaged in {found.cache}: {number(len(found.bad_files))} files", ["file", "problem"], rows, (0, 1))
    if dry_run:
        return
    print_fields(
        "Mended" if found.is_mended else "Not mended",
        [
            ("cache", str(found.cache)),
            ("computed again", ", ".join(found.recomputed) or "-"),
            ("moved aside", "-" if found.quarantine is None else f"{number(len(found.moved))}, to {found.quarantine}"),
        ],
    )
