"""Contents are found where the template put them, or the template is refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_cache.errors import PairingError
from tide_cache.pairing import TextTokenizer
from tide_cache.records import ChatRow, Message

contents = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture
def render(make_tokenizer: Callable[..., Path]) -> Callable[..., tuple[str, list[str | None]]]:
    """Render contents by a template; gives the text and what lies at the tracked ranges."""

    def render(template: str, *messages: Message) -> tuple[str, list[str | None]]:
        folder = make_tokenizer("templated", template=template)
        rendered = TextTokenizer.load(str(folder), add_mask_token=True).render(messages)
        found = [None if chars is None else rendered.text[slice(*chars)] for chars in rendered.contents]
        return rendered.text, found

    return render


@given(st.lists(contents, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_every_content_is_where_the_range_says(small: TextTokenizer, make_row: Callable[..., ChatRow], texts):
    row = make_row(*texts)
    rendered = small.render(row.messages)
    assert [rendered.text[slice(*chars)] for chars in rendered.contents] == texts
    want = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in row.messages)
    assert rendered.text == want


def test_an_answer_inside_the_prompt_is_not_taken_for_it(small: TextTokenizer, make_row: Callable[..., ChatRow]):
    rendered = small.render(make_row("Is it 42 or 43?", "42").messages)
    assert rendered.contents[1] is not None
    assert rendered.contents[1][0] == rendered.text.rindex("42")


def test_generation_prompt(small: TextTokenizer, make_row: Callable[..., ChatRow]):
    row = make_row("hello")
    plain, prompt = small.render(row.messages).text, small.render(row.messages, add_generation_prompt=True).text
    assert prompt == plain + "<|im_start|>assistant\n"


def test_private_use_characters_of_the_text_survive(small: TextTokenizer, make_row: Callable[..., ChatRow]):
    rendered = small.render(make_row("\ue000\ue001", "\ue002 x \ue003").messages)
    assert [rendered.text[slice(*chars)] for chars in rendered.contents] == ["\ue000\ue001", "\ue002 x \ue003"]


def test_a_template_that_strips_keeps_its_own_text(render):
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].strip() }};{% endfor %}"
    text, found = render(template, Message("user", "  hi \n"), Message("assistant", " 42"))
    assert text == "<user>hi;<assistant>42;"
    assert found == ["hi", "42"]


def test_an_empty_content_that_the_template_treats_apart(render):
    template = "{% for m in messages %}[{{ m['content'] if m['content'] else 'nothing' }}]{% endfor %}"
    text, found = render(template, Message("user", ""), Message("assistant", " "), Message("user", "x"))
    assert text == "[nothing][ ][x]"
    assert found == [None, None, "x"]


def test_a_template_that_hoists_the_system_message(render):
    template = "{{ messages[1]['content'] }}|{{ messages[0]['content'] }}"
    assert render(template, Message("user", "first"), Message("system", "second")) == (
        "second|first",
        ["first", "second"],
    )


def test_reasoning_is_switched_off(render):
    template = "{{ messages[0]['content'] }}{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"
    assert render(template, Message("user", "x"))[0] == "x!"


@pytest.mark.parametrize(
    ("template", "did"),
    [
        ("{% for m in messages %}{% if m['role'] != 'user' %}[{{ m['content'] }}]{% endif %}{% endfor %}", "drops"),
        ("{% for m in messages %}[{{ m['content'] }}{{ m['content'] if loop.last }}]{% endfor %}", "repeats"),
        ("{% for m in messages %}[{{ m['content'][:2] }}]{% endfor %}", "changes"),
    ],
)
def test_a_template_that_does_not_write_a_content_as_it_is(render, template, did):
    with pytest.raises(PairingError, match=rf"chat template {did} the content of message \d \(role '\w+'") as error:
        render(template, Message("user", "abc"), Message("assistant", "def"))
    assert "chat_template = 'file.jinja'" in str(error.value)


def test_the_faulty_message_is_named(render):
    template = "{% for m in messages %}[{{ m['content'] }}{{ m['content'] if loop.index0 == 2 }}]{% endfor %}"
    messages = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    with pytest.raises(PairingError, match=r"repeats the content of message 2 \(role 'user', beginning 'c'\)"):
        render(template, *messages)


def test_a_template_that_refuses_the_roles(render):
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PairingError, match="conversation with the roles user, user: roles must alternate"):
        render(template, Message("user", "a"), Message("user", "b"))
