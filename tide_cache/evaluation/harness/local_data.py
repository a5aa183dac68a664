"""Task data from a local folder, for machines without a network.

A folder holds data sets in the hub's layout: `hf download --repo-type dataset NAME --local-dir FOLDER/NAME` fills it.
Plain JSON lines are also read, and GSM8K and HumanEval under their authors' names.
"""

import fnmatch
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tide_cache.errors import EvaluationError
from tide_cache.unreadable import is_file, names_in, told_apart

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")

AUTHORS_NAMES = {
    ("openai/gsm8k", "test"): "gsm8k_test",
    ("openai/gsm8k", "train"): "gsm8k_train",
    ("openai/openai_humaneval", "test"): "HumanEval",
}
"""Files as their authors published them, without suffix; searched in the folder itself."""


@dataclass(frozen=True)
class Wanted:
    """One split of a data set.

    Attributes:
        dataset: Name on the hub.
        config: Its configuration; None if there is only one.
        split: For example `test`.
    """

    dataset: str
    config: str | None
    split: str

    @property
    def short_name(self) -> str:
        """The data set's name without its owner."""
        return self.dataset.rpartition("/")[2]

    def patterns(self) -> list[str]:
        """Return the names to search for, in this order, relative to the folder and without suffix."""
        name = self.short_name
        authors = AUTHORS_NAMES.get((self.dataset, self.split))
        folders = [f"{name}/{self.config}"] if self.config else [f"{name}/data", f"{name}/{name}", name]
        return [*([authors] if authors else []), *(f"{folder}/{self.split}" for folder in folders)]


def find_files(folder: Path, wanted: Iterable[Wanted]) -> dict[Wanted, tuple[Path, ...]]:
    """Return the files of each split; pieces of a split are ordered by name.

    Raises:
        EvaluationError: Files are missing; lists all, with the places searched.
        UnreadableError: A folder cannot be read now.
    """
    found = {entry: _files(folder, entry) for entry in wanted}
    if missing := [entry for entry, files in found.items() if not files]:
        first = missing[0]
        raise EvaluationError(
            f"--task-data {folder}: found no data for\n"
            + "\n".join(_describe_missing(folder, missing))
            + f"\neach with {', '.join(SUFFIXES)}, or in pieces as NAME-00000-of-00001.parquet. Where there is a "
            f"network: hf download --repo-type dataset {first.dataset} --local-dir {folder / first.short_name}; or "
            "leave tasks out, by naming the others: --tasks"
        )
    return found


def _describe_missing(folder: Path, missing: Sequence[Wanted]) -> Iterator[str]:
    """Yield a line for each data set and split; only the first of many configurations is written out."""
    for (dataset, split), entries in groupby(missing, key=lambda entry: (entry.dataset, entry.split)):
        first, *others = entries
        places = ", ".join(str(folder / pattern) for pattern in first.patterns())
        more = f" and {len(others)} other configurations" if others else ""
        yield f"  - {dataset}, {split}: looked for {places}{more}"


def read_rows(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the rows of one split.

    Raises:
        EvaluationError: A file does not have the format of its name, or there are no rows.
        UnreadableError: A file cannot be read now.
    """
    files = list(files)
    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            with told_apart(path):
                rows += _rows(path)
        except (OSError, ValueError, EOFError) as error:
            raise EvaluationError(f"{path}: cannot be read: {error}; fetch it again") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{', '.join(map(str, files))}: found no rows, or rows that are not objects")
    return rows


def _files(folder: Path, wanted: Wanted) -> tuple[Path, ...]:
    for pattern in wanted.patterns():
        for suffix in SUFFIXES:
            if is_file(whole := folder / f"{pattern}{suffix}"):
                return (whole,)
            below = (folder / pattern).parent
            if pieces := fnmatch.filter(names_in(below), f"{wanted.split}-[0-9]*{suffix}"):
                return tuple(below / piece for piece in pieces)
    return ()


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8")
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]
