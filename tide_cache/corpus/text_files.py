"""Readers of text: JSON lines (plain, gzip, zstd), one JSON document, and plain paragraphs."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from tide_cache.corpus.rows import RawRow, RowFault, kind_of
from tide_cache.errors import CorpusError
from tide_cache.unreadable import told_apart


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """Stream one JSON object per line; the suffix decides about decompression."""
    number = 0
    for line, text in _numbered_lines(path):
        if isinstance(text, RowFault):
            yield RawRow(number, line, text)
        elif text.strip():
            yield RawRow(number, line, _decoded(text))
        else:
            continue
        number += 1


def read_json(path: Path) -> Iterator[RawRow]:
    """Read one JSON document: an array of rows, or an object whose `data` is one.

    The whole document is held in memory while it is read; a large corpus belongs in JSON lines or Parquet.
    """
    with _readable(path):
        data = path.read_bytes()
    try:
        document = json.loads(data.decode("utf-8-sig")) if data.strip() else []
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: {_bad_utf8(error)}; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        hint = "; for one object per line, name the file .jsonl" if error.msg == "Extra data" else ""
        raise CorpusError(
            f"{path}:{error.lineno}:{error.colno}: broken JSON: {error.msg}; expected one JSON document{hint}. "
            "Fix the file at that line and column."
        ) from None
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: JSON that cannot be decoded: {error}; fix or rewrite the file") from None
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        found = f"keys {', '.join(document) or 'none'}" if isinstance(document, dict) else kind_of(document)
        raise CorpusError(
            f'{path}: found {found}; expected an array of rows, or {{"data": [rows]}}; '
            "for one object per line, name the file .jsonl"
        )
    for number, value in enumerate(rows):
        yield RawRow(number, None, value)


def read_text(path: Path) -> Iterator[RawRow]:
    """Stream paragraphs, separated by blank lines; each becomes a row with one field `text`."""
    number, start, paragraph = 0, 0, list[str | RowFault]()
    for line, text in _numbered_lines(path):
        if isinstance(text, RowFault) or text.strip():
            start = start if paragraph else line
            paragraph.append(text)
        elif paragraph:
            yield RawRow(number, start, _joined(paragraph))
            number, paragraph = number + 1, []
    if paragraph:
        yield RawRow(number, start, _joined(paragraph))


def _joined(paragraph: list[str | RowFault]) -> object:
    fault = next((line for line in paragraph if isinstance(line, RowFault)), None)
    return fault or {"text": "\n".join(str(line).rstrip("\r\n") for line in paragraph)}


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return RowFault(f"broken JSON at column {error.colno}: {error.msg}; expected one JSON object per line")
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or brackets nested too deeply
        return RowFault(f"JSON that cannot be decoded: {error}; expected one JSON object per line")


def _numbered_lines(path: Path) -> Iterator[tuple[int, str | RowFault]]:
    """Yield lines with their 1-based numbers; a line that is not UTF-8 becomes a fault."""
    with _readable(path), _opened(path) as stream:
        for line, data in enumerate(stream, start=1):
            try:
                yield line, data.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield line, RowFault(_bad_utf8(error))


def _bad_utf8(error: UnicodeDecodeError) -> str:
    return f"0x{error.object[error.start]:02x} at byte {error.start} is not UTF-8 ({error.reason}); expected UTF-8 text"


def _opened(path: Path) -> BinaryIO:
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if name.endswith(".zst"):
        # not zstandard's reader: it takes a truncated file for a shorter one
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors while reading bytes into a CorpusError, or an UnreadableError for faults of the machine."""
    try:
        with told_apart(path):
            yield
    except (EOFError, zlib.error, OSError) as error:
        raise CorpusError(
            f"{path}: cannot be read: {error}; expected a whole, readable file. Copy or download it again."
        ) from None
