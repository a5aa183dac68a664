"""`tide-cache verify`: check that a cache is what it says."""

from typing import Annotated

import typer

from tide_cache.locations import cache_path
from tide_cache.places import require_cache

from .console import chatter_to_stderr, complain, number, print_fields, print_json, print_table, size
from .options import Json
from .progress import ProgressReport

REFUSED = 3
WAY_OUT = "`tide-cache repair CACHE` moves them aside and computes only those again."


def verify_cache(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="Folder or URL of a complete cache.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also decode every row and check it against the rules of the format.")
    ] = False,
    json: Json = False,
) -> None:
    """Check the manifest, every commit record, and the size, footer and hash of every shard; exit 3 on a fault."""
    require_cache(cache_path(cache))
    with chatter_to_stderr():
        from tide_cache.manifest import Manifest, verify

        with ProgressReport("verify", "bytes") as report:
            found = verify(cache_path(cache), deep, report.update)
        teacher = Manifest.load(cache_path(cache)).identity.teacher if found.ok else {}
    shown = f"{teacher.get('model_type')}, {teacher.get('context')} context"
    if json:
        print_json(found.model_dump(mode="json"))
    elif found.ok:
        counts = [("shards", number(found.shards)), ("size", size(found.bytes))]
        print_fields("Whole", [("cache", str(cache)), ("teacher", shown), *counts])
    else:
        print_table(
            f"Problems in {cache}: {number(len(found.problems))}",
            ["shard", "problem"],
            ((problem.shard, problem.problem) for problem in found.problems),
            text_columns=(0, 1),
        )
    if not found.ok:
        shards = sorted({problem.shard for problem in found.problems})
        complain(f"error: {cache} is damaged: {', '.join(shards)}")
        complain(WAY_OUT)
        raise typer.Exit(REFUSED)
