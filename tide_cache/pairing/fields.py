"""Fields of a message besides its content: where a template writes reasoning and tool calls, which are answers too.

A field that a template does not write is recognised by rendering without it: the text is the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tide_cache.pairing.marks import Marks, take_out
from tide_cache.pairing.rendered import NO_TOOL_CALLS, CharRange, Rendered, RenderError
from tide_cache.records import Message

Render = Callable[..., str]
"""Renders messages; `prompt` asks for a generation prompt, `tools` is a JSON list."""

_THINK = "<think>"


def place_fields(
    placed: Rendered, messages: Sequence[Message], tools: str, render: Render, marks: Sequence[Marks | None], name: str
) -> Rendered:
    """Locate the assistant's messages that are more than their contents.

    Args:
        placed: The conversation with the places of its contents.
        messages: The same; some have fields.
        tools: Functions that may be called.
        render: Renders messages by the template.
        marks: Characters that occur nowhere, two for each message.
        name: The tokenizer's name, for messages.

    Raises:
        RenderError: The template does not write the calls of tools, or it cannot be told where.
    """
    unwritten: dict[str, None] = {}
    answers: dict[int, CharRange] = {}
    if tools and render(messages, tools="") == placed.text:
        unwritten["tools"] = None
    for k, message in enumerate(messages):
        fields = json.loads(message.extras) if message.extras else {}
        if "tool_calls" in fields:
            answers[k] = _with_calls(placed, messages, k, fields, render, name)
        if "reasoning_content" in fields:
            if (found := _reasoning(placed, messages, k, fields, render, marks[k])) is None:
                unwritten["reasoning_content"] = None
            else:
                said = answers.get(k, placed.contents[k]) or found
                answers[k] = min(found[0], said[0]), max(found[1], said[1])
    return replace(placed, answers=answers, unwritten=tuple(unwritten))


def _with(messages: Sequence[Message], k: int, fields: dict[str, Any]) -> list[Message]:
    """Return the messages with other fields of one."""
    changed = replace(messages[k], extras=json.dumps(fields, ensure_ascii=False) if fields else "")
    return [changed if j == k else message for j, message in enumerate(messages)]


def _reasoning(
    placed: Rendered,
    messages: Sequence[Message],
    k: int,
    fields: dict[str, Any],
    render: Render,
    mark: Marks | None,
) -> CharRange | None:
    """Find reasoning by marks, from the tag before it on; None where the template does not write it as it is."""
    assert mark is not None
    reasoning: str = fields["reasoning_content"]
    before, after = len(reasoning) - len(reasoning.lstrip()), len(reasoning) - len(reasoning.rstrip())
    for tried in (mark, Marks(mark.start, mark.end, before, after)):
        marked = _with(messages, k, {**fields, "reasoning_content": tried.put_around(reasoning)})
        try:
            found = take_out(render(marked), [tried], placed.text)
        except RenderError:
            continue
        if found is not None and (place := found.contents[0]) is not None:
            head = placed.text[: place[0]].rstrip()
            return len(head) - len(_THINK) if head.endswith(_THINK) else place[0], place[1]
    return None


def _with_calls(
    placed: Rendered, messages: Sequence[Message], k: int, fields: dict[str, Any], render: Render, name: str
) -> CharRange:
    """Find the calls of tools of a message, with its content.

    Most templates write them after the content and change nothing else: the text without them says what comes after.
    Where a template writes something else in their place, the conversation up to there and a generation prompt are
    what precedes them.
    """
    without = _with(messages, k, {field: value for field, value in fields.items() if field != "tool_calls"})
    content = placed.contents[k]
    try:
        bare = render(without)
        if bare == placed.text:
            raise RenderError(
                f"{name}: the chat template does not write the tool_calls of message {k}, so an answer without them "
                "would be learnt. Leave such rows out of the corpus, or give a template that takes them: "
                "chat_template = 'file.jinja'.",
                NO_TOOL_CALLS,
            )
        if content is not None and bare.startswith(placed.text[: content[1]]):
            tail = bare[content[1] :]
            if len(placed.text) > len(bare) and placed.text.endswith(tail):
                return content[0], len(placed.text) - len(tail)
    except RenderError as error:
        if error.reason == NO_TOOL_CALLS:
            raise
    start, stop = _between_prompts(messages, k, render)
    if start is None or stop is None or not placed.text.startswith(start) or not placed.text.startswith(stop):
        raise RenderError(
            f"{name}: it cannot be told where the chat template writes the tool_calls of message {k}. Leave such rows "
            "out of the corpus, or give a template that writes them after the content: chat_template = 'file.jinja'.",
            NO_TOOL_CALLS,
        )
    return len(start), len(stop)


def _between_prompts(messages: Sequence[Message], k: int, render: Render) -> tuple[str | None, str | None]:
    """Return the text before an answer, and the text up to its end, without what the template writes after answers."""
    try:
        start = render(messages[:k], prompt=True)
        whole = render(messages[: k + 1], prompt=False)
        word = render([*messages[:k], Message(messages[k].role, "word")], prompt=False)
    except RenderError:
        return None, None
    tail = word.removeprefix(start).partition("word")[2]
    return start, whole.removesuffix(tail) if whole.endswith(tail) else None
