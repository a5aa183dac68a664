"""Where words go: results to stdout, everything else to stderr, and nothing of other libraries to stdout."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from tide_cache.disk import writing
from tide_cache.errors import WriteError
from tide_cache.launchers import launcher_names
from tide_cache.wording import BARS, PLAIN_BARS, number, percent, size

__all__ = [
    "chatter_to_stderr",
    "messages",
    "number",
    "percent",
    "print_fields",
    "print_json",
    "print_table",
    "print_text",
    "results",
    "say",
    "size",
    "spark_bars",
]

PIPE_WIDTH = 160
"""Width of a table that is not on a terminal; rich would fold it at 80 columns."""

PLAIN_SIGNS = str.maketrans({"⟦": "[[", "⟧": "]]", "␣": "_", "↵": "\\n"})
"""Replacements for our own signs where the terminal's encoding lacks them."""


def results() -> Console:
    """Return the console of results: stdout."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def messages() -> Console:
    """Return the console of messages: stderr; one for all, so that lines and bars of several places do not collide."""
    return _messages(sys.stderr)


@lru_cache(maxsize=1)
def _messages(stream: TextIO) -> Console:
    return Console(stderr=True, highlight=False)


def is_quiet() -> bool:
    """Return whether only results and errors are wanted; see `verbosity`."""
    return os.environ.get("TIDE_CACHE_LOG") == "quiet"


def say(text: str) -> None:
    """Tell the user something that is neither a result nor an error; nothing with `--quiet`."""
    if not is_quiet():
        complain(text)


def complain(text: str) -> None:
    """Tell the user what went wrong and how to fix it; a log that cannot be written must not end hours of work."""
    with contextlib.suppress(OSError):
        messages().print(text, markup=False, soft_wrap=True)


def stamp() -> str:
    """Return the prefix of a log line: the time and, where there are several processes, the rank of this one."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if (names := launcher_names(os.environ)) is None or os.environ[names[1]] == "1":
        return f"{now} "
    rank, world = (os.environ[name] for name in names)
    return f"{now} rank {rank}/{world} "


def print_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
    with _to_stdout():
        print(text if _writable(text) == text else json.dumps(document, indent=2, default=str), flush=True)


def print_text(text: str) -> None:
    """Print a result unchanged."""
    with _to_stdout():
        results().print(_writable(text), markup=False, soft_wrap=True)


def print_fields(title: str, fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values as a table without a heading."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, _literal(value))
    _print_titled(title, table)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = (0,)
) -> None:
    """Print a table of text and numbers.

    Args:
        title: Printed above the table.
        columns: Headings.
        rows: Cells as text.
        text_columns: Indices of text columns, which are left-aligned; the others are numbers.
    """
    table = Table()
    for index, name in enumerate(columns):
        is_text = index in text_columns
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


def _print_titled(title: str, table: Table) -> None:
    """Print a title above a table; rich's own titles are folded at the table's width."""
    console = results()
    with _to_stdout():
        console.print(_writable(title), style="bold", markup=False, soft_wrap=True)
        console.print(table)


@contextlib.contextmanager
def _to_stdout() -> Iterator[None]:
    """Report a stdout that cannot be written, such as a file on a full disk, like any other file.

    Raises:
        WriteError: It cannot be written. Buffered output is dropped, or Python would try again at exit.
    """
    try:
        with writing("standard output"):
            yield
            sys.stdout.flush()
    except WriteError:
        with contextlib.suppress(OSError, ValueError):  # a test's stdout has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def spark_bars() -> str:
    """Return the sparkline bars that stdout's encoding can write."""
    return BARS if _writable(BARS) == BARS else PLAIN_BARS


def _writable(text: str) -> str:
    """Replace what stdout's encoding lacks: corpora hold any text, and a narrow terminal must not end a command."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(PLAIN_SIGNS)
        return plain.encode(encoding, errors="backslashreplace").decode(encoding)
    return text


def _literal(text: str) -> str:
    """Keep rich from reading square brackets as style."""
    return _writable(text).replace("[", "\\[")
