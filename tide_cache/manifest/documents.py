"""How the JSON documents of a cache are read: with a size limit, strictly, and never from a newer format.

A document is external data, possibly damaged or hostile: its size is checked before it is read, and nothing is coerced,
defaulted or ignored.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from tide_cache.config.base import Frozen
from tide_cache.errors import CacheMismatchError, ShardCorruptError
from tide_cache.locations import CachePath
from tide_cache.shards import NEWEST_VERSION, Files

Document = TypeVar("Document", bound=Frozen)


def read_document(
    path: CachePath,
    model: type[Document] | Callable[[int], type[Document]],
    max_bytes: int,
    files: Files,
) -> Document:
    """Read one JSON document of a cache.

    Args:
        path: The document.
        model: Its model, which has a field `format_version`; or a function that returns it for the version found.
        max_bytes: A larger document is refused unread.
        files: The file system.

    Raises:
        FileNotFoundError: There is no such document; the caller knows what that means.
        CacheMismatchError: It was written in a newer format.
        ShardCorruptError: It is too large, not UTF-8, not JSON, repeats a key, or does not fit the model.
    """
    try:
        size = files.size(path)
        # up to the limit, not `size`: a manifest can be replaced by a longer one in between
        data = files.read(path, 0, max_bytes) if size <= max_bytes else b""
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ShardCorruptError(f"{path}: cannot be read: {error.strerror}. {_way_out(path)}") from None
    if size > max_bytes:
        raise ShardCorruptError(f"{path}: found {size} bytes, expected at most {max_bytes}; this is no such document.")
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refused_constant)
    except (ValueError, RecursionError) as error:
        raise ShardCorruptError(f"{path}: not a document of a cache: {error}. {_way_out(path)}") from None
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if type(version) is not int:
        raise ShardCorruptError(f"{path}: found format_version {version!r}, expected a number. {_way_out(path)}")
    if version > NEWEST_VERSION:
        raise CacheMismatchError(
            f"{path}: format version {version}; this release reads up to version {NEWEST_VERSION}.\n"
            f"Install a release of tide-cache that reads format version {version}."
        )
    return parse_document(path, model if isinstance(model, type) else model(version), data)


def parse_document(path: CachePath, model: type[Document], data: bytes) -> Document:
    """Return a document by its model; its form was checked.

    Args:
        path: The document, for the message.
        model: Its model.
        data: UTF-8 of JSON.

    Raises:
        ShardCorruptError: It does not fit the model.
    """
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        shown = error.errors(include_url=False)[:8]
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or '(all)'}: {fault['msg']}" for fault in shown)
        raise ShardCorruptError(f"{path}: not what the format says: {faults}. {_way_out(path)}") from None


def _without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(items)
    if len(result) != len(items):
        raise ValueError("a key occurs twice")
    return result


def _refused_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _way_out(path: CachePath) -> str:
    return f"Restore {path.name} from a copy, or delete it and run the same `tide-cache build-teacher-shards` again."
