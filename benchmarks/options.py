"""What a benchmark is told, and where the material lies that several share."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class MaterialMissing(Exception):
    """The shared folder lacks what a benchmark reads."""


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes:
        rows: Rows of the corpus to work on.
        repeats: Timed rounds; in each, everything that is compared runs once.
        teacher: Folder of a trained teacher, where a benchmark looks at one; None for the benchmark's own choice.
        student: Likewise of a trained student.
        cache: Likewise of a complete cache.
    """

    rows: int = 2000
    repeats: int = 5
    teacher: Path | None = None
    student: Path | None = None
    cache: Path | None = None


def shared_file(name: str) -> Path:
    """Find a file or folder of the shared material.

    Args:
        name: Path below the shared folder.

    Raises:
        MaterialMissing: It is not there; says where it was looked for.
    """
    folder = Path(os.environ.get("TIDE_CACHE_SHARED", ROOT.parent / "shared"))
    if not (path := folder / name).exists():
        raise MaterialMissing(f"{path} is missing; set TIDE_CACHE_SHARED to the folder that holds {name}.")
    return path
