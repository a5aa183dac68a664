"""Publication of files in a cache: complete and durable under the final name, or not at all.

A name is used once: two writers can never mix their bytes, and a second publication of the same bytes changes nothing.
Only a manifest that lists another pass replaces an older one.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tide_cache.disk import writing
from tide_cache.errors import ShardCorruptError
from tide_cache.locations import CachePath
from tide_cache.shards.files import Files
from tide_cache.shards.remote_files import files_of

_HASH_CHUNK_BYTES = 8 << 20


class OtherBytesError(ShardCorruptError):
    """The name is taken by bytes other than those to be published."""


def publish(path: CachePath, data: bytes, files: Files | None = None) -> None:
    """Publish a file under its final name. A second publication of the same bytes changes nothing.

    Args:
        path: Final name; its folder exists.
        data: The bytes of the file.
        files: The file system; by default the one that the path names.

    Raises:
        OtherBytesError: The name is taken by other bytes; they are left as they are.
        TideCacheError: The file system refused, with path and reason; nothing was published.
    """
    files = files or files_of(path)
    with naming_refusals(path):
        try:
            files.create(path, data)
        except FileExistsError:
            _require_same_bytes(path, data, files)
            files.sync_folder(path.parent)  # the writer of these bytes may have died before it did this


def publish_json(path: CachePath, document: Any, files: Files | None = None) -> None:
    """Publish a small document as canonical JSON with a final newline."""
    publish(path, canonical_json(document) + b"\n", files)


def replace_json(path: CachePath, document: Any, files: Files | None = None) -> None:
    """Replace a small document: at every moment there is either the old or the new one, complete.

    Raises:
        TideCacheError: The file system refused, with path and reason; the older one is kept.
    """
    with naming_refusals(path):
        (files or files_of(path)).replace(path, canonical_json(document) + b"\n")


def canonical_json(document: Any) -> bytes:
    """Return the canonical JSON of a document: sorted keys, no spaces, UTF-8; NaN and infinities are refused."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def file_sha256(path: CachePath, files: Files | None = None) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    files = files or files_of(path)
    digest = hashlib.sha256()
    start = 0
    while part := files.read(path, start, _HASH_CHUNK_BYTES):
        digest.update(part)
        start += len(part)
    return digest.hexdigest()


@contextmanager
def naming_refusals(path: CachePath) -> Iterator[None]:
    """Turn a refusal of the file system into an error that names the file and the reason.

    Raises:
        WriteError: Instead of an OSError.
    """
    with writing(path, kept="nothing was published"):
        yield


def _require_same_bytes(path: CachePath, data: bytes, files: Files) -> None:
    expected = hashlib.sha256(data).hexdigest()
    found = file_sha256(path, files)
    if found != expected:
        raise OtherBytesError(
            f"{path}: already there with other bytes: found sha256 {found}, this run computed {expected}.\n"
            "Shards are a pure function of the cache's identity, so one of the two is damaged or was computed on "
            "another machine. Delete this file and the .json next to it, and run the same build command again."
        )
