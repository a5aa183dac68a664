"""From one part of a mix to the files or datasets that it names."""

import difflib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tide_cache.corpus.rows import RawRow, Source
from tide_cache.corpus.spec import Part, local_path
from tide_cache.corpus.tables import is_saved_dataset, read_hub, read_parquet, read_saved_dataset
from tide_cache.corpus.text_files import read_json, read_jsonl, read_text
from tide_cache.errors import CorpusError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".txt")


def sources_of(part: Part, folder: Path, wanted: frozenset[str]) -> tuple[Source, ...]:
    """Find what a part names: a file, a saved dataset, a folder of files (by name), or a hub dataset.

    Nothing is read and nothing is downloaded yet.

    Args:
        part: One piece of the mix.
        folder: Where relative names are looked up.
        wanted: Columns to decode where a format has columns.

    Raises:
        CorpusError: Nothing lies there, or nothing that can be read.
    """
    path = local_path(part.name, folder)
    if not os.path.exists(path):
        if _HUB_NAME.fullmatch(part.name) and _suffix(path) is None:
            return (Source(part.name, part.name, partial(read_hub, part.name, part.config, part.split, wanted)),)
        raise CorpusError(_missing(part.name, path))
    if part.config is not None:
        raise CorpusError(f"{path}: [name:{part.config}] selects a hub configuration, but this is local; leave it out")
    if not path.is_dir():
        return (_file_source(path, wanted),)
    if is_saved_dataset(path):
        return (Source(path.name, str(path), partial(read_saved_dataset, path, part.split, wanted)),)
    return _folder_sources(path, wanted)


def _folder_sources(path: Path, wanted: frozenset[str]) -> tuple[Source, ...]:
    try:
        files = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise CorpusError(f"{path}: cannot be listed: {error.strerror}; check its permissions") from None
    readable = tuple(_file_source(file, wanted) for file in files if _suffix(file) is not None)
    if not readable:
        raise CorpusError(
            f"{path}: none of its {len(files)} files ends in {', '.join(_SUFFIXES)}; expected a folder of such files "
            "or one that save_to_disk of datasets wrote"
        )
    return readable


def _file_source(path: Path, wanted: frozenset[str]) -> Source:
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
