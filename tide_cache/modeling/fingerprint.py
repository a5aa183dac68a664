"""Hashes of a checkpoint's content."""

import hashlib
import json
from pathlib import Path

from tide_cache.hub import Repository, open_repository
from tide_cache.modeling.safetensors_loading import weight_files, weight_names
from tide_cache.progress import doing
from tide_cache.unreadable import is_file, told_apart

_BLOCK_BYTES = 1 << 22


def local_folder(location: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint with its weights, fetched from the hub if it is a name.

    Raises:
        ModelError: There is no such folder, and the hub cannot be reached or has no such name.
    """
    repository = open_repository(location, revision)
    repository.fetch(weight_names(repository.folder))
    return repository.folder


def checkpoint_fingerprint(folder: Path) -> dict[str, str]:
    """Return hashes of a checkpoint's configuration and weights.

    Returns:
        `config_sha256` over config.json, `weights_sha256` over names and bytes of the safetensors files that are
        loaded; other files do not matter.

    Raises:
        ModelError: A file is missing.
        UnreadableError: One cannot be read now.
    """
    files = weight_files(folder)
    digests = {}
    with doing(f"Hashing weights of {folder}", sum(path.stat().st_size for path in files)) as phase:
        for path in files:
            digest = hashlib.sha256()
            with told_apart(path), path.open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
                    phase.advance(len(block))
            digests[path.name] = digest.hexdigest()
    return _fingerprint(folder, digests)


def stated_fingerprint(repository: Repository) -> dict[str, str | None]:
    """Return the same for weights that may not be local: hashed if they are, otherwise as the hub states it.

    Args:
        repository: The repository, with its small files fetched.

    Returns:
        `weights_sha256` is None if the hub states none.
    """
    names = weight_names(repository.folder)
    if all(is_file(repository.folder / name) for name in names):
        return {**checkpoint_fingerprint(repository.folder)}
    stated = repository.stated_sha256(names)
    if set(names) <= stated.keys():
        return {**_fingerprint(repository.folder, stated)}
    return {**_fingerprint(repository.folder, {}), "weights_sha256": None}


def _fingerprint(folder: Path, digests: dict[str, str]) -> dict[str, str]:
    weights = hashlib.sha256("".join(f"{name}:{digests[name]}\n" for name in sorted(digests)).encode())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return {"config_sha256": hashlib.sha256(canonical).hexdigest(), "weights_sha256": weights.hexdigest()}


def weights_bytes(folder: Path) -> int | None:
    """Return the size of a checkpoint's safetensors files; None if there are none, for example for a hub name."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
