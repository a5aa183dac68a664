"""What the fields of a row mean: every shape, their order, and every fault."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.corpus.rows import RowFault
from tide_cache.corpus.shapes import check_columns, messages_of
from tide_cache.errors import RunFileError

USER_THEN_ASSISTANT = [("user", "u"), ("assistant", "a")]


def read(row: object, columns: dict[str, str] | None = None) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages_of(row, columns or {})]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [turn("user", "u"), turn("assistant", "a")]},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [turn("user", "u"), turn("assistant", "a")]},
        {"messages": [{**turn("user", "u"), "from": None, "weight": 1}, turn("assistant", "a")]},
        {"question": "u", "answer": "a"},
        {"instruction": "u", "output": "a"},
        {"instruction": "u", "input": "", "output": "a"},
        {"instruction": "u", "input": None, "output": "a"},
        {"prompt": "u", "completion": "a"},
        {"prompt": [turn("user", "u")], "completion": [turn("assistant", "a")]},
        {"prompt": [turn("user", "u")], "completion": "a"},
    ],
)
def test_every_shape_of_one_exchange_reads_the_same(row: dict[str, Any]) -> None:
    assert read(row) == USER_THEN_ASSISTANT
    assert read({"id": 7, "messages": None, **row}) == USER_THEN_ASSISTANT, "other fields and nulls do not matter"


def test_the_input_follows_the_instruction_after_a_blank_line() -> None:
    assert read({"instruction": "u", "input": "x", "output": "a"})[0] == ("user", "u\n\nx")


def test_text_is_what_the_assistant_says() -> None:
    assert read({"text": "once"}) == [("assistant", "once")]


def test_roles_of_a_long_conversation_are_kept() -> None:
    roles = ["system", "user", "assistant", "tool", "assistant"]
    assert read({"messages": [turn(role, role) for role in roles]}) == [(role, role) for role in roles]


def test_shapes_are_tried_in_order() -> None:
    row = {"text": "t", "prompt": "p", "completion": "c", "instruction": "i", "output": "o", "question": "q"}
    row |= {"answer": "n", "conversations": [turn("assistant", "v")], "messages": [turn("assistant", "m")]}
    said = []
    for field in ("declared", "messages", "conversations", "question", "instruction", "prompt", "text"):
        columns = {"user": "text", "assistant": "output"} if field == "declared" else {}
        said.append(read(row, columns)[-1][1])
        row.pop(field, None)
    assert said == ["o", "m", "v", "n", "o", "c", "t"]


def test_a_declared_mapping_is_used_where_its_columns_are() -> None:
    columns = {"user": "ask", "assistant": "reply", "system": "rule"}
    assert read({"ask": "u", "reply": "a", "rule": "s", "text": "t"}, columns) == [
        ("system", "s"),
        *USER_THEN_ASSISTANT,
    ]
    assert read({"ask": "u", "reply": "a", "rule": None}, columns) == USER_THEN_ASSISTANT
    assert read({"ask": "u", "text": "t"}, columns) == [("assistant", "t")]
    assert read({"chat": [turn("assistant", "a")]}, {"messages": "chat"}) == [("assistant", "a")]
    with pytest.raises(RowFault, match=r"^ask: found null; expected a string$"):
        read({"reply": "a", "text": "t"}, columns)


@pytest.mark.parametrize("columns", [{"user": "u"}, {"messages": "m", "user": "u", "assistant": "a"}, {"prompt": "p"}])
def test_an_impossible_mapping_is_refused(columns: dict[str, str]) -> None:
    with pytest.raises(
        RunFileError, match=r"corpus\.columns: found keys .*; expected \{messages = \.\.\.\}, or \{user ="
    ):
        check_columns(columns)


@pytest.mark.parametrize("columns", [{}, {"messages": "m"}, {"user": "u", "assistant": "a", "system": "s"}])
def test_a_possible_mapping_is_accepted(columns: dict[str, str]) -> None:
    check_columns(columns)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "the row is a list; expected an object with named fields"),
        ("text", "the row is a string"),
        (None, "the row is null"),
        (
            {"id": 3, "answer": "a", "question": None},
            r"no usable field; found id, answer, question \(null\); expected one of these: messages; conversations; "
            r"question \+ answer; instruction \+ output; prompt \+ completion; text",
        ),
        ({}, "no usable field; found none"),
        ({"messages": "hello"}, "messages: found a string; expected a list of messages"),
        ({"messages": ["hello"]}, r"messages\[0\]: found a string; expected an object with role and content"),
        (
            {"messages": [turn("bot", "a")]},
            r"messages\[0\]: found role 'bot'; expected one of system, user, assistant, ",
        ),
        ({"messages": [{"content": "a"}]}, r"messages\[0\]: found role null"),
        ({"messages": [turn("assistant", 3)]}, r"messages\[0\]: found a number as content; expected a string"),  # type: ignore[arg-type]
        ({"messages": [{"role": "assistant"}]}, r"messages\[0\]: found null as content"),
        ({"messages": []}, r"found no assistant message with text \(roles found: none\); expected at least one"),
        ({"messages": [turn("user", "u")]}, r"found no assistant message with text \(roles found: user\)"),
        ({"question": "u", "answer": " \n"}, r"no assistant message with text \(roles found: user, assistant\)"),
        ({"question": "u", "answer": True}, "answer: found a boolean; expected a string"),
        ({"question": ["u"], "answer": "a"}, "question: found a list; expected a string"),
        ({"instruction": "u", "input": {}, "output": "a"}, "input: found an object; expected a string"),
        ({"prompt": 1.5, "completion": "a"}, "prompt: found a number; expected a string"),
        ({"text": b"bytes"}, "text: found a value of type bytes; expected a string"),
        ({"text": "a\ud800"}, r"half of a surrogate pair, '\\ud800', at character 1 of a message"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: object, message: str) -> None:
    with pytest.raises(RowFault, match=message):
        read(row)


@given(
    row=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["messages", "role", "content", "text", "prompt", "completion"]), inner)
        ),
        max_leaves=12,
    )
)
def test_any_row_gives_good_messages_or_a_fault(row: object) -> None:
    try:
        messages = messages_of(row, {})
    except RowFault:
        return
    assert any(message.role == "assistant" and message.content.strip() for message in messages)
    assert all(message.role in ("system", "user", "assistant", "tool") for message in messages)
