"""From one part of a mix to the files or datasets that it names."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tide_cache.corpus.rows import RawRow, Source
from tide_cache.corpus.spec import Part, local_path
from tide_cache.corpus.splits import USUAL_SPLITS, files_of_split, listed, require_split_of_file, splits_of, tells_split
from tide_cache.corpus.tables import is_saved_dataset, read_hub, read_parquet, read_saved_dataset
from tide_cache.corpus.text_files import read_json, read_jsonl, read_text
from tide_cache.errors import CorpusError
from tide_cache.unreadable import everything_in, is_there

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".txt")


def sources_of(part: Part, folder: Path, wanted: Container[str], notes: list[str]) -> tuple[Source, ...]:
    """Find what a part names: a file, a saved dataset, a folder of files (by name), or a hub dataset.

    Nothing is read or downloaded yet.

    Args:
        part: One piece of the mix.
        folder: Where relative names are looked up.
        wanted: Columns to decode where a format has columns.
        notes: Receives what is there but not read.

    Raises:
        CorpusError: Nothing is there, nothing that can be read, or nothing of the requested split.
        UnreadableError: What is there cannot be determined now.
    """
    path = local_path(part.name, folder)
    if not is_there(path):
        if _HUB_NAME.fullmatch(part.name) and _suffix(path) is None:
            return (Source(part.name, part.name, partial(read_hub, part.name, part.config, part.split, wanted)),)
        raise CorpusError(_missing(part.name, path))
    if part.config is not None:
        raise CorpusError(f"{path}: [name:{part.config}] selects a hub configuration, but this is local; leave it out")
    if not path.is_dir():
        if part.split is not None:
            require_split_of_file(path, part.split, str(path))
        return (_file_source(path, wanted),)
    if is_saved_dataset(path):
        return (Source(path.name, str(path), partial(read_saved_dataset, path, part.split, wanted)),)
    return _folder_sources(path, part.split, wanted, notes)


def _folder_sources(path: Path, split: str | None, wanted: Container[str], notes: list[str]) -> tuple[Source, ...]:
    """Choose files of a folder: those of a split at any depth or, without a split, all in the folder itself."""
    below = [file for file in everything_in(path) if file.is_file() and not _is_hidden(file.relative_to(path))]
    files = [file for file in below if file.parent == path]
    readable = [file.relative_to(path) for file in files if _suffix(file) is not None]
    nested = [file.relative_to(path) for file in below if file.parent != path and _suffix(file) is not None]
    if not readable and not (nested and split):
        hint = f"; its subfolders hold {len(nested)}: name one of them, or a split: [train:]" if nested else ""
        raise CorpusError(
            f"{path}: none of its {len(files)} files ends in {', '.join(_SUFFIXES)}; expected a folder of such files "
            f"or one that save_to_disk of datasets wrote{hint}"
        )
    if split is not None:
        chosen = [Path(file) for file in files_of_split([*readable, *nested], split, str(path))]
        nameless = [file for file in (*readable, *nested) if file not in chosen and not tells_split(file)]
    else:
        chosen, nameless = readable, nested
        counts = Counter(name for file in readable for name in splits_of(file) if name in USUAL_SPLITS)
        if len(counts) > 1:
            found = ", ".join(f"{name} ({count} files)" for name, count in sorted(counts.items()))
            notes.append(f"{path}: all splits are read together: {found}; [train:] after the name takes one")
    passed = [*nameless, *(file.relative_to(path) for file in below if _suffix(file) is None)]
    if passed:
        notes.append(f"{path}: {len(passed)} files not read: {listed(passed)}")
    return tuple(replace(_file_source(path / file, wanted), name=file.as_posix()) for file in chosen)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_source(path: Path, wanted: Container[str]) -> Source:
    suffix = _suffix(path)
    if suffix is None:
        raise CorpusError(
            f"{path}: found a file of unknown kind; expected a name ending in {', '.join(_SUFFIXES)}. "
            "Convert it, for example to JSON lines, or rename it."
        )
    readers: dict[str, Callable[[], Iterator[RawRow]]] = {
        ".json": partial(read_json, path),
        ".parquet": partial(read_parquet, path, wanted),
        ".txt": partial(read_text, path),
    }
    return Source(path.name, str(path), readers.get(suffix, partial(read_jsonl, path)))


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)


def _missing(name: str, path: Path) -> str:
    if not path.parent.is_dir():
        hint = f"The folder {path.parent} does not exist either."
    elif close := difflib.get_close_matches(path.name, os.listdir(path.parent)):
        hint = f"Did you mean {' or '.join(close)}?"
    else:
        hint = f"Nothing in {path.parent} has a similar name."
    return f"{path}: no such file or folder; found {name!r}, expected a path or a hub name like owner/name. {hint}"
