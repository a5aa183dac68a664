"""Names for what a checkpoint holds, by content."""

import hashlib
import json
import re
from pathlib import Path

from huggingface_hub import snapshot_download

from tide_cache.errors import ModelError
from tide_cache.locations import nowhere
from tide_cache.progress import doing

CHECKPOINT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOCK_BYTES = 1 << 22


def local_folder(location: str, revision: str | None = None) -> Path:
    """Give the folder of a checkpoint, fetching it from the hub when it is a name; pickles are never fetched.

    Raises:
        ModelError: There is no such folder, and the hub cannot be reached or does not have it.
    """
    folder = Path(location)
    if folder.is_dir():
        return folder
    if reason := nowhere(location):
        raise ModelError(reason)
    try:
        with doing(f"Fetching {location}"):
            return Path(snapshot_download(location, revision=revision, allow_patterns=list(CHECKPOINT_FILES)))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{location}: no such folder, and the hub does not give it ({reason}); check the name, or "
            "give a local folder"
        ) from None


def resolved_commit(location: str, folder: Path, revision: str | None) -> str | None:
    """Give the commit that a checkpoint was read at, which a branch name, or none, does not say.

    Args:
        location: As given: a folder or a hub name.
        folder: What `local_folder` gave for it.
        revision: As given.

    Returns:
        40 hex digits for a hub name; for a folder `revision` as it is, since nothing resolves it.

    Raises:
        ModelError: The hub's local cache does not say which commit this is.
    """
    if Path(location).is_dir():
        return revision
    if not _COMMIT.fullmatch(folder.name):
        raise ModelError(
            f"{location}: read from {folder}, whose name is no commit of 40 hex digits; give teacher.revision, or a "
            "local folder"
        )
    return folder.name


def checkpoint_fingerprint(folder: Path) -> dict[str, str]:
    """Hash a checkpoint's configuration and weights.

    Returns:
        `config_sha256` over config.json, `weights_sha256` over names and bytes of the safetensors files.

    Raises:
        ModelError: There are no safetensors files.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: found no .safetensors file; convert the weights, pickles are never read")
    weights = hashlib.sha256()
    with doing(f"Hashing weights of {folder}", weights_bytes(folder)) as phase:
        for path in files:
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
                    phase.advance(len(block))
            weights.update(f"{path.name}:{digest.hexdigest()}\n".encode())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return {"config_sha256": hashlib.sha256(canonical).hexdigest(), "weights_sha256": weights.hexdigest()}


def weights_bytes(folder: Path) -> int | None:
    """Give the size of a checkpoint's safetensors files; None where there is none, as for a hub name."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
