"""Sets that TIDE's preprocessing tokenised: token ids of both sides, labels, and what is said to be the same text.

| format | says what is the same text by |
|---|---|
| `tide-cross` | `ranges`: rows (teacher_start, teacher_end, student_start, student_end), one for each message |
| `tide-shared` | `align_student`, `align_teacher`: positions of the same token on either side |

Both have `input_ids`, `labels` (-100 where nothing is learnt, else the token itself) and `teacher_input_ids`;
`teacher_labels` and `_discard` may be there. A position pair is a span of one token, so both give the same rows.
Only the form is checked here: which spans hold the same text, and which point to the wrong place, is for pairing.

Source: the preprocessing scripts of TIDE, arXiv:2604.26951, and rows that they made.

Shape suffixes: L student tokens, M teacher tokens, P spans.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tide_cache.config.settings import OnBadRow, PreprocessedFormat
from tide_cache.corpus.reading import RowReading, read_rows
from tide_cache.corpus.rows import RowFault, kind_of
from tide_cache.corpus.spec import parse_spec
from tide_cache.corpus.store import Corpus, RowKind
from tide_cache.errors import CorpusError, RunFileError
from tide_cache.records import Int32s, PreprocessedRow, SampleId

UNLABELLED = -100
_TOKENS = ("input_ids", "labels", "teacher_input_ids")
_SPANS: dict[PreprocessedFormat, tuple[str, ...]] = {
    "tide-cross": ("ranges",),
    "tide-shared": ("align_student", "align_teacher"),
}
_OPTIONAL = ("teacher_labels", "_discard")
_LARGEST = int(np.iinfo(np.int32).max)


def open_preprocessed(
    spec: str,
    *,
    folder: Path,
    format: PreprocessedFormat,
    student_vocab_size: int,
    teacher_vocab_size: int,
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "error",
) -> Corpus[PreprocessedRow]:
    """Read preprocessed sets: saved datasets, hub datasets, Parquet files and JSON lines.

    Args:
        spec: As for `open_corpus`, without lang selections: tokens do not tell their language.
        folder: As for `open_corpus`.
        format: What the columns hold.
        student_vocab_size: Student ids are below this.
        teacher_vocab_size: Teacher ids are below this.
        columns: Must be empty: the columns of these sets have fixed names.
        on_bad_row: As for `open_corpus`. An id beyond a vocabulary always stops: it shows another tokenizer.

    Raises:
        RunFileError: The spec cannot be understood, or asks for what these sets cannot give.
        CorpusError: As for `open_corpus`, or an id is beyond its vocabulary.
    """
    if columns:
        raise RunFileError(
            f"corpus.columns: found {', '.join(sorted(columns))}; expected none with corpus.format = {format!r}, "
            "whose columns have fixed names. Remove corpus.columns."
        )
    if languages := [part.language for part in parse_spec(spec, folder) if part.language is not None]:
        raise RunFileError(
            f"corpus.spec: found lang:{languages[0]}; expected no lang selection with corpus.format = {format!r}: "
            "tokens do not tell their language. Select before the set is tokenised, or leave it out."
        )
    vocab_sizes = {"input_ids": student_vocab_size, "teacher_input_ids": teacher_vocab_size}
    names = ", ".join((*_TOKENS, *_SPANS[format]))
    reading = RowReading(
        kind=PREPROCESSED_ROWS,
        fields=frozenset((*_TOKENS, *_SPANS[format], *_OPTIONAL)),
        row_of=partial(_row_of, format, vocab_sizes),
        language_of=lambda value, row: None,
        way_out=f"With corpus.format = {format!r} rows have {names}. Fix the row, correct corpus.format, or leave "
        "such rows out with --on-bad-row skip.",
    )
    return read_rows(spec, folder, on_bad_row, reading)


def _row_of(
    format: PreprocessedFormat, vocab_sizes: Mapping[str, int], sample_id: SampleId, origin: str, value: object
) -> PreprocessedRow:
    """Read one row.

    Raises:
        RowFault: It does not have the form of the format.
        CorpusError: An id is beyond its vocabulary.
    """
    if isinstance(value, RowFault):
        raise value
    if not isinstance(value, dict):
        raise RowFault(f"the row is {kind_of(value)}; expected an object with named fields")
    missing = [name for name in (*_TOKENS, *_SPANS[format]) if value.get(name) is None]
    if missing:
        found = ", ".join(str(name) for name in value) or "none"
        raise RowFault(f"found no {', '.join(missing)} (fields found: {found})")
    student_ids_L = _token_ids(value, "input_ids", origin, vocab_sizes)
    teacher_ids_M = _token_ids(value, "teacher_input_ids", origin, vocab_sizes)
    has_teacher_labels = value.get("teacher_labels") is not None
    return PreprocessedRow(
        sample_id,
        origin,
        student_ids_L,
        _is_labelled(value, "labels", "input_ids", student_ids_L),
        teacher_ids_M,
        _is_labelled(value, "teacher_labels", "teacher_input_ids", teacher_ids_M)
        if has_teacher_labels
        else np.ones(len(teacher_ids_M), bool),
        _ranges(value) if format == "tide-cross" else _position_pairs(value),
        _discarded(value),
    )


def _token_ids(row: Mapping[str, Any], name: str, origin: str, vocab_sizes: Mapping[str, int]) -> Int32s:
    ids_N = _integers(row[name], name)
    if len(outside := np.flatnonzero((ids_N < 0) | (ids_N >= vocab_sizes[name]))):
        side = "teacher" if name == "teacher_input_ids" else "student"
        raise CorpusError(
            f"{origin}: {name}[{outside[0]}] is {ids_N[outside[0]]}; the {side}'s tokenizer has ids from 0 to "
            f"{vocab_sizes[name] - 1}.\nGive the tokenizer that the set was made with as {side}.tokenizer."
        )
    return ids_N


def _is_labelled(row: Mapping[str, Any], name: str, of: str, ids_N: Int32s) -> npt.NDArray[np.bool_]:
    labels_N = _integers(row[name], name)
    if len(labels_N) != len(ids_N):
        raise RowFault(f"{name}: found {len(labels_N)} labels for {len(ids_N)} {of}; expected as many")
    is_labelled_N = labels_N != UNLABELLED
    if len(other := np.flatnonzero(is_labelled_N & (labels_N != ids_N))):
        at = int(other[0])
        raise RowFault(
            f"{name}[{at}] is {labels_N[at]}, but {of}[{at}] is {ids_N[at]}; expected the same id, or {UNLABELLED}"
        )
    result: npt.NDArray[np.bool_] = is_labelled_N
    return result


def _ranges(row: Mapping[str, Any]) -> Int32s:
    ranges = row["ranges"]
    if not isinstance(ranges, list) or any(not isinstance(entry, list) or len(entry) != 4 for entry in ranges):
        raise RowFault(
            "ranges: found something other than a list of lists of four numbers; expected (teacher_start, "
            "teacher_end, student_start, student_end)"
        )
    spans_P4 = _integers([number for entry in ranges for number in entry], "ranges").reshape(-1, 4)
    is_crossed_P = (spans_P4 < 0).any(axis=1) | (spans_P4[:, 1] < spans_P4[:, 0]) | (spans_P4[:, 3] < spans_P4[:, 2])
    if len(crossed := np.flatnonzero(is_crossed_P)):
        raise RowFault(
            f"ranges[{crossed[0]}] is {spans_P4[crossed[0]].tolist()}; expected 0 <= start <= end on both sides"
        )
    return spans_P4


def _position_pairs(row: Mapping[str, Any]) -> Int32s:
    student_P, teacher_P = (_integers(row[name], name) for name in ("align_student", "align_teacher"))
    if len(student_P) != len(teacher_P):
        raise RowFault(
            f"align_teacher: found {len(teacher_P)} positions for {len(student_P)} of align_student; expected as many"
        )
    for name, positions_P in (("align_student", student_P), ("align_teacher", teacher_P)):
        if len(outside := np.flatnonzero((positions_P < 0) | (positions_P == _LARGEST))):
            raise RowFault(f"{name}[{outside[0]}] is {positions_P[outside[0]]}; expected a position from 0")
    return np.stack([teacher_P, teacher_P + 1, student_P, student_P + 1], axis=1).astype(np.int32)


def _discarded(row: Mapping[str, Any]) -> bool:
    mark = row.get("_discard")
    if mark is not None and not isinstance(mark, bool):
        raise RowFault(f"_discard: found {kind_of(mark)}; expected true or false")
    return bool(mark)


def _integers(values: object, name: str) -> Int32s:
    if not isinstance(values, list):
        raise RowFault(f"{name}: found {kind_of(values)}; expected a list of whole numbers")
    if set(map(type, values)) - {int}:  # not isinstance: True is an int in Python
        at, value = next((at, value) for at, value in enumerate(values) if type(value) is not int)
        raise RowFault(f"{name}[{at}]: found {kind_of(value)}; expected a whole number")
    if values and not -_LARGEST <= min(values) <= max(values) <= _LARGEST:
        at = next(at for at, value in enumerate(values) if not -_LARGEST <= value <= _LARGEST)
        raise RowFault(f"{name}[{at}] is {values[at]}; expected a number of 32 bits")
    return np.array(values, dtype=np.int32)


def _columns_of(rows: Sequence[PreprocessedRow]) -> list[list[Any]]:
    return [
        [row.sample_id for row in rows],
        [row.origin for row in rows],
        [row.student_ids_L for row in rows],
        [row.is_supervised_L for row in rows],
        [row.teacher_ids_M for row in rows],
        [row.is_teacher_labelled_M for row in rows],
        [row.spans_P4.reshape(-1) for row in rows],
        [row.is_discarded for row in rows],
    ]


def _rows_of(batch: Any) -> Iterator[PreprocessedRow]:
    for sample_id, origin, *arrays, is_discarded in zip(*batch.columns, strict=True):
        student_ids, is_supervised, teacher_ids, is_labelled, spans = (
            array.values.to_numpy(zero_copy_only=False) for array in arrays
        )
        yield PreprocessedRow(
            SampleId(sample_id.as_py()),
            origin.as_py(),
            student_ids,
            is_supervised,
            teacher_ids,
            is_labelled,
            spans.reshape(-1, 4),
            is_discarded.as_py(),
        )


def _hashed(row: PreprocessedRow) -> bytes:
    """Return one line of JSON, in another form than a conversation's."""
    arrays = (row.student_ids_L, row.is_supervised_L, row.teacher_ids_M, row.is_teacher_labelled_M, row.spans_P4)
    content = [row.sample_id, *(array.astype(int).tolist() for array in arrays), row.is_discarded]
    return json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"


PREPROCESSED_ROWS: RowKind[PreprocessedRow] = RowKind(
    schema=pa.schema(
        [
            ("sample_id", pa.string()),
            ("origin", pa.string()),
            ("student_ids", pa.list_(pa.int32())),
            ("is_supervised", pa.list_(pa.bool_())),
            ("teacher_ids", pa.list_(pa.int32())),
            ("is_teacher_labelled", pa.list_(pa.bool_())),
            ("spans", pa.list_(pa.int32())),
            ("is_discarded", pa.bool_()),
        ]
    ),
    columns_of=_columns_of,
    rows_of=_rows_of,
    hashed_form=_hashed,
    size_of=lambda row: len(row.student_ids_L) + len(row.teacher_ids_M),
)
