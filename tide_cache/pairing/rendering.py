"""Chat templates, with the place of every message's content tracked instead of searched for.

Searching the rendered text for a short answer finds it in the prompt. So each content is rendered between two private
characters, which are then taken out again; a plain render of the same messages proves that they changed nothing.

Most conversations need no marks of their own: what a template writes around the contents is found once per sequence
of roles, and where it and the contents give the plain render to the character, the places follow. A template that
strips, drops or decides by content gives another text there, and those conversations are marked one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise

from jinja2 import TemplateError

from tide_cache.errors import PairingError
from tide_cache.records import Message

Conversation = list[dict[str, str]]
CharRange = tuple[int, int]

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_WAY_OUT = "Give a template that writes every content once and as it is: chat_template = 'file.jinja'."


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: What the chat template gives.
        contents: Character range of each message's content in `text`, one per message in their order. Without the
            white space around it where the template strips that; None for an empty content it treats apart.
    """

    text: str
    contents: tuple[CharRange | None, ...]


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, render_texts: Callable[[list[Conversation], bool], list[str]], template: str, name: str) -> None:
        """Wrap a template.

        Args:
            render_texts: Renders several conversations; the flag asks for a generation prompt.
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
        """Render several conversations and say where each content is.

        Args:
            conversations: Each a sequence of messages.
            add_generation_prompt: Also write what precedes an answer.

        Raises:
            PairingError: As `render` does, for one of them.
        """
        if not conversations:
            return []
        plain = self._render([_conversation(messages) for messages in conversations], add_generation_prompt)
        return [
            self._place(messages, text, add_generation_prompt)
            for messages, text in zip(conversations, plain, strict=True)
        ]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> Rendered:
        """Render a conversation and say where each content is.

        Args:
            messages: The conversation.
            add_generation_prompt: Also write what precedes an answer.

        Raises:
            PairingError: The template fails on these messages, drops or repeats a content, or changes it other than
                by stripping white space; names the message.
        """
        return self.render_many([messages], add_generation_prompt)[0]

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
        except PairingError:
            return None

    def _place_by_marks(self, messages: Sequence[Message], plain: str, add_generation_prompt: bool) -> Rendered:
        marks = self._marks_for(messages)
        for tried in (marks, _around_cores(messages, marks)):
            (marked,) = self._render([_conversation(messages, tried)], add_generation_prompt)
            if (rendered := _take_out(marked, tried, plain)) is not None:
                return rendered
        raise self._fault(messages, plain, add_generation_prompt)

    def _render(self, conversations: list[Conversation], add_generation_prompt: bool) -> list[str]:
        try:
            return self._render_texts(conversations, add_generation_prompt)
        except TemplateError as error:
            found = " | ".join(dict.fromkeys(", ".join(m["role"] for m in messages) for messages in conversations))
            raise PairingError(
                f"{self._name}: the chat template fails on a conversation with the roles {found}: {error}. "
                "Leave such conversations out of the corpus, or give a template that takes them: "
                "chat_template = 'file.jinja'."
            ) from None

    def _marks_for(self, messages: Sequence[Message]) -> list["_Marks | None"]:
        """Choose two private characters per message that neither the messages nor the template contain."""
        used = frozenset[str]().union(*(m.content for m in messages if not m.content.isascii()))
        candidates = self._free_characters[: 2 * len(messages)]
        if len(candidates) < 2 * len(messages) or not used.isdisjoint(candidates):
            taken = used | self._own_characters
            free = (chr(code) for code in chain(*_PRIVATE_USE) if chr(code) not in taken)
            candidates = list(islice(free, 2 * len(messages)))
        return [_Marks(start, end) for start, end in zip(candidates[::2], candidates[1::2], strict=True)]

    def _fault(self, messages: Sequence[Message], plain: str, add_generation_prompt: bool) -> PairingError:
        """Find the first message that the template does not write as it is."""
        all_marks = _around_cores(messages, self._marks_for(messages))
        for k in range(len(messages)):
            marks = [mark if j == k else None for j, mark in enumerate(all_marks)]
            (marked,) = self._render([_conversation(messages, marks)], add_generation_prompt)
            if _take_out(marked, marks, plain) is None:
                break
        message = messages[k]
        found = sum(marked.count(mark.start) for mark in marks if mark is not None)
        did = "drops" if found == 0 else "repeats" if found > 1 else "changes"
        return PairingError(
            f"{self._name}: the chat template {did} the content of message {k} (role {message.role!r}, beginning "
            f"{message.content[:40]!r}), so its tokens cannot be told from the template's. {_WAY_OUT}"
        )


@dataclass(frozen=True, slots=True)
class _Marks:
    """The two characters around a content, and how much white space stays outside of them on either side."""

    start: str
    end: str
    num_before: int = 0
    num_after: int = 0

    def put_around(self, content: str) -> str:
        stop = len(content) - self.num_after
        return content[: self.num_before] + self.start + content[self.num_before : stop] + self.end + content[stop:]


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
        """Say where the contents are, if the pieces and the contents give `plain`; None otherwise."""
        contents: list[CharRange] = [(0, 0)] * len(messages)
        parts = [self.pieces[0]]
        end = len(self.pieces[0])
        for k, piece in zip(self.order, self.pieces[1:], strict=True):
            content = messages[k].content
            contents[k] = (end, end + len(content))
            end += len(content) + len(piece)
            parts += (content, piece)
        return Rendered(plain, tuple(contents)) if "".join(parts) == plain else None


def _around_cores(messages: Sequence[Message], marks: list[_Marks | None]) -> list[_Marks | None]:
    """Move the marks inside the white space that a template may strip; an empty content gets none."""
    cores: list[_Marks | None] = []
    for message, mark in zip(messages, marks, strict=True):
        content = message.content
        before, after = len(content) - len(content.lstrip()), len(content) - len(content.rstrip())
        is_empty = before == len(content) or mark is None
        cores.append(None if is_empty or mark is None else _Marks(mark.start, mark.end, before, after))
    return cores


def _conversation(messages: Sequence[Message], marks: Sequence[_Marks | None] | None = None) -> Conversation:
    if marks is None:
        return [{"role": message.role, "content": message.content} for message in messages]
    return [
        {"role": message.role, "content": message.content if mark is None else mark.put_around(message.content)}
        for message, mark in zip(messages, marks, strict=True)
    ]


def _take_out(marked: str, marks: Sequence[_Marks | None], plain: str) -> Rendered | None:
    """Remove the marks and note where they were; None unless each was there once and the rest is the plain render."""
    characters = [character for mark in marks if mark is not None for character in (mark.start, mark.end)]
    if len(marked) != len(plain) + len(characters):
        return None
    places = {character: marked.find(character) for character in characters}
    order = sorted(places.values())
    if order and order[0] < 0:
        return None
    edges = [-1, *order, len(marked)]
    if "".join(marked[a + 1 : b] for a, b in pairwise(edges)) != plain:
        return None
    position = {place: place - rank for rank, place in enumerate(order)}
    contents = tuple(
        None if mark is None else (position[places[mark.start]], position[places[mark.end]]) for mark in marks
    )
    return Rendered(plain, contents)
