"""Marks a folder as a demonstration's; checked before anything heavy is imported."""

import json
from dataclasses import asdict
from pathlib import Path

from tide_cache.demo.design import DemoSize
from tide_cache.errors import RunFileError

MARKER = "demo.json"
"""File with the sizes of a demonstration."""


def claim(root: Path, size: DemoSize) -> None:
    """Mark a new folder as a demonstration's, or check that it is.

    Args:
        root: The folder.
        size: Sizes of the demonstration.

    Raises:
        RunFileError: It is a file, or holds something else or a demonstration of other sizes.
    """
    if root.exists() and not root.is_dir():
        raise RunFileError(f"{root}: is a file; give --out a new folder")
    marker, content = root / MARKER, json.dumps(asdict(size), indent=2) + "\n"
    if marker.exists():
        if marker.read_text(encoding="utf-8") != content:
            raise RunFileError(f"{root}: found a demonstration of other sizes; give --out another folder, or remove it")
        return
    if root.exists() and any(root.iterdir()):
        raise RunFileError(f"{root}: found files that no demonstration wrote; give --out a new folder")
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(content, encoding="utf-8")
