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


TEMPLATES = [
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }};{% endfor %}",
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].strip() }};{% endfor %}",
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] if m['content'] else 'none' }}{% endfor %}",
    "{% for m in messages %}{{ 'long ' if 'a' in m['content'] }}{{ m['content'] }}\n{% endfor %}",
    "{{ messages[-1]['content'] }};{% for m in messages[:-1] %}{{ m['content'].rstrip() }}{% endfor %}",
]
SPACED = st.lists(st.sampled_from(["", " ", "\n", ";", "a", "none", "<user>", "long "]), max_size=4).map("".join)


@pytest.mark.parametrize("template", TEMPLATES)
def test_places_found_by_frame_are_those_found_by_marks(make_tokenizer: Callable[..., Path], make_row, template: str):
    """The same template, refusing the word that frames are found with, has every conversation marked."""
    refusing = "{% if messages[0]['content'] == 'word' %}{{ raise_exception('no') }}{% endif %}" + template
    framed, marked = (
        TextTokenizer.load(str(make_tokenizer("one", template=one)), add_mask_token=True)
        for one in (template, refusing)
    )

    @given(st.lists(st.lists(SPACED, min_size=1, max_size=3), max_size=4))
    @settings(max_examples=25, deadline=None)
    def check(conversations: list[list[str]]) -> None:
        rows = [make_row(*contents).messages for contents in conversations]
        assert framed.render_many(rows) == marked.render_many(rows) == [marked.render(row) for row in rows]

    check()


def test_a_decision_that_marks_would_change_does_not_refuse_other_conversations(render):
    """Marked, the second content has eight characters."""
    template = "{% for m in messages %}{{ 'long ' if m['content'] | length > 6 }}{{ m['content'] }}\n{% endfor %}"
    messages = Message("user", "a"), Message("assistant", "abcdef")
    assert render(template, *messages) == ("a\nabcdef\n", ["a", "abcdef"])


def test_most_conversations_are_rendered_once(small: TextTokenizer, make_row, monkeypatch: pytest.MonkeyPatch):
    rows = [make_row("the cat", f"sat {k} times").messages for k in range(50)]
    small.render_many(rows[:1])
    num_rendered = []
    render = small._render_texts
    monkeypatch.setattr(
        small._chat, "_render_texts", lambda given, *options: num_rendered.append(len(given)) or render(given, *options)
    )
    small.render_many(rows)
    assert num_rendered == [50]
    assert small.render_many([]) == []


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
