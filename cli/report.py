"""`tide-cache report`: write one HTML page about a cache or a run, or about several runs side by side."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tide_cache.errors import CacheIncompleteError, RunFileError, TideCacheError
from tide_cache.locations import CachePath, RemotePath, cache_path

from .console import chatter_to_stderr, print_fields, print_json, say, size
from .options import Json
from .progress import ProgressReport

MISSING = "the pages are drawn with {name}: pip install 'tide-cache[report]'"


def report(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="A cache or a run; with --compare, several runs.")
    ],
    compare: Annotated[bool, typer.Option("--compare", help="Compare several runs side by side.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Page to write; by default report-NAME.html in the working folder.", show_default=False
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="For a cache: student tokenizer, to show ids as text.", show_default=False),
    ] = None,
    teacher_tokenizer: Annotated[
        str | None,
        typer.Option(
            help="For a cache: teacher tokenizer, for kept ids that the student does not have.", show_default=False
        ),
    ] = None,
    view: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="For a cache: show this view, as `inspect --view` does. Repeatable.", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite OUT even if this command did not write it.")
    ] = False,
    json: Json = False,
) -> None:
    """Write one HTML page with pictures about a cache or a run; it needs no script and no network.

    A cache shows what the teacher knew over t, chunks, bytes and some views; a run its losses, NLL over t, and the
    evaluations `eval*.json` in its folder.
    """
    roots = _roots(paths, compare, {"--tokenizer": tokenizer, "--teacher-tokenizer": teacher_tokenizer, "--view": view})
    page = out or Path(f"report-{_plain_name(roots, compare)}.html")
    with chatter_to_stderr():
        try:
            from tide_cache.reporting.page import require_writable, write_page

            require_writable(page, force)
            if compare:
                figures, text = _comparison(roots)
            elif _is_run(roots[0]):
                figures, text = _run(roots[0])
            else:
                figures, text = _cache(roots[0], tokenizer, teacher_tokenizer, view or ())
        except ModuleNotFoundError as error:
            if error.name != "matplotlib":
                raise
            raise TideCacheError(MISSING.format(name=error.name)) from None
        write_page(page, text)
    if json:
        print_json({"page": str(page), **figures})
    else:
        print_fields("Report", [("page", str(page)), ("size", size(page.stat().st_size))])
        if not (compare or tokenizer or _is_run(roots[0])):
            say("Its views show ids; add --tokenizer, with the student's tokenizer, to see text.")


def _roots(paths: Sequence[str], compare: bool, of_caches: dict[str, Any]) -> list[CachePath]:
    """Check the arguments without reading anything."""
    roots = [cache_path(path) for path in paths]
    if compare and len(roots) < 2:
        raise RunFileError(f"--compare: found {len(roots)} run, expected at least 2; leave it out for the page of one")
    if not compare and len(roots) > 1:
        raise RunFileError(f"found {len(roots)} paths, expected one; add --compare to put runs side by side")
    if len({str(root) for root in roots}) < len(roots):
        raise RunFileError("--compare: found a run twice; give each once")
    runs = [root for root in roots if _is_run(root)]
    if compare and len(runs) < len(roots):
        other = next(root for root in roots if root not in runs)
        raise RunFileError(f"{other}: found no training run, and --compare takes runs only: folders of train.out")
    if runs and (given := [name for name, value in of_caches.items() if value]):
        raise RunFileError(f"{', '.join(given)}: found with a run, expected with a cache; leave it out")
    if not runs and not _may_be_cache(roots[0]):
        raise CacheIncompleteError(
            f"{roots[0]}: found neither a cache (manifest.json or plan.json) nor a run (metrics.jsonl or run.json).\n"
            "Give the build.out of `tide-cache build-teacher-shards`, or the train.out of `tide-cache train`."
        )
    return roots


def _is_run(root: CachePath) -> bool:
    return isinstance(root, Path) and any((root / name).is_file() for name in ("metrics.jsonl", "run.json"))


def _may_be_cache(root: CachePath) -> bool:
    return isinstance(root, RemotePath) or any((root / name).is_file() for name in ("manifest.json", "plan.json"))


def _plain_name(roots: Sequence[CachePath], compare: bool) -> str:
    if compare:
        return "comparison"
    name = roots[0].resolve().name if isinstance(roots[0], Path) else roots[0].name
    return re.sub(r"[^\w.-]+", "-", name) or "cache"


def _cache(
    root: CachePath, tokenizer: str | None, teacher_tokenizer: str | None, views: Sequence[int]
) -> tuple[dict[str, Any], str]:
    from tide_cache.reporting.cache_page import cache_page, gather_cache

    with ProgressReport("report", "row groups") as progress:
        found = gather_cache(root, tokenizer, teacher_tokenizer, views, progress.update)
    return {"kind": "cache", **asdict(found)}, cache_page(found)


def _run(root: CachePath) -> tuple[dict[str, Any], str]:
    from tide_cache.reporting.run_pages import run_page
    from tide_cache.reporting.runs import read_run

    assert isinstance(root, Path), "runs lie in folders"
    found = read_run(root)
    return {"kind": "run", **asdict(found)}, run_page(found)


def _comparison(roots: Sequence[CachePath]) -> tuple[dict[str, Any], str]:
    from tide_cache.reporting.comparing import compare_arms, make_arms
    from tide_cache.reporting.run_pages import comparison_page
    from tide_cache.reporting.runs import read_run, run_names

    folders = [root for root in roots if isinstance(root, Path)]
    arms = make_arms([read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)])
    result = compare_arms(arms)
    figures = {"kind": "comparison", "arms": [asdict(arm) for arm in arms], "result": asdict(result)}
    return figures, comparison_page(arms, result)
