"""Rows on disk: written once in one pass, then memory-mapped, so memory does not grow with the corpus."""

import hashlib
import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa

from tide_cache.errors import WriteError
from tide_cache.records import ChatRow, Message, SampleId

_ROWS_PER_BATCH = 512
_SIZE_PER_BATCH = 1 << 24

Row = TypeVar("Row")


@dataclass(frozen=True)
class RowKind(Generic[Row]):
    """How rows of one kind are stored and hashed.

    Attributes:
        schema: Arrow columns.
        columns_of: Returns the columns of some rows.
        rows_of: Returns the rows of a batch of those columns.
        hashed_form: Everything of a row but its origin, as bytes unique to the row.
        size_of: About how much memory a row takes, in characters or tokens.
    """

    schema: Any
    columns_of: Callable[[Sequence[Row]], list[list[Any]]]
    rows_of: Callable[[Any], Iterator[Row]]
    hashed_form: Callable[[Row], bytes]
    size_of: Callable[[Row], int]


class Corpus(Generic[Row]):
    """The rows of a corpus, in order, with random access.

    They are in a temporary file whose name is already deleted: the space is freed with the corpus, however the
    process ends. The file is in the system's temporary folder; the environment variable TMPDIR moves it.

    Attributes:
        content_hash: SHA-256, in hex, over sample ids and contents in order; the location does not enter.
        skipped: One message for each row that was left out: where, and why.
        notes: What is there but not read: files, columns, fields of messages.
    """

    def __init__(
        self,
        kind: RowKind[Row],
        batches: Any,
        starts: Sequence[int],
        content_hash: str,
        skipped: tuple[str, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        self._kind = kind
        self._batches = batches
        self._starts = starts  # first row of each batch, then the number of rows
        self.content_hash = content_hash
        self.skipped = skipped
        self.notes = notes

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        row = range(len(self))[index]
        return next(self.rows(row, row + 1))

    def __iter__(self) -> Iterator[Row]:
        return self.rows(0, len(self))

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield rows start <= row < stop; as in a slice, rows beyond the end are left out."""
        start, stop, _ = slice(start, stop).indices(len(self))
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            end = min(stop, self._starts[number + 1])
            batch = self._batches.get_batch(number).slice(start - self._starts[number], end - start)
            yield from self._kind.rows_of(batch)
            start = end


def _columns_of_chat(rows: Sequence[ChatRow]) -> list[list[Any]]:
    return [
        [row.sample_id for row in rows],
        [row.origin for row in rows],
        [[message.role for message in row.messages] for row in rows],
        [[message.content for message in row.messages] for row in rows],
        [[message.is_learnt for message in row.messages] for row in rows],
        [[message.extras for message in row.messages] for row in rows],
        [row.tools for row in rows],
        [row.trajectory for row in rows],
    ]


def _chat_rows_of(batch: Any) -> Iterator[ChatRow]:
    for sample_id, origin, *turns, tools, trajectory in zip(*(c.to_pylist() for c in batch.columns), strict=True):
        yield ChatRow(SampleId(sample_id), tuple(map(Message, *turns)), origin, tools, trajectory)


def _hashed_chat(row: ChatRow) -> bytes:
    """Return one line of JSON: quoting separates the fields, so different rows never have the same bytes.

    Fields that most rows lack are omitted when empty, so that older corpora keep their hash.
    """
    turns = [[m.role, m.content, *_rest(not m.is_learnt, m.extras)] for m in row.messages]
    further = _rest(row.tools, row.trajectory) if row.trajectory else _rest(row.tools)
    return json.dumps([row.sample_id, turns, *further]).encode("ascii") + b"\n"


def _rest(*values: object) -> tuple[object, ...]:
    return values if any(values) else ()


CHAT_ROWS: RowKind[ChatRow] = RowKind(
    schema=pa.schema(
        [
            ("sample_id", pa.string()),
            ("origin", pa.string()),
            ("roles", pa.list_(pa.string())),
            ("contents", pa.list_(pa.string())),
            ("is_learnt", pa.list_(pa.bool_())),
            ("extras", pa.list_(pa.string())),
            ("tools", pa.string()),
            ("trajectory", pa.string()),
        ]
    ),
    columns_of=_columns_of_chat,
    rows_of=_chat_rows_of,
    hashed_form=_hashed_chat,
    size_of=lambda row: sum(len(message.content) + len(message.extras) for message in row.messages) + len(row.tools),
)


def store_rows(
    rows: Iterable[Row], skipped: list[str], kind: RowKind[Row], notes: Callable[[], Sequence[str]] = tuple
) -> Corpus[Row]:
    """Write rows to a temporary file and open it as a corpus.

    Args:
        rows: All rows; consumed in one pass.
        skipped: Filled by the producer of the rows; read when they are exhausted.
        kind: How such rows are stored.
        notes: Returns what was not read of the source; called when the rows are exhausted.

    Raises:
        WriteError: The temporary folder cannot hold the rows.
        TideCacheError: Whatever making the rows raises.
    """
    digest = hashlib.sha256()
    starts = [0]
    # The mapping outlives the name. A network file system may refuse to remove an open file; it removes it on closing.
    with _temporary_folder() as folder:
        path = folder / "rows.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, kind.schema) as writer:
            for batch in _batched(rows, kind.size_of):
                for row in batch:
                    digest.update(kind.hashed_form(row))
                columns = zip(kind.columns_of(batch), kind.schema, strict=True)
                arrays = [pa.array(values, field.type) for values, field in columns]
                writer.write_batch(pa.record_batch(arrays, kind.schema))
                starts.append(starts[-1] + len(batch))
        batches = pa.ipc.open_file(pa.memory_map(str(path)))
    return Corpus(kind, batches, starts, digest.hexdigest(), tuple(skipped), tuple(notes()))


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a folder whose name is deleted with the `with` block; errors of the disk there name TMPDIR."""
    try:
        with tempfile.TemporaryDirectory(prefix="tide-cache-corpus-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:  # also where no folder can be used at all
        where = os.environ.get("TMPDIR") or tempfile.tempdir or "TMPDIR"
        raise WriteError(
            f"{where}: cannot hold the normalised corpus: {error}; free some space there, or set TMPDIR to a folder "
            "on a larger disk"
        ) from None


def _batched(rows: Iterable[Row], size_of: Callable[[Row], int]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += size_of(row)
        if len(batch) == _ROWS_PER_BATCH or size >= _SIZE_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
