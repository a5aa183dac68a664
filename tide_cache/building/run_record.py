"""`build.json`: how a cache was built, in addition to its identity, so that it can be repaired without the run file.

It is not part of the identity, and no reader needs it. The first run writes it, and nothing replaces it. It also holds
the names of the tokenizers' special tokens: templates write them, and one fills the last block,
but the identity has never held them. A build continues only with the same ones.
"""

import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tide_cache.config.base import Frozen
from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheMismatchError, ShardCorruptError, fault_list
from tide_cache.locations import CachePath
from tide_cache.manifest.documents import read_document
from tide_cache.shards import FORMAT_VERSION, Files, files_of, publish_json
from tide_cache.shards.publish import OtherBytesError
from tide_cache.version import __version__

if TYPE_CHECKING:
    from tide_cache.building.prepared_build import PreparedBuild

NAME = "build.json"
MAX_BYTES = 1 << 20
_PACKAGES = ("torch", "transformers", "tokenizers")


class RunRecord(Frozen):
    """How a cache was built.

    Attributes:
        run: The resolved run file without `build.out`, which is the folder that holds this.
        special_tokens: Of teacher and student, by the name of what they are for.
        made_with: Releases of the libraries that decide the last bits; for information.
        remarks: What became of the corpus: rows left out or cut, fields and files that were not read.
    """

    format_version: Annotated[int, Field(ge=1)] = FORMAT_VERSION
    run: dict[str, Any]
    special_tokens: dict[str, dict[str, str | list[str]]]
    made_with: dict[str, str]
    remarks: tuple[str, ...] = ()


def read_record(root: CachePath, files: Files | None = None) -> RunRecord | None:
    """Read how a cache was built; None if it is not begun, or was begun by a release that did not record it.

    Args:
        root: Folder of the cache.
        files: The file system.

    Raises:
        CacheMismatchError: It was written in a newer format.
        ShardCorruptError: It is no such document.
    """
    try:
        return read_document(root / NAME, RunRecord, MAX_BYTES, files or files_of(root))
    except (FileNotFoundError, NotADirectoryError):
        return None


def keep_record(run: BuildRun, build: "PreparedBuild", files: Files | None = None) -> None:
    """Record how a cache is built, unless that was done.

    Args:
        run: The run file.
        build: The same, checked.
        files: The file system.

    Raises:
        CacheMismatchError: It was begun with other special tokens.
    """
    files = files or files_of(run.build.out)
    if read_record(run.build.out, files) is None:
        try:
            publish_json(run.build.out / NAME, _record_of(run, build).model_dump(mode="json"), files)
        except OtherBytesError:  # another run began the cache at the same time
            pass
        else:
            return
    require_same_tokens(run, build, files)


def require_same_tokens(run: BuildRun, build: "PreparedBuild", files: Files | None = None) -> None:
    """Refuse tokenizers whose special tokens differ from those that a cache was begun with.

    Args:
        run: The run file.
        build: The same, checked.
        files: The file system.

    Raises:
        CacheMismatchError: Lists those that differ.
    """
    if (found := read_record(run.build.out, files)) is None:
        return
    faults = []
    for side, declared in build.special_tokens.items():
        begun = found.special_tokens.get(side, {})
        faults += [
            f"{side}'s {name}: cache has {begun.get(name)!r}, run declares {declared.get(name)!r}"
            for name in sorted(begun.keys() | declared.keys())
            if begun.get(name) != declared.get(name)
        ]
    if faults:
        title = f"{run.build.out} was begun with other special tokens:"
        raise CacheMismatchError(
            fault_list(title, faults, "Restore the tokenizer's files as they were, or give another build.out.")
        )


def begun_on(root: CachePath) -> datetime.date | None:
    """Return the day that templates took for today when a cache was begun, as its record says; None without one.

    Args:
        root: Folder of the cache.
    """
    try:
        record = read_record(root)
    except (CacheMismatchError, ShardCorruptError):
        return None
    day = record.run.get("pairing", {}).get("date") if record is not None else None
    return datetime.date.fromisoformat(day) if day else None


def _record_of(run: BuildRun, build: "PreparedBuild") -> RunRecord:
    values = run.model_dump(mode="json", exclude={"build": {"out"}})
    values["pairing"]["date"] = build.identity.pairing.date
    values["build"]["samples_per_shard"] = build.plan.samples_per_shard  # plan.json may be what is damaged
    return RunRecord(
        run=values,
        special_tokens=build.special_tokens,
        made_with={"tide-cache": __version__, **{package: version(package) for package in _PACKAGES}},
        remarks=build.remarks,
    )
