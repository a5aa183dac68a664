"""One view of a cache as a plain file, for programs that know nothing of the cache's format.

The numbers are those that training reads. Lists that are flat in the cache are nested here: one list for each masked
position, and for candidate chunks one list for each candidate.

| column | one row is one sample, in the order of the cache |
|---|---|
| `sample_id`, `view`, `t` | the sample, the number of its view, and the view's diffusion time |
| `student_ids`, `is_supervised`, `masked_student` | student tokens, which may be masked, positions masked here |
| `teacher_ids`, `masked_teacher` | teacher tokens, and the positions masked here |
| `chunks` | (teacher_start, teacher_end, student_start, student_end), half-open |
| `truth_logprobs`, `is_top1` | for each masked teacher position: log p(true token), and whether it was the likeliest |
| `steps_to_reveal` | views of a trajectory only, for each masked student token: steps until it is revealed |
| `is_shown_first` | compdemo only, for each masked teacher position |
| `topk_positions`, `topk_ids`, `topk_logprobs` | teacher positions with kept ids, the ids, and their log-probs |
| `topk_log_tail`, `topk_log_partition` | for each of these positions, one number for each temperature |
| `tail_ids`, `tail_logprobs`, `tail_draws` | for each of these: ids drawn from the rest, how likely, how often |
| `candidate_chunks`, `candidate_ids`, `candidate_logprobs` | numbers of `chunks`, and the candidates in their place |
| `candidate_log_tail`, `candidate_log_partition` | for each of these chunks, one number for each temperature |
| `student_text` | the student's tokens as text, if a tokenizer was given |

Log-probs are in nats at T = 1. Columns of a signal that the cache does not hold are left out. Only one row group of
the cache is in memory at a time.

Shape suffixes: as in `records`.
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tide_cache.config.settings import ExportFormat
from tide_cache.disk import new_folder, writing
from tide_cache.errors import RunFileError
from tide_cache.inspecting.viewing import require_student_tokenizer
from tide_cache.locations import CachePath
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.records import TeacherSignal, ViewRecord
from tide_cache.shards import PassName
from tide_cache.signal_table import CHUNKS, SPLIT, STEPS, TAIL, TOPK, TRUTH, Axis, parts_in, to_columns

OnSamples = Callable[[int, int], None]

Ints = npt.NDArray[np.integer[Any]]

_ZSTD_LEVEL = 3
_PARTS = (TRUTH, SPLIT, STEPS, TOPK, TAIL, CHUNKS)
_DEPTHS: dict[Axis, int] = {"position": 1, "row": 1, "entry": 1, "temperature": 2, "item": 2, "token": 3}
"""How deeply lists are nested."""


@dataclass(frozen=True)
class ExportSummary:
    """What was written; `dataclasses.asdict` makes it JSON-ready.

    Attributes:
        file: The file.
        format: Its format.
        cache_id: Id of the cache, 16 hex digits.
        signal_pass: The pass that the signals come from.
        view: Number of the view of each sample.
        num_samples: Rows of the file.
        num_bytes: Its size.
        temperatures: T of the entries in the innermost lists of the tail and partition columns.
        columns: Names of the columns.
    """

    file: Path
    format: ExportFormat
    cache_id: str
    signal_pass: PassName
    view: int
    num_samples: int
    num_bytes: int
    temperatures: tuple[float, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ExportedView:
    """One view of every sample as a table; no shard is read before its rows are asked for.

    Attributes:
        cache: Folder or URL.
        manifest: The cache's manifest.
        signal_pass: The pass that the signals come from.
        view: Number of the view of each sample.
        tokenizer: The student's, if `student_text` is wanted.
        schema: Names and types of the columns.
    """

    cache: CachePath
    manifest: Manifest
    signal_pass: PassName
    view: int
    tokenizer: TextTokenizer | None
    schema: Any

    @classmethod
    def open(
        cls, cache: CachePath, view: int, *, signal_pass: PassName | None = None, student: str | None = None
    ) -> Self:
        """Open a view; the arguments and errors are those of `export_view`."""
        manifest = Manifest.load(cache)
        which = manifest.require_pass(cache, signal_pass)
        num_views = manifest.identity.stored_views
        if not 0 <= view < num_views:
            raise RunFileError(
                f"{cache}: found no view {view}; expected 0 to {num_views - 1}, one of those of each sample"
            )
        tokenizer = None if student is None else require_student_tokenizer(student, manifest)
        return cls(cache, manifest, which, view, tokenizer, _schema(manifest, which, tokenizer is not None))

    def groups(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows, those of one row group of the cache at a time."""
        num_temperatures = len(self.manifest.identity.signals.temperatures)
        for shard in range(self.manifest.plan.num_shards):
            pairs, signals = (self.manifest.reader(self.cache, t, shard) for t in ("pairs", self.signal_pass))
            for group in range(pairs.layout.num_groups):
                records = signals.read_signals(self.view, group, pairs.read_pairs(group))
                yield [_row(record, self.tokenizer, num_temperatures) for record in records]


def export_view(
    cache: CachePath,
    out: Path,
    view: int,
    *,
    format: ExportFormat | None = None,
    signal_pass: PassName | None = None,
    student: str | None = None,
    on_samples: OnSamples | None = None,
) -> ExportSummary:
    """Write one view of every sample.

    Args:
        cache: Folder or URL of a complete cache.
        out: File to write; must not exist. It appears complete or not at all.
        view: Number of the view of each sample.
        format: Format of the file; by default that of its suffix.
        signal_pass: Which pass; by default the first that the cache has.
        student: The student tokenizer's folder or hub name; adds `student_text`.
        on_samples: Called with the samples written and the samples in all.

    Raises:
        RunFileError: There is no such view or pass, the format is not known, or the file exists.
        CacheMismatchError: The tokenizer is not the cache's.
        WriteError: The disk is full, or the folder cannot be written.
        TideCacheError: The cache is incomplete or damaged.
    """
    chosen = format or _format_of(out)
    if out.exists():
        raise _exists(out)
    exported = ExportedView.open(cache, view, signal_pass=signal_pass, student=student)
    manifest, schema = exported.manifest, exported.schema
    total, done = int(manifest.totals["pairs"]["samples"]), 0
    with _new_file(out) as temporary:
        with _WRITERS[chosen](temporary, schema) as writer:
            for rows in exported.groups():
                writer.write(rows)
                done += len(rows)
                if on_samples is not None:
                    on_samples(done, total)
        num_bytes = temporary.stat().st_size
    return ExportSummary(
        file=out,
        format=chosen,
        cache_id=manifest.identity.cache_id,
        signal_pass=exported.signal_pass,
        view=view,
        num_samples=done,
        num_bytes=num_bytes,
        temperatures=manifest.identity.signals.temperatures,
        columns=tuple(schema.names),
    )


def _format_of(out: Path) -> ExportFormat:
    for format in _WRITERS:
        if out.name.endswith(f".{format}"):
            return format
    raise RunFileError(
        f"{out}: found a name without a known suffix; expected one ending in {' or '.join(f'.{f}' for f in _WRITERS)}, "
        "or the format with --format"
    )


def _exists(out: Path) -> RunFileError:
    return RunFileError(f"{out}: exists, and nothing is overwritten; give another name, or remove it first")


def _schema(manifest: Manifest, which: PassName, has_text: bool) -> Any:
    int32s = pa.list_(pa.int32())
    fields: dict[str, Any] = {
        "sample_id": pa.string(),
        "view": pa.int32(),
        "t": pa.float64(),
        "student_ids": int32s,
        "is_supervised": pa.list_(pa.bool_()),
        "masked_student": int32s,
        "teacher_ids": int32s,
        "masked_teacher": int32s,
        "chunks": pa.list_(int32s),
    }
    present = manifest.identity.shard_rules.parts_of(which)
    for field in (field for part in _PARTS if part.name in present for field in part.fields if field.exported):
        dtype = pa.type_for_alias(field.dtype)
        for _ in range(_DEPTHS[field.axis]):
            dtype = pa.list_(dtype)
        fields[field.exported] = dtype
    if has_text:
        fields["student_text"] = pa.string()
    metadata = {"cache_id": manifest.identity.cache_id, "pass": which}
    metadata["temperatures"] = json.dumps(manifest.identity.signals.temperatures)
    return pa.schema(list(fields.items()), metadata)


def _row(record: ViewRecord, tokenizer: TextTokenizer | None, num_temperatures: int) -> dict[str, Any]:
    pair, view, signal = record.pair, record.view, record.signal
    assert signal is not None, "views of a cache carry signals"
    masked_teacher_N = np.flatnonzero(view.is_teacher_masked_M)
    row: dict[str, Any] = {
        "sample_id": pair.sample_id,
        "view": view.view,
        "t": view.t,
        "student_ids": pair.student_ids_L.tolist(),
        "is_supervised": pair.is_supervised_L.tolist(),
        "masked_student": np.flatnonzero(view.is_student_masked_L).tolist(),
        "teacher_ids": pair.teacher_ids_M.tolist(),
        "masked_teacher": masked_teacher_N.tolist(),
        "chunks": pair.chunks_C4.tolist(),
    }
    row |= _said(signal, masked_teacher_N, pair.chunks_C4[:, 3] - pair.chunks_C4[:, 2], num_temperatures)
    if tokenizer is not None:
        row["student_text"] = tokenizer.decode(pair.student_ids_L)
    return row


def _said(signal: TeacherSignal, masked_teacher_N: Ints, size_C: Ints, num_temperatures: int) -> dict[str, Any]:
    """Return the teacher's signals as nested lists: entries, then items, then tokens."""
    columns, row = to_columns(signal), dict[str, Any]()
    present = parts_in(columns)
    for part in (part for part in _PARTS if part.name in present):
        counts = columns[part.counts.column].tolist() if part.having("count") else []
        for field in (field for field in part.fields if field.exported):
            values = columns[field.column]
            if field.rule == "masked position":
                values = masked_teacher_N[values]
            elif field.axis == "temperature":
                values = values.reshape(-1, num_temperatures)
            nested = values.tolist()
            if field.axis == "token":
                size_A = size_C[columns[part.fields[0].column]]
                nested = _nested(nested, np.repeat(size_A, counts).tolist())
            row[field.exported] = _nested(nested, counts) if field.axis in ("item", "token") else nested
    return row


def _nested(values: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Return a flat list, cut into lists of these lengths."""
    iterator = iter(values)
    return [[next(iterator) for _ in range(count)] for count in counts]


class _Writer(Protocol):
    def write(self, rows: list[dict[str, Any]]) -> None: ...


@contextlib.contextmanager
def _parquet(path: Path, schema: Any) -> Iterator[_Writer]:
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        yield _ParquetRows(writer, schema)


@dataclass(frozen=True)
class _ParquetRows:
    writer: Any
    schema: Any

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.writer.write_batch(pa.RecordBatch.from_pylist(rows, self.schema))


@contextlib.contextmanager
def _json_lines(path: Path, schema: Any) -> Iterator[_Writer]:
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).stream_writer(file) as stream,
        io.TextIOWrapper(stream, encoding="ascii") as text,
    ):
        yield _JsonRows(text)


@dataclass(frozen=True)
class _JsonRows:
    text: io.TextIOWrapper

    def write(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self.text.write(json.dumps(_finite(row), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Return the value with null in place of -inf, which JSON cannot express."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value] if value and isinstance(value[0], list | float) else value
    return None if isinstance(value, float) and math.isinf(value) else value


_WRITERS: dict[ExportFormat, Callable[[Path, Any], contextlib.AbstractContextManager[_Writer]]] = {
    "parquet": _parquet,
    "jsonl.zst": _json_lines,
}


@contextlib.contextmanager
def _new_file(out: Path) -> Iterator[Path]:
    """Yield a temporary name next to the file; at the end it is renamed, unless the final name is taken by then."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with new_folder(out.parent), writing(out):
        try:
            yield temporary
            os.link(temporary, out)
        except FileExistsError:
            raise _exists(out) from None
        finally:
            temporary.unlink(missing_ok=True)
