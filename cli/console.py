"""Where words go: results to stdout, everything else to stderr, and nothing of other libraries to stdout."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 160
"""Columns of a table that is not on a terminal; rich would fold it at 80."""


def results() -> Console:
    """Give the console of results: stdout."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def messages() -> Console:
    """Give the console of messages: stderr."""
    return Console(stderr=True, highlight=False)


def is_quiet() -> bool:
    """Whether only results and errors are wanted; see `verbosity`."""
    return os.environ.get("TIDE_CACHE_LOG") == "quiet"


def say(text: str) -> None:
    """Tell the user something that is neither a result nor an error; nothing with `--quiet`."""
    if not is_quiet():
        complain(text)


def complain(text: str) -> None:
    """Tell the user what went wrong, and the way out."""
    messages().print(text, markup=False, soft_wrap=True)


def stamp() -> str:
    """Give the beginning of a line of a log: the time and, where there are several processes, which one this is."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    return f"{now} rank {rank}/{world} " if rank is not None and world != "1" else f"{now} "


def print_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str), flush=True)


def print_text(text: str) -> None:
    """Print a result as it stands."""
    results().print(text, markup=False, soft_wrap=True)


def print_fields(title: str, fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values as a table without a heading."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, _literal(value))
    _print_titled(title, table)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], num_text_columns: int = 1) -> None:
    """Print a table; the first columns hold text, the others numbers.

    Args:
        title: Above the table.
        columns: Headings.
        rows: As text.
        num_text_columns: How many of the columns are aligned to the left.
    """
    table = Table()
    for index, name in enumerate(columns):
        is_text = index < num_text_columns
        table.add_column(name, justify="left" if is_text else "right", overflow="fold" if is_text else "ellipsis")
    for row in rows:
        table.add_row(*map(_literal, row))
    _print_titled(title, table)


@contextlib.contextmanager
def chatter_to_stderr() -> Iterator[None]:
    """Send what libraries print meanwhile to stderr, from Python and from C alike: stdout is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash for none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Write a share."""
    return "-" if value is None else f"{value:.1%}"


def size(num_bytes: float) -> str:
    """Write a number of bytes in the largest unit that keeps it at 1 or more."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def _print_titled(title: str, table: Table) -> None:
    """Print a title above a table; rich's own titles are folded at the table's width."""
    console = results()
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)


def _literal(text: str) -> str:
    """Keep rich from reading square brackets as style."""
    return text.replace("[", "\\[")
