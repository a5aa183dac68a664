"""Whether the files of a corpus are those that were read before: by name, size and time, as `make` decides."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tide_cache.config.base import Frozen
from tide_cache.corpus.spec import local_path, parse_spec
from tide_cache.unreadable import everything_in, is_there


class FileStamp(Frozen):
    """One file of a corpus.

    Attributes:
        name: Its path from the folder where relative names are looked up.
        size: Bytes.
        modified_ns: When it was changed last, in nanoseconds since 1970.
    """

    name: str
    size: Annotated[int, Field(ge=0)]
    modified_ns: int


def stamps_of(spec: str, folder: Path) -> tuple[FileStamp, ...] | None:
    """Return the files that a corpus names, all of a folder's; None where some of it is on a hub.

    Args:
        spec: As for `open_corpus`.
        folder: As for `open_corpus`.

    Raises:
        RunFileError: The spec cannot be understood.
        UnreadableError: What is there cannot be determined now.
    """
    stamps: list[FileStamp] = []
    for part in parse_spec(spec, folder):
        path = local_path(part.name, folder)
        if not is_there(path):
            return None
        files = sorted(file for file in everything_in(path) if file.is_file()) if path.is_dir() else [path]
        for file in files:
            found = file.stat()
            name = os.path.relpath(file, folder)
            stamps.append(FileStamp(name=name, size=found.st_size, modified_ns=found.st_mtime_ns))
    return tuple(stamps)
