"""Files of engines: vLLM's `prompt_logprobs` as JSON lines or Parquet, and DistillKit's Parquet."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from tide_cache.corpus.rows import RawRow, RowFault, kind_of
from tide_cache.corpus.tables import read_parquet
from tide_cache.corpus.text_files import read_jsonl
from tide_cache.errors import EngineFileError
from tide_cache.teacher.distillkit import COLUMNS as DISTILLKIT
from tide_cache.teacher.distillkit import LEGACY_COLUMNS, Packing, refuse_legacy
from tide_cache.teacher.engine_rows import UNKNOWN, EngineRow, entries_of, row_of
from tide_cache.unreadable import told_apart

FileFormat = Literal["vllm", "distillkit"]
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*JSON_LINES, ".parquet")
NAMES = ("sample_id", "custom_id")
"""Fields that may say which sample a row is about."""
VLLM = frozenset({*NAMES, "prompt_token_ids", "prompt_logprobs", "response", "choices", "error"})

RowReader = Callable[[RawRow, str], EngineRow]


def files_in(path: Path) -> list[Path]:
    """Return the files of a location: itself, or those of a folder in the order of their names.

    Args:
        path: A file or a folder.

    Raises:
        EngineFileError: There is none.
    """
    with told_apart(path):
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    found = [file for file in files if file.name.endswith(SUFFIXES)]
    if not found:
        what = f"no such file among {len(files)}" if files else "nothing"
        raise EngineFileError(
            f"{path}: found {what}; expected a file, or a folder of files, with a name that ends in "
            f"{', '.join(SUFFIXES)}: vLLM's prompt_logprobs, or DistillKit's Parquet (docs/teachers.md)"
        )
    return found


def hash_of(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a file, or of several files' SHA-256.

    Args:
        files: In their order.
    """
    digests = []
    for file in files:
        with told_apart(file), file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def format_of(files: Sequence[Path]) -> FileFormat:
    """Tell who wrote some files from the first of them.

    Args:
        files: All of one format.

    Raises:
        EngineFileError: Its columns are none that an engine writes.
    """
    first = files[0]
    if not first.name.endswith(".parquet"):
        return "vllm"
    try:
        with told_apart(first):
            names = set(pq.read_schema(first).names)
    except (OSError, ValueError) as error:
        raise EngineFileError(f"{first}: cannot be read: {error}; expected a whole Parquet file") from None
    if names >= LEGACY_COLUMNS:
        refuse_legacy(first)
    if names >= DISTILLKIT:
        return "distillkit"
    if names & {"prompt_logprobs", "response", "choices"}:
        return "vllm"
    raise EngineFileError(
        f"{first}: found the columns {', '.join(sorted(names))}; expected prompt_logprobs and prompt_token_ids, as "
        f"vLLM has them, or {', '.join(sorted(DISTILLKIT))}, as DistillKit writes them"
    )


def read_rows(files: Sequence[Path], vocab_size: int) -> Iterator[EngineRow]:
    """Read all rows of an engine's files.

    Args:
        files: Of one format.
        vocab_size: Ids of the teacher are below it.

    Raises:
        EngineFileError: A row has another shape, or contradicts itself; names row and position.
        CorpusError: A file cannot be read.
    """
    is_distillkit = format_of(files) == "distillkit"
    for file in files:
        read: RowReader = _vllm_reader(vocab_size)
        if is_distillkit:
            read = Packing.beside(file).reader(vocab_size)
        lines = not file.name.endswith(".parquet")
        for raw in read_jsonl(file) if lines else read_parquet(file, DISTILLKIT if is_distillkit else VLLM):
            origin = raw.place_in(file.name)
            try:
                if isinstance(raw.value, RowFault):
                    raise raw.value
                yield read(raw, origin)
            except RowFault as fault:
                raise EngineFileError(
                    f"{file.parent / origin}: {fault}.\nAsk the engine for this row again, or leave its sample out of "
                    "the corpus. Nothing was written."
                ) from None


def _vllm_reader(vocab_size: int) -> RowReader:
    def read(raw: RawRow, origin: str) -> EngineRow:
        value = _parsed(raw.value)
        if not isinstance(value, Mapping):
            raise RowFault(f"found {kind_of(value)}, expected an object with prompt_logprobs")
        body, stated = _body(value)
        said = _parsed(body["prompt_logprobs"])
        if not isinstance(said, Sequence) or isinstance(said, str) or not said:
            raise RowFault(f"prompt_logprobs: found {kind_of(said)}, expected a list with an entry for each token")
        positions = []
        for place, at in enumerate(said):
            try:
                positions.append(entries_of(at))
            except RowFault as fault:
                raise RowFault(f"position {place}: {fault}") from None
        name = next((str(value[key]) for key in NAMES if value.get(key) is not None), "")
        return row_of(origin, name, _tokens(stated, positions), positions, vocab_size)

    return read


def _parsed(value: object) -> Any:
    """Decode a column of Parquet that holds JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowFault(f"found text that is not JSON: {error}") from None


def _body(value: Mapping[str, Any], stated: object = None) -> tuple[Mapping[str, Any], object]:
    """Find what has `prompt_logprobs`, and the text's tokens, in a dump, an answer of a server, or one of a batch."""
    stated = stated if value.get("prompt_token_ids") is None else value["prompt_token_ids"]
    if value.get("prompt_logprobs") is not None:
        return value, stated
    if value.get("error"):
        raise RowFault(f"found an error in place of an answer: {value['error']}")
    for key in ("response", "body"):
        if isinstance(inner := _parsed(value.get(key)), Mapping):
            return _body(inner, stated)
    choices = _parsed(value.get("choices"))
    if isinstance(choices, Sequence) and len(choices) and isinstance(choices[0], Mapping):
        return _body(choices[0], stated)
    raise RowFault(
        f"found no prompt_logprobs among {', '.join(map(str, value)) or 'nothing'}; ask vLLM for them "
        "(prompt_logprobs = k, max_tokens = 1)"
    )


def _tokens(stated: object, positions: Sequence[Any]) -> list[int]:
    """Return the tokens of the text: as stated, or else the first entry of each position, which vLLM writes first."""
    stated = _parsed(stated)
    if stated is None:
        if positions[0] is not None:
            raise RowFault("position 0: found log-probs of the first token, which has none before it; expected null")
        return [UNKNOWN if at is None else at[0].token_id for at in positions]
    try:
        found = [int(token_id) for token_id in stated]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise RowFault(f"prompt_token_ids: found {kind_of(stated)}, expected a list of token ids") from None
    if len(found) != len(positions):
        raise RowFault(
            f"found {len(found)} prompt_token_ids and {len(positions)} prompt_logprobs; expected equally many, null "
            "for the first"
        )
    return found
