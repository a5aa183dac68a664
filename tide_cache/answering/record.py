"""`NAME.jsonl.record`: what made a file of answers, and whether it is finished; written before the first answer.

It is JSON, under a name that no corpus reads. While answers are being written their parts lie in `NAME.jsonl.parts/`.
"""

import datetime
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from tide_cache.config.base import Frozen
from tide_cache.disk import writing
from tide_cache.errors import (
    CacheMismatchError,
    CorpusError,
    RunFileError,
    ShardCorruptError,
    differing,
    fault_list,
    first_line,
)
from tide_cache.manifest.documents import read_document
from tide_cache.shards import files_of
from tide_cache.shards.publish import file_sha256, replace_json
from tide_cache.unreadable import is_there
from tide_cache.version import __version__

MAX_BYTES = 1 << 26


class AnswersResult(Frozen):
    """A finished file.

    Attributes:
        sha256: Hash of the file.
        answers: Number of its rows.
        unfinished: Answers that did not end within the limit, kept or not.
        empty: Answers without text, which are left out.
        dropped: Unfinished answers that were left out.
        tokens: Number of tokens that the teacher wrote.
        forwards: Number of forwards, summed over sequences.
        left_out: Sample ids of rows whose answer is not in the file.
    """

    sha256: str
    answers: int
    unfinished: int
    empty: int
    dropped: int
    tokens: int
    forwards: int
    left_out: tuple[str, ...]


class AnswersRecord(Frozen):
    """How a file of answers was made.

    Attributes:
        identity: What determines the answers, by name.
        run: The resolved run file.
        tide_cache_version: Release that began it.
        result: None until it is finished.
    """

    format_version: int = Field(ge=1)
    identity: dict[str, Any]
    run: dict[str, Any]
    tide_cache_version: str = __version__
    result: AnswersResult | None = None


def record_path(out: Path) -> Path:
    """Return the path of the record of a file of answers."""
    return out.with_name(out.name + ".record")


def parts_folder(out: Path) -> Path:
    """Return the folder of the parts of a file of answers, until it is finished."""
    return out.with_name(out.name + ".parts")


def part_path(out: Path, shard: int) -> Path:
    """Return the path of a part."""
    return parts_folder(out) / f"part-{shard:06}.jsonl"


def read_record(out: Path) -> AnswersRecord | None:
    """Read the record of a file of answers; None if no file was begun.

    Raises:
        TideCacheError: It cannot be read, or is not such a document.
    """
    path = record_path(out)
    try:
        return read_document(path, AnswersRecord, MAX_BYTES, files_of(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ShardCorruptError, CacheMismatchError) as error:
        reason = first_line(error).partition(". Restore ")[0]
        raise CorpusError(
            f"{reason}. Nothing says what made {out}; give another --out, or remove it with its .record and .parts"
        ) from None


def day_begun(out: Path) -> datetime.date | None:
    """Return the day that the template wrote when a file was begun; None if none was begun, or it writes none."""
    record = read_record(out)
    day = None if record is None else record.identity.get("answers.date")
    return None if day is None else datetime.date.fromisoformat(day)


def require_fits(out: Path, identity: dict[str, Any]) -> None:
    """Raise an error if a file was made with other settings, or not by this command.

    Args:
        out: The file of answers.
        identity: What determines the answers; a value that is None on either side is not compared.

    Raises:
        CorpusError: The record has other settings; lists them.
        RunFileError: There is a file, or parts, without a record.
    """
    record = read_record(out)
    if record is None:
        for path in (out, parts_folder(out)):
            if is_there(path):
                raise RunFileError(
                    f"--out {out}: found {path} without {record_path(out).name}, so that nothing says what made it; "
                    "give another name, or remove it"
                )
        return
    unread = {name for name in ("teacher.weights_sha256", "teacher.config_sha256") if identity.get(name) is None}
    differences = [entry for entry in differing(record.identity, identity) if entry[0] not in unread]
    if differences:
        faults = [f"{name}: the file has {found!r}, this run {wanted!r}" for name, found, wanted in differences]
        way_out = "Give another --out, or remove the file, its .record and its .parts to write it anew."
        raise CorpusError(fault_list(f"{out} was begun with other settings:", faults, way_out))


def begin(out: Path, identity: dict[str, Any], run: dict[str, Any]) -> AnswersRecord:
    """Write the record of a file, unless that was done, and create the folder of its parts."""
    record = read_record(out)
    if record is None:
        record = AnswersRecord(format_version=identity["format_version"], identity=identity, run=run)
        with writing(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
        replace_json(record_path(out), record.model_dump(mode="json"))
    with writing(parts_folder(out)):
        parts_folder(out).mkdir(parents=True, exist_ok=True)
    return record


def finished(out: Path) -> AnswersResult | None:
    """Return what a finished file holds; None if it is not finished, or was removed.

    Raises:
        CorpusError: It exists and has other bytes than when it was finished.
    """
    record = read_record(out)
    if record is None or record.result is None or not is_there(out):
        return None
    if file_sha256(out) != record.result.sha256:
        raise CorpusError(
            f"{out}: its bytes are not those that {record_path(out).name} states; it was changed or damaged. Give "
            "another --out, or remove both to write it anew."
        )
    return record.result


def finish(out: Path, result: AnswersResult) -> None:
    """Record that a file is finished, and remove its parts."""
    record = read_record(out)
    assert record is not None, "a file is begun before it is finished"
    replace_json(record_path(out), record.model_copy(update={"result": result}).model_dump(mode="json"))
    shutil.rmtree(parts_folder(out), ignore_errors=True)
