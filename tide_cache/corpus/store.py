"""Normalised rows on disk: written once in one pass, then memory-mapped, so memory does not grow with the corpus."""

import hashlib
import json
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tide_cache.errors import CorpusError
from tide_cache.records import ChatRow, Message, SampleId

_ROWS_PER_BATCH = 512
_CHARACTERS_PER_BATCH = 1 << 24
_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("origin", pa.string()),
        ("roles", pa.list_(pa.string())),
        ("contents", pa.list_(pa.string())),
    ]
)


class Corpus:
    """The rows of a corpus, in order, with random access.

    They lie in a temporary file whose name is already gone: the space is free again when the corpus is, however the
    process ends. The file is in the system's temporary folder; the environment variable TMPDIR moves it.

    Attributes:
        content_hash: SHA-256, in hex, over sample ids and messages in order; where the corpus lies does not enter.
        skipped: One message for each row that was left out: where, and why.
    """

    def __init__(self, batches: Any, starts: Sequence[int], content_hash: str, skipped: tuple[str, ...]) -> None:
        self._batches = batches
        self._starts = starts  # first row of each batch, then the number of rows
        self.content_hash = content_hash
        self.skipped = skipped

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> ChatRow:
        row = range(len(self))[index]
        return next(self.rows(row, row + 1))

    def __iter__(self) -> Iterator[ChatRow]:
        return self.rows(0, len(self))

    def rows(self, start: int, stop: int) -> Iterator[ChatRow]:
        """Yield rows start <= row < stop; as in a slice, what lies beyond the end is left out."""
        start, stop, _ = slice(start, stop).indices(len(self))
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            end = min(stop, self._starts[number + 1])
            batch = self._batches.get_batch(number).slice(start - self._starts[number], end - start)
            for sample_id, origin, roles, contents in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                yield ChatRow(SampleId(sample_id), tuple(map(Message, roles, contents)), origin)
            start = end


def store_rows(rows: Iterable[ChatRow], skipped: list[str]) -> Corpus:
    """Write rows to a temporary file and open it as a corpus.

    Args:
        rows: All rows; consumed in one pass.
        skipped: Filled by whoever makes the rows; read when they are exhausted.

    Raises:
        CorpusError: The temporary folder cannot hold the rows; and whatever making the rows raises.
    """
    digest = hashlib.sha256()
    starts = [0]
    # The mapping outlives the name. A network file system may refuse to remove an open file; it removes it on closing.
    with tempfile.TemporaryDirectory(prefix="tide-cache-corpus-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "rows.arrow")
        try:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
                for batch in _batched(rows):
                    for row in batch:
                        digest.update(_hashed_form(row))
                    writer.write_batch(_record_batch(batch))
                    starts.append(starts[-1] + len(batch))
        except OSError as error:
            raise CorpusError(
                f"{path.parent.parent}: cannot hold the normalised corpus: {error}; free some space there, or set "
                "TMPDIR to a folder on a larger disk"
            ) from None
        batches = pa.ipc.open_file(pa.memory_map(str(path)))
    return Corpus(batches, starts, digest.hexdigest(), tuple(skipped))


def _batched(rows: Iterable[ChatRow]) -> Iterator[list[ChatRow]]:
    batch: list[ChatRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(message.content) for message in row.messages)
        if len(batch) == _ROWS_PER_BATCH or characters >= _CHARACTERS_PER_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _record_batch(rows: list[ChatRow]) -> Any:
    columns = [
        [row.sample_id for row in rows],
        [row.origin for row in rows],
        [[message.role for message in row.messages] for row in rows],
        [[message.content for message in row.messages] for row in rows],
    ]
    return pa.record_batch([pa.array(c, field.type) for c, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA)


def _hashed_form(row: ChatRow) -> bytes:
    """One line of JSON: quoting keeps the fields apart, so different rows never give the same bytes."""
    turns = [[message.role, message.content] for message in row.messages]
    return json.dumps([row.sample_id, turns]).encode("ascii") + b"\n"
