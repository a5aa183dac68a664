"""Rows of a corpus as prompts: the turns before the last answer, which a model will write again.

The answer of a row is kept, and so are all fields that are not part of the conversation.
"""

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tide_cache.config.settings import OnBadRow
from tide_cache.corpus.languages import language_of
from tide_cache.corpus.reading import RowReading, read_rows
from tide_cache.corpus.rows import RowFault
from tide_cache.corpus.shapes import check_columns, prompt_shapes, read_turns
from tide_cache.corpus.store import Corpus, RowKind
from tide_cache.errors import RunFileError
from tide_cache.records import Message, SampleId

REFERENCE = "reference_answer"
"""Field of an answered row with its earlier answer."""
_WAY_OUT = (
    'Fix the row, declare its column in corpus.columns, for example {user = "question_text"}, or leave such rows out '
    "with --on-bad-row skip."
)


class _Every(Container[str]):
    """All columns of a table."""

    def __contains__(self, name: object) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One conversation that waits for its answer.

    Attributes:
        sample_id: As in `ChatRow`; keys the draws of its answer.
        messages: The turns before the answer; the last one is not the assistant's.
        origin: As in `ChatRow`.
        tools: As in `ChatRow`.
        fields: JSON object of the row's other fields, including its earlier answer.
    """

    sample_id: SampleId
    messages: tuple[Message, ...]
    origin: str
    tools: str
    fields: str

    def answered(self, answer: str, **further: Any) -> dict[str, Any]:
        """Return the row with an answer, as written to a corpus: earlier answers are shown but not learned.

        Args:
            answer: What the model wrote.
            further: Fields to add.
        """
        turns = [_as_turn(message) for message in self.messages]
        tools = {"tools": json.loads(self.tools)} if self.tools else {}
        said = {"messages": [*turns, {"role": "assistant", "content": answer}], **tools}
        return {**said, **json.loads(self.fields), **further}


def _as_turn(message: Message) -> dict[str, Any]:
    unlearnt = {"weight": 0} if message.role == "assistant" else {}
    extras = json.loads(message.extras) if message.extras else {}
    return {"role": message.role, "content": message.content, **extras, **unlearnt}


def open_prompts(
    spec: str,
    *,
    folder: Path,
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "error",
    format: str = "chat",
) -> Corpus[PromptRow]:
    """Read a mix of files, saved datasets and hub datasets as prompts.

    Args:
        spec: As for `open_corpus`.
        folder: As for `open_corpus`.
        columns: As for `open_corpus`; `{"user": ...}` alone will do.
        on_bad_row: As for `open_corpus`.
        format: Only `chat` holds conversations.

    Raises:
        RunFileError: The spec or the mapping cannot be understood, or the corpus holds no conversations.
        CorpusError: As for `open_corpus`.
    """
    if format != "chat":
        raise RunFileError(
            f"corpus.format: found {format!r}; expected 'chat': a preprocessed set holds tokens of the old answers. "
            "Give the set that it was made from."
        )
    if set(columns) - {"system"} != {"user"}:
        check_columns(columns)
    unkept = Counter[str]()

    def row_of(sample_id: SampleId, origin: str, value: object) -> PromptRow:
        return _prompt_of(sample_id, origin, value, columns, unkept)

    def notes() -> list[str]:
        counted = ", ".join(f"{name} ({count} rows)" for name, count in sorted(unkept.items()))
        return [f"fields not kept, since JSON has no such values: {counted}"] if unkept else []

    reading = RowReading(
        kind=PROMPT_ROWS,
        fields=_Every(),
        row_of=row_of,
        language_of=lambda value, row: language_of(value, row.messages),
        way_out=_WAY_OUT,
        notes=notes,
    )
    return read_rows(spec, folder, on_bad_row, reading)


def _prompt_of(
    sample_id: SampleId, origin: str, value: object, columns: Mapping[str, str], unkept: Counter[str]
) -> PromptRow:
    turns, tools, read, fields = read_turns(value, columns, prompt_shapes(columns))
    messages = [turn.message for turn in turns]
    kept: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in read and name != "messages":
            try:
                json.dumps(field)
            except (TypeError, ValueError):
                unkept[name] += 1
            else:
                kept[name] = field
    if messages and messages[-1].role == "assistant":
        kept.setdefault(REFERENCE, messages.pop().content)
    if not messages or messages[-1].role == "assistant" or not any(m.content.strip() for m in messages):
        roles = ", ".join(message.role for message in messages) or "none"
        raise RowFault(f"the prompt is empty (roles before the answer: {roles}); expected a turn to answer")
    if messages[-1].role == "system":
        raise RowFault("found only a system message before the answer; expected a turn to answer")
    if not messages[-1].content.strip():
        raise RowFault(f"the last turn, of role {messages[-1].role}, is empty; expected a text")
    return PromptRow(sample_id, tuple(messages), origin, tools, json.dumps(kept, ensure_ascii=False))


def _columns_of(rows: Sequence[PromptRow]) -> list[list[Any]]:
    return [
        [row.sample_id for row in rows],
        [row.origin for row in rows],
        [[message.role for message in row.messages] for row in rows],
        [[message.content for message in row.messages] for row in rows],
        [[message.extras for message in row.messages] for row in rows],
        [row.tools for row in rows],
        [row.fields for row in rows],
    ]


def _rows_of(batch: Any) -> Iterator[PromptRow]:
    for sample_id, origin, roles, contents, extras, tools, fields in zip(
        *(column.to_pylist() for column in batch.columns), strict=True
    ):
        messages = tuple(
            Message(role, content, extras=extra) for role, content, extra in zip(roles, contents, extras, strict=True)
        )
        yield PromptRow(SampleId(sample_id), messages, origin, tools, fields)


def _hashed(row: PromptRow) -> bytes:
    turns = [[message.role, message.content, message.extras] for message in row.messages]
    return json.dumps([row.sample_id, turns, row.tools, row.fields]).encode("ascii") + b"\n"


PROMPT_ROWS: RowKind[PromptRow] = RowKind(
    schema=pa.schema(
        [
            ("sample_id", pa.string()),
            ("origin", pa.string()),
            ("roles", pa.list_(pa.string())),
            ("contents", pa.list_(pa.string())),
            ("extras", pa.list_(pa.string())),
            ("tools", pa.string()),
            ("fields", pa.string()),
        ]
    ),
    columns_of=_columns_of,
    rows_of=_rows_of,
    hashed_form=_hashed,
    size_of=lambda row: sum(len(message.content) for message in row.messages) + len(row.fields) + len(row.tools),
)
