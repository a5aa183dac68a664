"""`tide-cache export`: write one view of every sample to a plain file."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tide_cache.config.settings import ExportFormat, PassName
from tide_cache.errors import RunFileError
from tide_cache.locations import cache_path
from tide_cache.places import require_cache

from .console import chatter_to_stderr, number, print_fields, print_json, size
from .options import Json
from .progress import ProgressReport


def export(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="Folder or URL of a complete cache.")],
    view: Annotated[int, typer.Option(min=0, help="Number of the view to export, from 0.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write; it must not exist.", show_default=False)],
    signal_pass: Annotated[
        PassName | None, typer.Option("--pass", help="Pass to export; by default the first in the cache.")
    ] = None,
    format: Annotated[ExportFormat | None, typer.Option(help="File format; by default from the file name.")] = None,
    student: Annotated[
        str | None, typer.Option(metavar="TOKENIZER", help="Student tokenizer, needed for --text.", show_default=False)
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Also write the student's tokens as text.")] = False,
    json: Json = False,
) -> None:
    """Write one view of every sample, with the teacher's signals, to a Parquet or JSON-lines file."""
    if text != (student is not None):
        given, missing = ("--text", "--student") if text else ("--student", "--text")
        raise RunFileError(f"{given}: found no {missing} with it; expected both, for the student's text, or neither")
    require_cache(cache_path(cache))
    with chatter_to_stderr():
        from tide_cache.inspecting.export import export_view

        with ProgressReport("export", "samples") as report:
            found = export_view(
                cache_path(cache),
                out,
                view,
                format=format,
                signal_pass=signal_pass,
                student=student,
                on_samples=report.update,
            )
    if json:
        print_json(asdict(found))
    else:
        print_fields(
            f"View {found.view} of cache {found.cache_id}",
            [
                ("file", f"{found.file}, {size(found.num_bytes)}"),
                ("pass", found.signal_pass),
                ("samples", number(found.num_samples)),
                ("temperatures", ", ".join(map(str, found.temperatures))),
                ("columns", ", ".join(found.columns)),
            ],
        )
