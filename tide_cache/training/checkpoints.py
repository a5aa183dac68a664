"""Training checkpoints: the ranks' files, and a marker that decides whether they may be resumed.

The marker is written by rank 0 after every rank's save, last and atomically, and holds the hashes of
all files: a folder is opened only when its marker is valid and it holds exactly the files that the marker lists, byte
for byte. What the files hold is defined in `state.py`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tide_cache.config.base import Frozen
from tide_cache.disk import writing
from tide_cache.errors import CheckpointError, UnreadableError, WriteError, differing, fault_list
from tide_cache.progress import doing
from tide_cache.shards.files import LocalFiles, sync
from tide_cache.training.distributed import World
from tide_cache.training.meeting import wait_for_all
from tide_cache.unreadable import everything_in, is_there, told_apart

CHECKPOINTS = "checkpoints"
"""Folder inside the run's folder."""

MARKER = "committed.json"
FALL_BACK = "Remove this folder to fall back to the checkpoint before."
KEPT = 2
"""Number of checkpoints kept; older ones are removed after a new one is committed."""


class Marker(Frozen):
    """What makes a checkpoint resumable.

    Attributes:
        version: Version of the files' content.
        step: Optimizer steps taken.
        world_size: Ranks that saved; any number may resume.
        run: Parts of the run file and data identity that must be equal on resume.
        files: sha256 of every file, by name inside the folder.
    """

    version: Literal[1] = Field()
    step: int
    world_size: int
    run: dict[str, Any]
    files: dict[str, str]


def save_checkpoint(write: Callable[[Path], None], folder: Path, step: int, run: dict[str, Any], world: World) -> None:
    """Save a checkpoint and commit it; called by every rank.

    Args:
        write: Writes this rank's files into a folder that exists.
        folder: Folder of all checkpoints of the run.
        step: Optimizer steps taken.
        run: What `Marker.run` holds.
        world: This process.

    Raises:
        WriteError: The disk is full, or refuses; nothing of this checkpoint is left.
        UnreadableError: What was written cannot be read again; nothing of this checkpoint is left.
    """
    target = folder / f"step-{step:08d}"
    try:
        with writing(target):
            _save(write, target, folder, step, run, world)
    except (WriteError, UnreadableError):
        shutil.rmtree(target, ignore_errors=True)  # its bytes are needed for what follows
        raise


def _save(
    write: Callable[[Path], None], target: Path, folder: Path, step: int, run: dict[str, Any], world: World
) -> None:
    if world.is_first:
        shutil.rmtree(target, ignore_errors=True)  # left by a run that died before its marker
        target.mkdir(parents=True)
    wait_for_all(world)
    write(target)
    wait_for_all(world)
    if world.is_first:
        for path in sorted(target.rglob("*")):
            sync(path)
        marker = Marker(version=1, step=step, world_size=world.size, run=run, files=_hashes(target))
        LocalFiles().replace(target / MARKER, marker.model_dump_json(indent=2).encode())
        for old in committed_checkpoints(folder)[:-KEPT]:
            remove_checkpoint(old)
    wait_for_all(world)


def remove_checkpoint(path: Path) -> None:
    """Remove a committed checkpoint."""
    (path / MARKER).unlink()  # first: a half-removed folder must not look whole
    shutil.rmtree(path)


def committed_checkpoints(folder: Path) -> list[Path]:
    """List checkpoints that have a marker, oldest first."""
    with told_apart(folder):
        names = sorted(os.listdir(folder)) if is_there(folder) else []  # `glob` skips what it may not enter
    return [folder / name for name in names if re.fullmatch(r"step-\d{8}", name) and is_there(folder / name / MARKER)]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files are the ones committed, of this run."""

    path: Path
    step: int


def find_checkpoint(folder: Path, run: dict[str, Any]) -> Checkpoint:
    """Find the newest committed checkpoint and check that this run may go on from it; nothing is loaded.

    Args:
        folder: Folder of all checkpoints of the run.
        run: Must equal the marker's.

    Raises:
        CheckpointError: There is none, it belongs to another run, or its files are not the ones committed.
        UnreadableError: A file cannot be read now.
    """
    committed = committed_checkpoints(folder)
    if not committed:
        raise CheckpointError(
            f"{folder}: found no committed checkpoint to resume; to start anew, leave --resume out and give a new "
            f"train.out, or remove {folder.parent}"
        )
    path = committed[-1]
    marker = read_marker(path)
    if faults := [
        f"{name}: checkpoint has {found!r}, run declares {declared!r}"
        for name, found, declared in differing(marker.run, run)
    ]:
        way_out = "Resume with the same run file, or change train.out."
        raise CheckpointError(fault_list(f"{path} belongs to another run:", faults, way_out))
    with doing(f"Checking the checkpoint of step {marker.step}"):
        _require_committed_files(path, marker)
    return Checkpoint(path, marker.step)


def read_marker(path: Path) -> Marker:
    """Read a checkpoint's marker.

    Raises:
        CheckpointError: It is missing or damaged.
        UnreadableError: It cannot be read now.
    """
    try:
        with told_apart(path / MARKER):
            return Marker.model_validate_json((path / MARKER).read_bytes())
    except OSError as error:
        reason = error.strerror
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors())
    raise CheckpointError(f"{path / MARKER}: no valid marker ({reason}); remove the folder to fall back")


def _require_committed_files(folder: Path, marker: Marker) -> None:
    """Refuse a folder that holds anything but the committed files, before reading any of it.

    Raises:
        CheckpointError: Lists what was changed, added, is missing, or is not a plain file.
    """
    if strange := _strange(folder):
        raise CheckpointError(
            f"{folder}: {', '.join(strange)}: not a plain file; a checkpoint holds nothing else. {FALL_BACK}"
        )
    found = _hashes(folder)
    changed = [f"{name} changed since" for name in sorted(found.keys() & marker.files.keys())
               if found[name] != marker.files[name]]  # fmt: skip
    changed += [f"{name} was added since" for name in sorted(found.keys() - marker.files.keys())]
    changed += [f"{name} is missing since" for name in sorted(marker.files.keys() - found.keys())]
    if changed or marker.step != _step_of(folder):
        changed = changed or [f"the folder was renamed from step {marker.step} since"]
        raise CheckpointError(f"{folder}: {', '.join(changed)} the checkpoint was committed. {FALL_BACK}")


def _strange(folder: Path) -> list[str]:
    """Return what is neither a file nor a folder, such as a link."""
    paths = [folder, *everything_in(folder)]
    return [path.name for path in paths if path.is_symlink() or not (path.is_file() or path.is_dir())]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in everything_in(folder) if path.is_file() and path != folder / MARKER]
    result = {}
    for path in files:
        with told_apart(path), path.open("rb") as stream:
            result[str(path.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return result


def as_json(value: Any) -> Any:
    """Return a value as JSON would return it, so that equal runs compare equal."""
    return json.loads(json.dumps(value))
