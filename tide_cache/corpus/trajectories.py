"""In which order answers were revealed, as users and `tide-cache answers` say it: a field of the rows, or another file.

A trajectory is a list, in the order of the last answer's text. Either of numbers: the step, from 0, at which each token
of the answer was revealed, by the teacher's tokenizer. Or of pairs: a number of bytes of the text, and the step at
which these were revealed; the bytes add up to the text, and a last pair of 0 bytes is the end of the turn.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tide_cache.corpus.rows import RowFault, kind_of
from tide_cache.corpus.tables import read_parquet
from tide_cache.corpus.text_files import read_jsonl
from tide_cache.errors import CorpusError
from tide_cache.records import SampleId
from tide_cache.unreadable import is_file

FIELD = "trajectory"
MOST_STEP = 1 << 20

TrajectoriesOf = Callable[[SampleId, object], str]
"""Gives the trajectory of a row, as JSON, by its id and its decoded value; raises RowFault."""


def trajectory_field(sample_id: SampleId, value: object) -> str:
    """Return the trajectory that a row states.

    Raises:
        RowFault: There is none, or it has another form.
    """
    return _checked(value.get(FIELD) if isinstance(value, dict) else None)


def trajectories_of(path: Path) -> TrajectoriesOf:
    """Read a file of rows with `sample_id` and `trajectory`; what it returns gives those of a corpus.

    Args:
        path: JSON lines, or Parquet.

    Raises:
        CorpusError: It is missing or cannot be read, or a row of it is not of this form.
    """
    if not is_file(path):
        raise CorpusError(f"{path}: no such file; expected JSON lines or Parquet with sample_id and {FIELD}")
    found: dict[str, str] = {}
    columns = frozenset({"sample_id", FIELD})
    for raw in read_parquet(path, columns) if path.name.endswith(".parquet") else read_jsonl(path):
        value = raw.value
        try:
            if isinstance(value, RowFault):
                raise value
            if not isinstance(value, dict) or not isinstance(value.get("sample_id"), str):
                raise RowFault("found no sample_id, a text; sample ids are those of the cache")
            found[value["sample_id"]] = trajectory_field(SampleId(value["sample_id"]), value)
        except RowFault as fault:
            raise CorpusError(f"{raw.place_in(str(path))}: {fault}") from None

    def of(sample_id: SampleId, value: object) -> str:
        if sample_id not in found:
            raise RowFault(f"{path} has no trajectory of sample {sample_id!r}")
        return found[sample_id]

    return of


def _checked(value: Any) -> str:
    if value is None:
        raise RowFault(f"found no {FIELD}, which views.trajectory = 'given' needs")
    if not isinstance(value, list) or not value:
        raise RowFault(f"{FIELD}: found {kind_of(value)}; expected a list of steps, or of pairs [bytes, step]")
    is_pairs = isinstance(value[0], list)
    for entry in value:
        numbers = entry if is_pairs and isinstance(entry, list) and len(entry) == 2 else [entry]
        if len(numbers) != 1 + is_pairs or not all(_is_step(number) for number in numbers):
            raise RowFault(f"{FIELD}: found {entry!r}; expected {'a pair [bytes, step]' if is_pairs else 'a step'}")
    return json.dumps(value)


def _is_step(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= MOST_STEP
