"""Pages of HTML: self-contained files that need no script, and in which every text of a corpus is escaped."""

from collections.abc import Mapping
from math import exp
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tide_cache.disk import write_whole
from tide_cache.errors import RunFileError
from tide_cache.inspecting.viewing import worth_showing
from tide_cache.version import __version__
from tide_cache.wording import number, percent, size, visible

GENERATOR = '<meta name="generator" content="tide-cache '
"""Marks our own pages, which may be overwritten."""

HEAD_BYTES = 1024


def render(template: str, title: str, sections: Mapping[str, str], **figures: Any) -> str:
    """Fill in a template.

    Args:
        template: File in `templates/`.
        title: Title of the page.
        sections: Titles of its sections, by id.
        figures: What the template shows; strings are escaped.
    """
    environment = Environment(
        loader=PackageLoader("tide_cache.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "size": size,
        "visible": visible,
        "duration": duration,
        "prob": lambda logprob: f"{exp(logprob):.2f}",
        "worth_showing": worth_showing,
    }
    return environment.get_template(template).render(
        title=title, sections=sections.items(), version=__version__, **figures
    )


def require_writable(out: Path, force: bool) -> None:
    """Raise an error if a page would overwrite a file that is not ours, or go into a cache.

    Args:
        out: File to write.
        force: Overwrite whatever is there.

    Raises:
        RunFileError: Says what exists there.
    """
    if not out.parent.is_dir():
        raise RunFileError(f"--out {out}: found no folder {out.parent}; make it first")
    if any((out.parent / name).is_file() for name in ("manifest.json", "plan.json")):
        raise RunFileError(f"--out {out}: {out.parent} is a cache, which holds its own files only; give another folder")
    if out.is_dir():
        raise RunFileError(f"--out {out}: found a folder, expected a file to write; give a name such as report.html")
    if out.exists() and not force:
        with out.open("rb") as file:
            if GENERATOR.encode() not in file.read(HEAD_BYTES):
                raise RunFileError(
                    f"{out}: found a file that is not a page of tide-cache; give another name with --out, or --force "
                    "to write over it"
                )


def write_page(out: Path, page: str) -> None:
    """Write a page; it appears whole or not at all.

    Raises:
        WriteError: The disk is full, or the folder cannot be written.
    """
    write_whole(out, page)


def duration(seconds: float) -> str:
    """Return a time in its largest unit."""
    for unit, length_s in (("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.1f} {unit}"
    return f"{seconds:.1f} s"
