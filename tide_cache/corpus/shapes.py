"""What the fields of a row mean: from one decoded row to its messages (pure).

The shapes are tried in a fixed order and the first whose fields are all there wins; a field that is null counts as
missing, because columns of merged datasets are null where they do not apply.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tide_cache.corpus.rows import RowFault, kind_of
from tide_cache.errors import RunFileError
from tide_cache.records import Message

Fields = Mapping[str, Any]
"""The fields of a row that are not null."""

LANGUAGE_FIELDS = ("language", "lang", "programming_language")
NOT_READ = "(not read)"
"""Stands for the value of a column that no shape uses, so that messages can still name the column."""

_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",  # ShareGPT's words
    "gpt": "assistant",
}


def messages_of(value: object, columns: Mapping[str, str]) -> tuple[Message, ...]:
    """Read a row's messages.

    Args:
        value: A decoded row, of any type.
        columns: Declared mapping as `check_columns` accepts it; it is tried first, where its assistant or messages
            column is present.

    Returns:
        At least one message; at least one of the assistant's has text.

    Raises:
        RowFault: The row is no object, has no usable field, or a field has the wrong type.
    """
    if isinstance(value, RowFault):
        raise value
    if not isinstance(value, dict):
        raise RowFault(f"the row is {kind_of(value)}; expected an object with named fields")
    fields = {name: field for name, field in value.items() if field is not None}
    messages = tuple(_reader_for(value, fields, columns)(fields))
    if not any(message.role == "assistant" and message.content.strip() for message in messages):
        roles = ", ".join(message.role for message in messages) or "none"
        raise RowFault(f"found no assistant message with text (roles found: {roles}); expected at least one")
    for message in messages:
        _require_utf8(message.content)
    return messages


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
    """Names of all fields that a shape or the language filter may look at."""
    optional = ("input", *LANGUAGE_FIELDS)
    return frozenset([*(name for shape in _SHAPES for name in shape), *optional, *columns.values()])


def _reader_for(
    row: Mapping[str, Any], fields: Fields, columns: Mapping[str, str]
) -> Callable[[Fields], list[Message]]:
    if columns.get("messages", columns.get("assistant")) in fields:
        return lambda present: _declared(present, columns)
    for required, reader in _SHAPES.items():
        if all(name in fields for name in required):
            return reader
    found = ", ".join(str(name) if name in fields else f"{name} (null)" for name in row) or "none"
    shapes = "; ".join(" + ".join(required) for required in _SHAPES)
    hint = "; for a preprocessed set, say so in corpus.format" if "teacher_input_ids" in row else ""
    raise RowFault(f"no usable field; found {found}; expected one of these: {shapes}{hint}")


def _declared(fields: Fields, columns: Mapping[str, str]) -> list[Message]:
    if "messages" in columns:
        return _turns(fields, columns["messages"])
    messages = [_said("user", fields, columns["user"]), _said("assistant", fields, columns["assistant"])]
    if columns.get("system") in fields:
        messages.insert(0, _said("system", fields, columns["system"]))
    return messages


def _instruction(fields: Fields) -> list[Message]:
    instruction = _said("user", fields, "instruction")
    if "input" in fields and (extra := _said("user", fields, "input").content):
        instruction = Message("user", f"{instruction.content}\n\n{extra}")
    return [instruction, _said("assistant", fields, "output")]


def _completion(fields: Fields) -> list[Message]:
    messages = []
    for role, name in (("user", "prompt"), ("assistant", "completion")):
        messages += _turns(fields, name) if isinstance(fields[name], list) else [_said(role, fields, name)]
    return messages


def _said(role: str, fields: Fields, name: str) -> Message:
    content = fields.get(name)
    if not isinstance(content, str):
        raise RowFault(f"{name}: found {kind_of(content)}; expected a string")
    return Message(role, content)


def _turns(fields: Fields, name: str) -> list[Message]:
    turns = fields[name]
    if not isinstance(turns, list):
        raise RowFault(f"{name}: found {kind_of(turns)}; expected a list of messages")
    return [_turn(turn, f"{name}[{number}]") for number, turn in enumerate(turns)]


def _turn(turn: object, where: str) -> Message:
    """Read {role, content}, or ShareGPT's {from, value}; further keys of a message are not used."""
    if not isinstance(turn, dict):
        raise RowFault(f"{where}: found {kind_of(turn)}; expected an object with role and content")
    role, content = (
        turn.get(name) if turn.get(name) is not None else turn.get(sharegpt)
        for name, sharegpt in (("role", "from"), ("content", "value"))
    )
    if not isinstance(role, str) or role not in _ROLES:
        found = repr(role) if isinstance(role, str) else kind_of(role)
        raise RowFault(f"{where}: found role {found}; expected one of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise RowFault(f"{where}: found {kind_of(content)} as content; expected a string")
    return Message(_ROLES[role], content)


def _require_utf8(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is legal JSON, but no tokenizer can encode it
        raise RowFault(
            f"half of a surrogate pair, {text[error.start]!r}, at character {error.start} of a message; "
            "expected Unicode text"
        ) from None


_SHAPES: dict[tuple[str, ...], Callable[[Fields], list[Message]]] = {
    ("messages",): lambda fields: _turns(fields, "messages"),
    ("conversations",): lambda fields: _turns(fields, "conversations"),
    ("question", "answer"): lambda fields: [_said("user", fields, "question"), _said("assistant", fields, "answer")],
    ("instruction", "output"): _instruction,
    ("prompt", "completion"): _completion,
    ("text",): lambda fields: [_said("assistant", fields, "text")],
}
