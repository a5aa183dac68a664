"""Private characters around contents, which show where a template writes them, and are then taken out again (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tide_cache.pairing.rendered import Rendered
from tide_cache.records import Message


@dataclass(frozen=True, slots=True)
class Marks:
    """The two characters around a content, and how much white space stays outside of them on either side."""

    start: str
    end: str
    num_before: int = 0
    num_after: int = 0

    def put_around(self, content: str) -> str:
        """Write a content with the characters in it."""
        stop = len(content) - self.num_after
        return content[: self.num_before] + self.start + content[self.num_before : stop] + self.end + content[stop:]


def around_cores(messages: Sequence[Message], marks: list[Marks | None]) -> list[Marks | None]:
    """Move the marks inside the white space that a template may strip; an empty content gets none."""
    cores: list[Marks | None] = []
    for message, mark in zip(messages, marks, strict=True):
        content = message.content
        before, after = len(content) - len(content.lstrip()), len(content) - len(content.rstrip())
        is_empty = before == len(content) or mark is None
        cores.append(None if is_empty or mark is None else Marks(mark.start, mark.end, before, after))
    return cores


def take_out(marked: str, marks: Sequence[Marks | None], plain: str) -> Rendered | None:
    """Remove the marks and note where they were; None unless each was there once and the rest is the plain render."""
    edges_of = [None if mark is None else [c for c in (mark.start, mark.end) if c] for mark in marks]
    characters = [character for edge in edges_of if edge is not None for character in edge]
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
        None if edge is None else (position[places[edge[0]]], position[places[edge[-1]]]) for edge in edges_of
    )
    return Rendered(plain, contents)


def reach(text: str, words: str) -> tuple[int, bool]:
    """Follow words from the start of a text, white space apart.

    Returns:
        Characters of the text up to the last one that agrees, and whether all words stand there.
    """
    at = length = 0
    for character in words:
        if character.isspace():
            continue
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text) or text[at] != character:
            return length, False
        at = length = at + 1
    return length, True
