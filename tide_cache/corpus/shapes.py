"""What the fields of a row mean: from one decoded row to its messages (pure).

The shapes are tried in a fixed order and the first whose fields are all there wins; a field that is null counts as
missing, because columns of merged datasets are null where they do not apply.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tide_cache.corpus.rows import RowFault, kind_of
from tide_cache.corpus.turns import Turn, read_turn, without_nulls
from tide_cache.errors import RunFileError
from tide_cache.records import Message

Fields = Mapping[str, Any]
"""The fields of a row that are not null."""

LANGUAGE_FIELDS = ("language", "lang", "programming_language")
NOT_READ = "(not read)"
"""Stands for the value of a column that no shape uses, so that messages can still name the column."""

SYSTEM_FIELDS = ("system", "system_prompt")
_HISTORY, _TOOLS = "history", "tools"
_SHOWN = 5


@dataclass(frozen=True)
class Conversation:
    """What a row says.

    Attributes:
        messages: At least one; at least one of the assistant's is learnt and says something.
        tools: Functions that may be called, a JSON list; empty without any.
        unread: Names of message fields that are not read.
        columns: Names of the row's columns that are not read.
    """

    messages: tuple[Message, ...]
    tools: str
    unread: frozenset[str]
    columns: frozenset[str]


class Unread:
    """Counts what is not read of rows, by name."""

    def __init__(self, read: Collection[str] = ()) -> None:
        """Count nothing yet.

        Args:
            read: Columns that something else than the conversation is read from.
        """
        self._read = frozenset(read)
        self._columns: Counter[str] = Counter()
        self._fields: Counter[str] = Counter()

    def note(self, conversation: Conversation) -> None:
        """Count one row."""
        self._columns.update(conversation.columns - self._read)
        self._fields.update(conversation.unread)

    def notes(self) -> list[str]:
        """Return which columns, and which fields of messages, were not read, and in how many rows they are."""
        kinds = (("columns not read", self._columns), ("fields of messages not read", self._fields))
        return [f"{kind}: {_counted(counts)}" for kind, counts in kinds if counts]


def _counted(counts: Counter[str]) -> str:
    names = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{name} ({count} rows)" for name, count in names[:_SHOWN]) + more


def messages_of(value: object, columns: Mapping[str, str]) -> tuple[Message, ...]:
    """Read a row's messages; as `conversation_of`."""
    return conversation_of(value, columns).messages


def conversation_of(value: object, columns: Mapping[str, str]) -> Conversation:
    """Read a row.

    Args:
        value: A decoded row, of any type.
        columns: Declared mapping as `check_columns` accepts it; it is tried first, where its assistant or messages
            column is present.

    Raises:
        RowFault: The row is not an object, has no usable field, or a field has the wrong type.
    """
    turns, tools, read, fields = read_turns(value, columns, _SHAPES)
    messages = tuple(turn.message for turn in turns)
    _require_answer(messages)
    unused = {str(name) for name, field in fields.items() if name not in read and field not in ("", [], {})}
    return Conversation(
        messages,
        tools,
        frozenset[str]().union(*(turn.unread for turn in turns)),
        frozenset(unused - {*LANGUAGE_FIELDS}),
    )


def read_turns(
    value: object, columns: Mapping[str, str], shapes: Mapping[tuple[str, ...], Callable[[Fields], list[Turn]]]
) -> tuple[list[Turn], str, set[str], Fields]:
    """Read the turns of a row, whoever speaks.

    Args:
        value: A decoded row, of any type.
        columns: As for `conversation_of`.
        shapes: What fields make a row, tried in their order, and how it is read.

    Returns:
        The turns, the functions that may be called (JSON), the columns that were read, and all that are not null.

    Raises:
        RowFault: As for `conversation_of`.
    """
    if isinstance(value, RowFault):
        raise value
    if not isinstance(value, dict):
        raise RowFault(f"the row is {kind_of(value)}; expected an object with named fields")
    fields = {name: field for name, field in value.items() if field is not None}
    read, reader = _reader_for(value, fields, columns, shapes)
    turns = reader(fields)
    is_declared = not columns.keys().isdisjoint(("messages", "user")) and read <= {*columns.values()}
    tools = ""
    if not is_declared and "text" not in read:
        turns, tools = _whole(turns, fields), _tools(fields)
        read = {*read, *SYSTEM_FIELDS, _HISTORY, _TOOLS}
    for turn in turns:
        _require_utf8(turn.message.content)
        _require_utf8(turn.message.extras)
    _require_utf8(tools)
    return turns, tools, read, fields


def _require_answer(messages: Sequence[Message]) -> None:
    answers = [m for m in messages if m.role == "assistant" and (m.content.strip() or m.extras)]
    if not answers:
        roles = ", ".join(message.role for message in messages) or "none"
        raise RowFault(f"found no assistant message with text (roles found: {roles}); expected at least one")
    if not any(message.is_learnt for message in answers):
        raise RowFault("every assistant message has weight 0; expected at least one that is learnt")


def _whole(turns: list[Turn], fields: Fields) -> list[Turn]:
    """Put the columns `history` and `system` before the turns of a row."""
    turns = [*_history(fields.get(_HISTORY, [])), *turns]
    for name in SYSTEM_FIELDS:
        if not fields.get(name):
            continue
        system = _said("system", fields, name)
        if turns and turns[0].message.role == "system":
            if turns[0].message.content != system.message.content:
                raise RowFault(f"{name}: found another text than that of the system message; expected one of the two")
        elif system.message.content.strip():
            turns = [system, *turns]
    return turns


def _history(history: object) -> list[Turn]:
    """Read earlier exchanges: pairs of what the user and the assistant said, or messages."""
    if history in ("", {}):
        return []
    if not isinstance(history, list):
        raise RowFault(f"{_HISTORY}: found {kind_of(history)}; expected a list of [user, assistant]")
    turns = []
    for number, entry in enumerate(history):
        where = f"{_HISTORY}[{number}]"
        if isinstance(entry, dict):
            turns.append(read_turn(entry, where))
        elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry):
            turns += [_plain(role, text) for role, text in zip(("user", "assistant"), entry, strict=True)]
        else:
            raise RowFault(f"{where}: found {kind_of(entry)}; expected two strings, of the user and of the assistant")
    return turns


def _tools(fields: Fields) -> str:
    """Return the functions that may be called, as JSON; a column of JSON text is read too."""
    tools = fields.get(_TOOLS)
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError) as error:
            raise RowFault(f"{_TOOLS}: found a string that is no JSON: {error}; expected a list of functions") from None
    if not tools:
        return ""
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowFault(f"{_TOOLS}: found {kind_of(tools)}; expected a list of functions")
    return json.dumps(without_nulls(tools), ensure_ascii=False)


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a declared mapping that is none of the known ones.

    Raises:
        RunFileError: Says which keys were found and which are expected.
    """
    keys = set(columns)
    if keys and keys != {"messages"} and keys | {"system"} != {"user", "assistant", "system"}:
        raise RunFileError(
            f"corpus.columns: found keys {', '.join(sorted(keys))}; expected {{messages = ...}}, "
            "or {user = ..., assistant = ...} with an optional system = ..., each with the name of a column"
        )


def used_fields(columns: Mapping[str, str]) -> frozenset[str]:
    """Return the names of all fields that a shape or the language filter may use."""
    optional = ("input", *SYSTEM_FIELDS, _HISTORY, _TOOLS, *LANGUAGE_FIELDS)
    return frozenset([*(name for shape in _SHAPES for name in shape), *optional, *columns.values()])


def _reader_for(
    row: Mapping[str, Any],
    fields: Fields,
    columns: Mapping[str, str],
    shapes: Mapping[tuple[str, ...], Callable[[Fields], list[Turn]]],
) -> tuple[set[str], Callable[[Fields], list[Turn]]]:
    """Choose how a row is read; also return the columns that this reads."""
    if columns.get("messages", columns.get("assistant")) in fields:
        return {*columns.values()}, lambda present: _declared(present, columns)
    for required, reader in shapes.items():
        if all(name in fields for name in required):
            return {*required, *(("input",) if required[0] == "instruction" else ())}, reader
    found = ", ".join(str(name) if name in fields else f"{name} (null)" for name in row) or "none"
    expected = "; ".join(" + ".join(required) for required in shapes)
    hint = "; for a preprocessed set, say so in corpus.format" if "teacher_input_ids" in row else ""
    raise RowFault(f"no usable field; found {found}; expected one of these: {expected}{hint}")


def _declared(fields: Fields, columns: Mapping[str, str]) -> list[Turn]:
    if "messages" in columns:
        return _turns(fields, columns["messages"])
    messages = [_said("user", fields, columns["user"]), _said("assistant", fields, columns["assistant"])]
    if columns.get("system") in fields:
        messages.insert(0, _said("system", fields, columns["system"]))
    return messages


def _instruction(fields: Fields) -> list[Turn]:
    return [*_asked_by_instruction(fields), _said("assistant", fields, "output")]


def _asked_by_instruction(fields: Fields) -> list[Turn]:
    instruction = _said("user", fields, "instruction")
    if "input" in fields and (extra := _said("user", fields, "input").message.content):
        instruction = _plain("user", f"{instruction.message.content}\n\n{extra}")
    return [instruction]


def _completion(fields: Fields) -> list[Turn]:
    return [*_text_or_turns("user", fields, "prompt"), *_text_or_turns("assistant", fields, "completion")]


def _text_or_turns(role: str, fields: Fields, name: str) -> list[Turn]:
    return _turns(fields, name) if isinstance(fields[name], list) else [_said(role, fields, name)]


def _plain(role: str, content: str) -> Turn:
    return Turn(Message(role, content), frozenset())


def _said(role: str, fields: Fields, name: str) -> Turn:
    content = fields.get(name)
    if not isinstance(content, str):
        raise RowFault(f"{name}: found {kind_of(content)}; expected a string")
    return _plain(role, content)


def _turns(fields: Fields, name: str) -> list[Turn]:
    turns = fields[name]
    if not isinstance(turns, list):
        raise RowFault(f"{name}: found {kind_of(turns)}; expected a list of messages")
    return [read_turn(turn, f"{name}[{number}]") for number, turn in enumerate(turns)]


def _require_utf8(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is legal JSON, but no tokenizer can encode it
        raise RowFault(
            f"half of a surrogate pair, {text[error.start]!r}, at character {error.start} of a message; "
            "expected Unicode text"
        ) from None


_SHAPES: dict[tuple[str, ...], Callable[[Fields], list[Turn]]] = {
    ("messages",): lambda fields: _turns(fields, "messages"),
    ("conversations",): lambda fields: _turns(fields, "conversations"),
    ("question", "answer"): lambda fields: [_said("user", fields, "question"), _said("assistant", fields, "answer")],
    ("instruction", "output"): _instruction,
    ("prompt", "completion"): _completion,
    ("text",): lambda fields: [_said("assistant", fields, "text")],
}

_PROMPT_SHAPES: dict[tuple[str, ...], Callable[[Fields], list[Turn]]] = {
    **{names: reader for names, reader in _SHAPES.items() if names != ("text",)},
    ("question",): lambda fields: [_said("user", fields, "question")],
    ("instruction",): _asked_by_instruction,
    ("prompt",): lambda fields: _text_or_turns("user", fields, "prompt"),
}
"""Of rows that need no answer."""


def prompt_shapes(columns: Mapping[str, str]) -> dict[tuple[str, ...], Callable[[Fields], list[Turn]]]:
    """Return what fields make a prompt, with an answer or without.

    Args:
        columns: A declared mapping; its `user` alone makes a prompt.
    """
    if "user" not in columns:
        return _PROMPT_SHAPES

    def declared(fields: Fields) -> list[Turn]:
        system = [_said("system", fields, columns["system"])] if columns.get("system") in fields else []
        return [*system, _said("user", fields, columns["user"])]

    return {(columns["user"],): declared, **_PROMPT_SHAPES}
