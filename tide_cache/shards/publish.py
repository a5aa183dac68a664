"""How a file comes to lie in a cache: whole and durable under its final name, or not at all.

Bytes go to a temporary file in the same folder, are forced to the device, and get their final name by an exclusive
link, so a crash at any moment leaves either no file or the whole file, and two writers can never mix theirs. Only a
manifest that comes to list another pass replaces an older one, by a rename.
"""

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tide_cache.errors import ShardCorruptError, TideCacheError
from tide_cache.shards.files import LOCAL_FILES, LocalFiles

_HASH_CHUNK_BYTES = 8 << 20
_TEMPORARY_SUFFIX = ".tmp"


def publish(path: Path, data: bytes, files: LocalFiles = LOCAL_FILES) -> None:
    """Put a file under its final name. A second publication of the same bytes changes nothing.

    Args:
        path: Final name; its folder exists.
        data: All of the file.
        files: The file system.

    Raises:
        ShardCorruptError: The name is taken by other bytes; they are left as they are.
        TideCacheError: The file system refused, with path and reason; nothing was published.
    """
    with _written(path, data, files) as temporary:
        try:
            files.link(temporary, path)
        except FileExistsError:
            _require_same_bytes(path, data, files)


def publish_json(path: Path, document: Any, files: LocalFiles = LOCAL_FILES) -> None:
    """Publish a small document as canonical JSON with a final newline."""
    publish(path, canonical_json(document) + b"\n", files)


def replace_json(path: Path, document: Any, files: LocalFiles = LOCAL_FILES) -> None:
    """Put a small document in the place of an older one: at every moment there is the one or the other, whole.

    Raises:
        TideCacheError: The file system refused, with path and reason; the older one is still there.
    """
    with _written(path, canonical_json(document) + b"\n", files) as temporary:
        files.rename(temporary, path)


def canonical_json(document: Any) -> bytes:
    """The one JSON form of a document: sorted keys, no spaces, UTF-8; NaN and infinities are refused."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def file_sha256(path: Path, files: LocalFiles = LOCAL_FILES) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    start = 0
    while part := files.read(path, start, _HASH_CHUNK_BYTES):
        digest.update(part)
        start += len(part)
    return digest.hexdigest()


def remove_leftovers(folder: Path, files: LocalFiles = LOCAL_FILES) -> None:
    """Remove temporary files of writers of this host that are no longer running; others are left alone."""
    for name in files.list_folder(folder):
        host, _, process = name.removesuffix(_TEMPORARY_SUFFIX).rpartition("-")[0].rpartition("-")
        is_temporary = name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX) and process.isdigit()
        if is_temporary and host.endswith(f".{_host()}") and not _is_running(int(process)):
            files.remove(folder / name)


@contextmanager
def _written(path: Path, data: bytes, files: LocalFiles) -> Iterator[Path]:
    """A durable temporary file beside `path`, for the caller to give it its name; then the folder is made durable."""
    temporary = path.with_name(f".{path.name}.{_writer_prefix()}{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
    try:
        files.write_new(temporary, data)
        yield temporary
        files.sync_folder(path.parent)
    except OSError as error:
        raise TideCacheError(
            f"{path}: cannot be written: {error.strerror} (errno {error.errno}); nothing was published.\n"
            "Mend the cause (free space, quota, permissions) and run the same command again."
        ) from error
    finally:
        files.remove(temporary)


def _require_same_bytes(path: Path, data: bytes, files: LocalFiles = LOCAL_FILES) -> None:
    expected = hashlib.sha256(data).hexdigest()
    found = file_sha256(path, files)
    if found != expected:
        raise ShardCorruptError(
            f"{path}: already there with other bytes: found sha256 {found}, this run computed {expected}.\n"
            "Shards are a pure function of the cache's identity, so one of the two is damaged or was computed on "
            "another machine. Delete this file and the .json beside it, and run the same build command again."
        )


def _writer_prefix() -> str:
    return f"{_host()}-{os.getpid()}-"


def _host() -> str:
    return "".join(character if character.isalnum() else "_" for character in socket.gethostname())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
