"""The errors a user can meet: each says what was found, what was expected, where, and the way out.

Bad input raises a `TideCacheError`; the command line prints its message without a traceback and exits with its
`exit_code`. Assertions are for our own invariants.
"""

from collections.abc import Iterable, Mapping
from typing import Any


class TideCacheError(Exception):
    """Base of every error that bad input, bad data or a bad machine can cause."""

    exit_code = 1
    is_told = False
    """Whether all processes of a run know about the error."""


class RunFileError(TideCacheError):
    """A run file or command-line option is wrong."""

    exit_code = 2


class CorpusError(TideCacheError):
    """A corpus cannot be read: missing, empty, broken, or without a usable field."""

    exit_code = 3


class PairingError(TideCacheError):
    """A tokenizer or chat template cannot be used to pair samples."""

    exit_code = 3


class ModelError(TideCacheError):
    """A checkpoint cannot be loaded or does not fit the run."""

    exit_code = 3


class EngineFileError(TideCacheError):
    """A file of top-k that an engine wrote is damaged, contradicts itself, or is about other texts."""

    exit_code = 3


class CacheMismatchError(TideCacheError):
    """A cache was built from other inputs than the run declares, or lacks what an objective needs."""

    exit_code = 3


class ShardCorruptError(TideCacheError):
    """A shard's bytes are not what its commit record says, or cannot be decoded."""

    exit_code = 3


class UnreadableError(TideCacheError):
    """A file cannot be read now: permissions, credentials, a device or a server; it need not be damaged."""

    exit_code = 1


class CacheIncompleteError(TideCacheError):
    """A cache has no manifest, or a planned shard is not committed."""

    exit_code = 3


class TeacherOutputError(TideCacheError):
    """The teacher produced a value that is not finite; nothing was published."""

    exit_code = 1


class WriteError(TideCacheError):
    """A disk is full, or the file system refuses a write; nothing is half-written."""

    exit_code = 1


class UploadError(TideCacheError):
    """A hub cannot be reached, or does not take an upload; what was to be uploaded is kept."""

    exit_code = 1


class DeviceMemoryError(TideCacheError):
    """A run needs more memory than its device has."""

    exit_code = 1


class RankError(TideCacheError):
    """Another process of the run failed or was lost, or the processes could not connect.

    Attributes:
        has_gone: Whether a process ended without a message.
    """

    def __init__(self, message: str, *, exit_code: int = 1, has_gone: bool = False) -> None:
        super().__init__(message)
        self.exit_code, self.has_gone = exit_code, has_gone


class CheckpointError(TideCacheError):
    """A training checkpoint is missing or incomplete, or belongs to another run."""

    exit_code = 3


class RunFolderError(TideCacheError):
    """A folder holds no training run, or a file of it cannot be read."""

    exit_code = 3


class EvaluationError(TideCacheError):
    """A task's data is missing, its programs cannot be run safely, or a folder holds results of another evaluation."""

    exit_code = 3


class Interrupted(TideCacheError):
    """The user or the scheduler stopped the run; what was done is kept and can be resumed."""

    exit_code = 130


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return where two mappings differ, sorted, as (key, value of one, value of the other); a missing one is None."""
    keys = sorted(one.keys() | other.keys())
    return [(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)]


def fault_list(title: str, faults: Iterable[str], way_out: str = "") -> str:
    """Format several faults under one title, so that a user sees all of them at once."""
    lines = [title, *(f"  - {fault}" for fault in faults)]
    return "\n".join([*lines, way_out] if way_out else lines)


def first_line(error: BaseException) -> str:
    """Return the first line of a message; the error's kind where it has none."""
    return next(iter(str(error).strip().splitlines()), repr(error))
