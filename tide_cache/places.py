"""Check that caches and checkpoints are where a command was told, before importing anything heavy to read them."""

import json
from pathlib import Path
from typing import Any

from tide_cache.errors import CacheIncompleteError, ModelError, RunFileError, first_line
from tide_cache.families import FAMILIES, Family, find_family, nearest_family
from tide_cache.locations import CachePath, nowhere
from tide_cache.unreadable import is_file, is_there, told_apart


def require_cache(root: CachePath) -> None:
    """Refuse a folder that holds no cache, finished or not; an object store is not checked.

    Raises:
        CacheIncompleteError: It has neither document.
    """
    if isinstance(root, Path) and not any(is_there(root / name) for name in ("manifest.json", "plan.json")):
        raise no_cache(root)


def no_cache(root: CachePath) -> CacheIncompleteError:
    """Make the error for a folder that holds no cache."""
    return CacheIncompleteError(
        f"{root}: no cache here: found neither manifest.json nor plan.json.\n"
        "Give the folder that `tide-cache build-teacher-shards` wrote (build.out of its run file)."
    )


def require_checkpoint(location: str) -> None:
    """Refuse what is neither a usable checkpoint folder nor a hub name; the hub is not asked.

    Raises:
        ModelError: There is no such folder, or its config.json cannot be read, or has an unsupported model_type.
    """
    if reason := nowhere(location):
        raise ModelError(reason)
    folder = Path(location)
    if is_file(folder / "config.json"):
        require_family(location, read_config(location, folder / "config.json"))


def read_config(location: str, path: Path) -> dict[str, Any]:
    """Read a config.json.

    Args:
        location: Of the checkpoint, for messages.
        path: Of the file.

    Raises:
        ModelError: It is not a JSON object.
        UnreadableError: It cannot be read now.
    """
    try:
        with told_apart(path):
            raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise no_config(location, error) from None
    if not isinstance(raw, dict):
        raise ModelError(f"{location}/config.json: found {type(raw).__name__}, expected an object")
    return raw


def no_config(location: str, error: Exception) -> ModelError:
    """Make the error for a config.json that cannot be read."""
    reason = first_line(error)
    return ModelError(
        f"{location}: found no readable config.json ({reason}); expected a checkpoint folder in "
        "Hugging Face layout or the name of one on the hub"
    )


def require_family(location: str, raw: dict[str, Any]) -> Family:
    """Return the family of a configuration.

    Args:
        location: Of the checkpoint, for messages.
        raw: Its configuration.

    Raises:
        ModelError: Nothing here loads it; names the nearest family that is loaded, and what differs.
    """
    if (family := find_family(raw)) is not None:
        return family
    own_code, (nearest, differences) = own_code_of(raw), nearest_family(raw)
    asks = f" It asks for its own code ({own_code})." if own_code else ""
    supported = ", ".join(sorted({name for family in FAMILIES.values() for name in family.model_types}, key=str.lower))
    raise ModelError(
        f"{location}: model_type {str(raw.get('model_type'))!r} is not supported; supported: {supported}.{asks} The "
        f"nearest is {nearest.name} ({nearest.models}), from which it differs: {'; '.join(differences)}. "
        "Remote model code is never run; `tide-cache doctor --teachers` lists what loads, docs/teachers.md says how to "
        "add an adapter."
    )


def own_code_of(raw: dict[str, Any]) -> str:
    """Name the Python code that a configuration asks for."""
    named = raw.get("auto_map")
    return ", ".join(sorted({str(name) for name in named.values()})) if isinstance(named, dict) else ""


def require_new(out: Path) -> None:
    """Refuse an output folder that already exists.

    Raises:
        RunFileError: It exists.
    """
    if out.exists():
        raise RunFileError(f"--out {out}: already exists; give a new folder")
