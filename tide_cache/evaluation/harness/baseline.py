"""The undistilled checkpoint that a student was trained from: a score means little without its baseline's."""

import json
from pathlib import Path

from tide_cache.errors import RunFileError
from tide_cache.locations import nowhere
from tide_cache.unreadable import told_apart

_WAYS_OUT = (
    "Give the undistilled checkpoint: --baseline CHECKPOINT. Scores are comparable with those of the same harness "
    "alone; to go without: --no-baseline."
)


def start_checkpoint(student: str) -> str:
    """Return the folder or hub name that the student's provenance says it was trained from.

    Args:
        student: Checkpoint that `train` wrote.

    Raises:
        RunFileError: It does not say so, or that checkpoint no longer exists.
    """
    provenance = Path(student, "tide_cache.json")
    try:
        with told_apart(provenance):
            run = json.loads(provenance.read_text(encoding="utf-8"))["run"]
        start, revision = run["student.model"], run.get("student.revision")
    except FileNotFoundError:
        raise RunFileError(
            f"{student}: found no tide_cache.json, which says what a student was trained from. {_WAYS_OUT}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunFileError(f"{provenance}: it does not say what the student was trained from. {_WAYS_OUT}") from None
    if start is None:
        raise RunFileError(f"{provenance}: the student was trained from random weights. {_WAYS_OUT}")
    if reason := nowhere(str(start)):
        raise RunFileError(
            f"{provenance}: the student was trained from a checkpoint that is gone. {reason}. {_WAYS_OUT}"
        )
    if revision is not None and not Path(start).is_dir():
        raise RunFileError(
            f"{provenance}: the student was trained from {start} at {revision}; fetch that commit. {_WAYS_OUT}"
        )
    return str(start)
