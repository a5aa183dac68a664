"""One turn of a conversation from its decoded object: speaker, text, and what else a template gets (pure)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tide_cache.corpus.rows import RowFault, kind_of
from tide_cache.records import Message

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "human": "user",  # ShareGPT's words
    "gpt": "assistant",
}
_SWITCHES = ("weight", "train", "loss")
"""Fields that say whether an answer is learnt: OpenAI's 0 or 1, and booleans of others."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Field names for reasoning apart from the answer; templates know the first."""
_OF_TOOLS = ("name", "tool_call_id")
_READ = frozenset(
    ["role", "content", "from", "value", *_SWITCHES, *_REASONING, *_OF_TOOLS, "tool_calls", "function_call"]
)


@dataclass(frozen=True)
class Turn:
    """A message, and the names of its non-empty fields that are not read."""

    message: Message
    unread: frozenset[str]


def read_turn(turn: object, where: str) -> Turn:
    """Read {role, content}, or ShareGPT's {from, value}.

    Args:
        turn: The decoded object.
        where: Its place in the row, for messages.

    Raises:
        RowFault: It is not such an object, or a field has the wrong type.
    """
    if not isinstance(turn, dict):
        raise RowFault(f"{where}: found {kind_of(turn)}; expected an object with role and content")
    fields = {name: value for name, value in turn.items() if value is not None}
    role, content = (
        fields.get(name, fields.get(sharegpt)) for name, sharegpt in (("role", "from"), ("content", "value"))
    )
    if not isinstance(role, str) or role not in ROLES:
        found = repr(role) if isinstance(role, str) else kind_of(role)
        raise RowFault(f"{where}: found role {found}; expected one of {', '.join(ROLES)}")
    role = ROLES[role]
    extras = _extras(role, fields, where)
    if content is None and "tool_calls" in extras:
        content = ""
    if not isinstance(content, str):
        raise RowFault(f"{where}: found {kind_of(content)} as content; expected a string")
    written = json.dumps(extras, ensure_ascii=False, sort_keys=True) if extras else ""
    unread = {str(name) for name, value in fields.items() if name not in _READ and value not in ("", [], {}, False)}
    if role != "assistant":
        unread |= {name for name in (*_SWITCHES, *_REASONING, "tool_calls", "function_call") if fields.get(name)}
        unread -= {"weight"} if fields.get("weight") == 0 else set()  # no other turn is ever learnt
    if role != "tool":
        unread |= {name for name in _OF_TOOLS if fields.get(name)}
    return Turn(Message(role, content, role != "assistant" or _is_learnt(fields, where), written), frozenset(unread))


def _extras(role: str, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a chat template gets besides role and content."""
    if role == "tool":
        return {name: fields[name] for name in _OF_TOOLS if isinstance(fields.get(name), str) and fields[name]}
    if role != "assistant":
        return {}
    extras: dict[str, Any] = {}
    calls = fields.get("tool_calls") or []
    if isinstance(calls, str):
        calls = _decoded(calls, f"{where}.tool_calls")
    if fields.get("function_call"):
        calls = [*calls, {"type": "function", "function": fields["function_call"]}]
    if not isinstance(calls, list):
        raise RowFault(f"{where}.tool_calls: found {kind_of(calls)}; expected a list of calls")
    if calls:
        extras["tool_calls"] = [_call(call, f"{where}.tool_calls[{k}]") for k, call in enumerate(calls)]
    given = [name for name in _REASONING if fields.get(name)]
    if len(given) > 1:
        raise RowFault(f"{where}: found {' and '.join(given)}; expected reasoning once")
    if given:
        if not isinstance(fields[given[0]], str):
            raise RowFault(f"{where}.{given[0]}: found {kind_of(fields[given[0]])}; expected a string")
        if fields[given[0]].strip():
            extras["reasoning_content"] = fields[given[0]]
    return extras


def _call(call: object, where: str) -> dict[str, Any]:
    """Read a call; its arguments become an object, which is what chat templates are written for."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault(f"{where}: found no function with a name; expected {{function: {{name, arguments}}}}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _decoded(arguments, f"{where}.arguments") if arguments.strip() else {}
    # A column of Parquet holds the keys of all rows, with null where a call has none of that name.
    arguments = without_nulls(arguments if arguments is not None else {})
    kept = {name: call[name] for name in ("id",) if isinstance(call, dict) and isinstance(call.get(name), str)}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def without_nulls(value: Any) -> Any:
    """Return the value without fields that are null, at any depth."""
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    return {k: without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _decoded(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault(f"{where}: found a string that is no JSON: {error}; expected JSON") from None


def _is_learnt(fields: Mapping[str, Any], where: str) -> bool:
    result = True
    for name in _SWITCHES:
        value = fields.get(name, 1)
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            shown = repr(value) if isinstance(value, (int, float, str)) else kind_of(value)
            raise RowFault(f"{where}.{name}: found {shown}; expected 0 or 1: an answer is learnt or only shown")
        result &= bool(value)
    return result
