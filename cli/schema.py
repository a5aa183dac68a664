"""`tide-cache schema`: write the JSON Schemas of all documents that are read or written."""

from pathlib import Path
from typing import Annotated

import typer

from tide_cache.errors import RunFileError

from .console import chatter_to_stderr, complain, print_text

DRIFTED = 1


def schema(
    out: Annotated[Path | None, typer.Option(help="Write the schemas into this folder.", show_default=False)] = None,
    check: Annotated[
        Path | None, typer.Option(help="Check that this folder holds what would be written.", show_default=False)
    ] = None,
) -> None:
    """Write the schemas of run files, cache documents and Parquet columns, or check that they are current."""
    if (out is None) == (check is None):
        raise RunFileError("give either --out DIR, to write the schemas, or --check DIR, to compare them")
    with chatter_to_stderr():
        from .schema_files import drifted_schemas, write_schemas

        written = write_schemas(out) if out is not None else []
        drifted = drifted_schemas(check) if check is not None else []
    for path in written:
        print_text(str(path))
    if drifted:
        for fault in drifted:
            print_text(fault)
        complain(
            f"error: {check}: {len(drifted)} files are not what this release writes; run `make schemas` and commit them"
        )
        raise typer.Exit(DRIFTED)
