"""Chat templates, with the place of every message's content tracked instead of searched for.

Searching the rendered text for a short answer finds it in the prompt. So each content is rendered between two private
characters, which are then taken out again; a plain render of the same messages proves that they changed nothing.

Most conversations need no marks: what a template writes around the contents is found once per sequence
of roles, and where it and the contents give the plain render to the character, the places follow. A template that
strips, drops or decides by content gives another text there, and those conversations are marked one by one.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from tide_cache.pairing.fields import place_fields
from tide_cache.pairing.marks import Marks, around_cores, reach, take_out
from tide_cache.pairing.rendered import (
    CHANGES_CONTENT,
    STRIPS_REASONING,
    TEMPLATE_FAILS,
    CharRange,
    Rendered,
    RenderError,
)
from tide_cache.records import Message

Conversation = list[dict[str, Any]]
RenderTexts = Callable[[list[Conversation], bool, str], list[str]]

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
THINK_END = "</think>"
_WAY_OUT = "Give a template that writes every content once and as it is: chat_template = 'file.jinja'."


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, render_texts: RenderTexts, template: str, name: str) -> None:
        """Wrap a template.

        Args:
            render_texts: Renders several conversations; the flag asks for a generation prompt, the text is a JSON list
                of tools.
            template: The template's source: its own characters are never used as marks.
            name: The tokenizer's name, for messages.
        """
        self._render_texts = render_texts
        self._name = name
        self._own_characters = frozenset(template)
        self._free_characters = [c for c in map(chr, _PRIVATE_USE[0]) if c not in self._own_characters]
        self._frames: dict[tuple[tuple[str, ...], bool], _Frame | None] = {}

    def render_many(
        self, conversations: Sequence[Sequence[Message]], add_generation_prompt: bool = False
    ) -> list[Rendered]:
        """Render several conversations and locate each content.

        Args:
            conversations: Each a sequence of messages.
            add_generation_prompt: Also write what precedes an answer.

        Raises:
            RenderError: As `render` does, for one of them.
        """
        results = self.try_many(conversations, add_generation_prompt)
        for result in results:
            if isinstance(result, RenderError):
                raise result
        return [result for result in results if isinstance(result, Rendered)]

    def try_many(
        self, conversations: Sequence[Sequence[Message]], add_generation_prompt: bool = False, tools: str = ""
    ) -> list[Rendered | RenderError]:
        """Render several conversations; return the error in place of each that cannot be rendered.

        Args:
            conversations: Each a sequence of messages.
            add_generation_prompt: Also write what precedes an answer.
            tools: Functions that may be called, a JSON list.
        """
        if not conversations:
            return []
        try:
            plain = self._render([_conversation(messages) for messages in conversations], add_generation_prompt, tools)
        except RenderError as error:
            if len(conversations) == 1:
                return [error]
            half = len(conversations) // 2
            return [
                result
                for part in (conversations[:half], conversations[half:])
                for result in self.try_many(part, add_generation_prompt, tools)
            ]
        return [
            self._try_place(messages, text, add_generation_prompt, tools)
            for messages, text in zip(conversations, plain, strict=True)
        ]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendered:
        """Render a conversation and locate each content.

        Args:
            messages: The conversation.
            add_generation_prompt: Also write what precedes an answer.

        Raises:
            RenderError: The template fails on these messages, drops or repeats a content, or changes it other than
                by white space; names the message.
        """
        return self.render_many([messages], add_generation_prompt)[0]

    def _try_place(
        self, messages: Sequence[Message], plain: str, add_generation_prompt: bool, tools: str
    ) -> Rendered | RenderError:
        try:
            if tools or any(message.extras for message in messages):
                placed = self._place_by_marks(messages, plain, add_generation_prompt, tools)

                def render(given: Sequence[Message], prompt: bool = add_generation_prompt, tools: str = tools) -> str:
                    return self._render([_conversation(given)], prompt, tools)[0]

                return place_fields(placed, messages, tools, render, self._marks_for(messages), self._name)
            return self._place(messages, plain, add_generation_prompt)
        except RenderError as error:
            return error

    def _place(self, messages: Sequence[Message], plain: str, add_generation_prompt: bool) -> Rendered:
        roles = tuple([message.role for message in messages])
        key = (roles, add_generation_prompt)
        if key not in self._frames:
            self._frames[key] = self._frame(roles, add_generation_prompt)
        frame = self._frames[key]
        rendered = None if frame is None else frame.place(messages, plain)
        return rendered or self._place_by_marks(messages, plain, add_generation_prompt)

    def _frame(self, roles: Sequence[str], add_generation_prompt: bool) -> "_Frame | None":
        """Find what the template writes around contents; None when it does not take plain words from these roles."""
        messages = [Message(role, "word") for role in roles]
        try:
            (plain,) = self._render([_conversation(messages)], add_generation_prompt)
            return _Frame.around(self._place_by_marks(messages, plain, add_generation_prompt))
        except RenderError:
            return None

    def _place_by_marks(
        self, messages: Sequence[Message], plain: str, add_generation_prompt: bool, tools: str = ""
    ) -> Rendered:
        marks = self._marks_for(messages)
        for tried in (marks, around_cores(messages, marks)):
            marked = self._marked(messages, tried, add_generation_prompt, tools)
            if marked is not None and (rendered := take_out(marked, tried, plain)) is not None:
                return rendered
        places = [self._place_of(k, messages, marks, plain, add_generation_prompt, tools) for k in range(len(messages))]
        return Rendered(plain, tuple(places))

    def _place_of(
        self,
        k: int,
        messages: Sequence[Message],
        marks: Sequence["Marks | None"],
        plain: str,
        add_generation_prompt: bool,
        tools: str,
    ) -> CharRange | None:
        """Find the content of one message by itself, and by one of its ends where marks at both do not survive.

        A template that takes reasoning out of a content and writes it elsewhere loses a mark that stands before it.
        From the end that is known the content must then stand in the text, white space apart.
        """
        content = messages[k].content
        (core,) = around_cores(messages[k : k + 1], [marks[k]])
        tries = [marks[k], core, *(() if core is None else (replace(core, start=""), replace(core, end="")))]
        marked, is_partly = None, False
        for mark in tries:
            only = [mark if j == k else None for j in range(len(messages))]
            marked = self._marked(messages, only, add_generation_prompt, tools)
            if marked is None or (found := take_out(marked, only, plain)) is None:
                continue
            if mark is None or (mark.start and mark.end):
                return found.contents[k]
            place = found.contents[k]
            assert place is not None
            words = content.strip()
            length, is_whole = (
                reach(plain[: place[0]][::-1], words[::-1]) if mark.end else reach(plain[place[0] :], words)
            )
            if is_whole:
                return (place[0] - length, place[0]) if mark.end else (place[0], place[0] + length)
            is_partly |= length > 0
        raise self._fault(k, messages, marks[k], marked, is_partly)

    def _fault(
        self,
        k: int,
        messages: Sequence[Message],
        mark: "Marks | None",
        marked: str | None,
        is_partly: bool,
    ) -> RenderError:
        """Return the error for a content that the template changes, with what the template does to it."""
        message = messages[k]
        beginning = f"{k} (role {message.role!r}, beginning {message.content[:40]!r})"
        if is_partly and THINK_END in message.content:
            return RenderError(
                f"{self._name}: the chat template strips the reasoning of message {beginning}. Leave earlier "
                "reasoning out of the corpus, or give a template that writes it: chat_template = 'file.jinja'.",
                STRIPS_REASONING,
                is_strict=False,
            )
        found = 0 if marked is None or mark is None else marked.count(mark.start)
        did = (
            "changes"
            if is_partly or marked is None
            else "drops"
            if found == 0
            else "repeats"
            if found > 1
            else "changes"
        )
        return RenderError(
            f"{self._name}: the chat template {did} the content of message {beginning}, so its tokens cannot "
            f"be told from the template's. {_WAY_OUT}",
            CHANGES_CONTENT,
        )

    def _marked(
        self, messages: Sequence[Message], marks: Sequence["Marks | None"], add_generation_prompt: bool, tools: str
    ) -> str | None:
        """Render with marks; None where the template fails on them."""
        try:
            return self._render([_conversation(messages, marks)], add_generation_prompt, tools)[0]
        except RenderError:
            return None

    def _render(self, conversations: list[Conversation], add_generation_prompt: bool, tools: str = "") -> list[str]:
        try:
            return self._render_texts(conversations, add_generation_prompt, tools)
        except Exception as error:  # a template can fail with any Python error
            found = " | ".join(dict.fromkeys(", ".join(m["role"] for m in messages) for messages in conversations))
            raise RenderError(
                f"{self._name}: the chat template fails on a conversation with the roles {found}: {error}. "
                "Leave such conversations out of the corpus, or give a template that takes them: "
                "chat_template = 'file.jinja'.",
                TEMPLATE_FAILS,
            ) from None

    def _marks_for(self, messages: Sequence[Message]) -> list["Marks | None"]:
        """Choose two private characters per message that neither the messages nor the template contain."""
        used = frozenset[str]().union(*(m.content for m in messages if not m.content.isascii()))
        used = used.union(*(m.extras for m in messages if not m.extras.isascii()))
        candidates = self._free_characters[: 2 * len(messages)]
        if len(candidates) < 2 * len(messages) or not used.isdisjoint(candidates):
            taken = used | self._own_characters
            free = (chr(code) for code in chain(*_PRIVATE_USE) if chr(code) not in taken)
            candidates = list(islice(free, 2 * len(messages)))
        return [Marks(start, end) for start, end in zip(candidates[::2], candidates[1::2], strict=True)]


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes around the contents of one sequence of roles.

    Attributes:
        pieces: The text before each content, and after the last one; empty for a conversation without messages.
        order: Number of the message whose content follows each piece.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]

    @classmethod
    def around(cls, rendered: Rendered) -> "_Frame | None":
        """Take the contents out of a rendered conversation; None where one has no place."""
        places = [(chars, k) for k, chars in enumerate(rendered.contents) if chars is not None]
        if len(places) < len(rendered.contents):
            return None
        places.sort()
        edges = [0, *chain.from_iterable(chars for chars, _ in places), len(rendered.text)]
        pieces = tuple(rendered.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
        return cls(pieces, tuple(k for _, k in places))

    def place(self, messages: Sequence[Message], plain: str) -> Rendered | None:
        """Return where the contents are, if the pieces and the contents give `plain`; None otherwise."""
        contents: list[CharRange] = [(0, 0)] * len(messages)
        parts = [self.pieces[0]]
        end = len(self.pieces[0])
        for k, piece in zip(self.order, self.pieces[1:], strict=True):
            content = messages[k].content
            contents[k] = (end, end + len(content))
            end += len(content) + len(piece)
            parts += (content, piece)
        return Rendered(plain, tuple(contents)) if "".join(parts) == plain else None


def _conversation(messages: Sequence[Message], marks: Sequence[Marks | None] | None = None) -> Conversation:
    if marks is None:
        return [{"role": message.role, "content": message.content, **_extras(message)} for message in messages]
    return [
        {
            "role": message.role,
            "content": message.content if mark is None else mark.put_around(message.content),
            **_extras(message),
        }
        for message, mark in zip(messages, marks, strict=True)
    ]


def _extras(message: Message) -> dict[str, Any]:
    extras: dict[str, Any] = json.loads(message.extras) if message.extras else {}
    return extras
