"""The result of rendering a conversation, and what can be wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tide_cache.errors import PairingError

CharRange = tuple[int, int]

TEMPLATE_FAILS = "the chat template fails on it"
CHANGES_CONTENT = "the chat template does not write a content as it is"
STRIPS_REASONING = "the chat template strips the reasoning of an earlier turn"
NO_TOOL_CALLS = "the chat template does not write its tool calls"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: The chat template's output.
        contents: Character range of each message's content in `text`, one per message in their order. Without the
            white space around it where the template strips that; None for an empty content it treats apart.
        answers: What the assistant says in a message, where that is more than its content: reasoning of a field of
            its own, calls of tools. By number of the message.
        unwritten: Fields of messages that the template does not write.
    """

    text: str
    contents: tuple[CharRange | None, ...]
    answers: Mapping[int, CharRange] = field(default_factory=dict)
    unwritten: tuple[str, ...] = ()

    def answer(self, message: int) -> CharRange | None:
        """Return the place of everything said in a message."""
        return self.answers.get(message, self.contents[message])


class RenderError(PairingError):
    """A chat template does not write one conversation as it is.

    Attributes:
        reason: The kind of fault, in few words, to be counted.
        is_strict: Whether the row is bad. A template that leaves earlier reasoning out is right to do so, and the
            row is simply left out.
    """

    def __init__(self, message: str, reason: str, is_strict: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_strict = is_strict
