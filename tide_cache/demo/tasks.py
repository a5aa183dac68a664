"""A generated corpus of small tasks with checkable answers, so that the demonstration needs no file.

Five kinds have one right answer. The sixth, stories, is drawn slot by slot from fixed probabilities, so that a story
has thousands of right continuations. A teacher that saw many stories learns the probabilities; a student that sees a
few hundred cannot, and most of what it can still learn is in the teacher's soft targets.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar, assert_never, get_args

import numpy as np

T = TypeVar("T")
Kind = Literal["story", "copy", "reverse", "sort", "add", "code"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_STORY_SHARE = 0.5
_WORLD_SEED = 2604
_CHOICES_PER_SLOT = 6


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = _words("ann ben cal dot eli fay gus ivy jon kit lou meg")
_PLACES = _words("farm pond wood hill barn yard lake cave")
_FILLERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "name": _NAMES,
        "place": _PLACES,
        "meeting": _words("met saw fed led drew sold kept lost"),
        "animal": _words("hen cow pig ram dog cat fox bat rat bee frog duck goat crow wolf bear deer hare mole toad"),
        "colour": _words("red tan wet big fat shy sad mad dry lean pink gray"),
        "action": _words("ate bit hid got dug cut took tore won bent stole broke"),
        "thing": _words("map pin cup hat box pan key bag fan jar net rug pot toy bell coin lamp ring rope drum"),
        "feeling": _words("ran wept sang slept hid cried grew left froze smiled"),
    }
)
_DEPENDS_ON = MappingProxyType(
    {"meeting": "name", "animal": "place", "colour": "animal", "action": "animal", "thing": "name", "feeling": "action"}
)
_STORY_QUESTION = re.compile(r"story: (?P<name>[a-z]+), (?P<place>[a-z]+)")
_STORY_ANSWER = re.compile(
    r"(?P<name>[a-z]+) (?P<meeting>[a-z]+) a (?P<colour>[a-z]+) (?P<animal>[a-z]+)\."
    r" it (?P<action>[a-z]+) the (?P<thing>[a-z]+)\. (?P=name) (?P<feeling>[a-z]+)\."
)

_FUNCTION_NAMES = _words("f g run fix")
_VARIABLES = _words("n x v k")
_CONSTANTS = _words("2 3 5 10 25 50 100")
_CODE_TEMPLATES: tuple[tuple[str, str], ...] = (
    ("add {number} to {variable}", "return {variable} + {number}"),
    ("cut {number} off {variable}", "return {variable} - {number}"),
    ("scale {variable} by {number}", "return {variable} * {number}"),
    ("is {variable} over {number}", "return {variable} > {number}"),
    ("cap {variable} at {number}", "return min({variable}, {number})"),
    ("get item {number} of {variable}", "return {variable}[{number}]"),
)


@dataclass(frozen=True, slots=True)
class Task:
    """One question with an answer; for a story, one of its many right answers."""

    kind: Kind
    question: str
    answer: str


def make_tasks(num: int, seed: int) -> list[Task]:
    """Draw `num` tasks, about half of them stories; a longer list from the same seed starts with the shorter one."""
    rng = np.random.Generator(np.random.Philox(seed))
    return [_make_task(rng) for _ in range(num)]


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """Write one JSON object per line with `question`, `answer` and `kind`, a corpus that `tide-cache` reads."""
    with path.open("w", encoding="ascii", newline="\n") as file:
        for task in tasks:
            file.write(json.dumps(asdict(task)) + "\n")


def is_checkable(kind: Kind) -> bool:
    """Return whether a question of this kind has exactly one right answer, so that exact match is meaningful."""
    return kind != "story"


def is_correct(task: Task, text: str) -> bool:
    """Return whether `text` answers the task.

    Args:
        task: The question, with its answer.
        text: What a model said, without special tokens; white space counts.

    Returns:
        For a story, whether the generator could have written it for this person and place; otherwise, whether it is
        the answer, character by character.
    """
    return text == task.answer if is_checkable(task.kind) else _is_possible_story(task.question, text)


def _make_task(rng: np.random.Generator) -> Task:
    kind: Kind = "story" if rng.random() < _STORY_SHARE else _draw(rng, KINDS[1:])
    match kind:
        case "story":
            return _make_story(rng)
        case "copy":
            words = " ".join(_draw_distinct(rng, _FILLERS["thing"], int(rng.integers(4, 6))))
            return Task("copy", f"copy: {words}", words)
        case "reverse":
            letters = _draw_distinct(rng, "abcdefghijkl", int(rng.integers(4, 6)))
            return Task("reverse", f"reverse: {' '.join(letters)}", " ".join(reversed(letters)))
        case "sort":
            digits = _draw_distinct(rng, "0123456789", int(rng.integers(5, 9)))
            return Task("sort", f"sort: {' '.join(digits)}", " ".join(sorted(digits)))
        case "add":
            left, right = rng.integers(10, 50, size=2).tolist()
            return Task("add", f"add: {left} and {right}", f"{left} + {right} = {left + right}")
        case "code":
            return _make_code(rng)
    assert_never(kind)


def _make_story(rng: np.random.Generator) -> Task:
    slots = {"name": _draw(rng, _NAMES), "place": _draw(rng, _PLACES)}
    for slot, parent in _DEPENDS_ON.items():
        slots[slot] = _draw(rng, _world()[slot][slots[parent]])
    return Task(
        "story",
        "story: {name}, {place}".format(**slots),
        "{name} {meeting} a {colour} {animal}. it {action} the {thing}. {name} {feeling}.".format(**slots),
    )


def _make_code(rng: np.random.Generator) -> Task:
    request, body = _draw(rng, _CODE_TEMPLATES)
    name = _draw(rng, _FUNCTION_NAMES)
    drawn = {"variable": _draw(rng, _VARIABLES), "number": _draw(rng, _CONSTANTS)}
    return Task(
        "code",
        f"code {name}: {request.format(**drawn)}",
        f"def {name}({drawn['variable']}):\n    {body.format(**drawn)}",
    )


@cache
def _world() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Return, for each drawn slot and each value of the slot it depends on, a bag of fillers to draw from.

    A bag holds six fillers, the likeliest six times and the rarest once. Who lives where and does what is also
    drawn, once, so only the corpus can teach it.
    """
    rng = np.random.Generator(np.random.Philox(_WORLD_SEED))
    return {
        slot: {value: _make_bag(rng, _FILLERS[slot]) for value in _FILLERS[parent]}
        for slot, parent in _DEPENDS_ON.items()
    }


def _make_bag(rng: np.random.Generator, fillers: tuple[str, ...]) -> tuple[str, ...]:
    chosen = _draw_distinct(rng, fillers, _CHOICES_PER_SLOT)
    return tuple(filler for rank, filler in enumerate(chosen) for _ in range(_CHOICES_PER_SLOT - rank))


def _is_possible_story(question: str, text: str) -> bool:
    asked, told = _STORY_QUESTION.fullmatch(question), _STORY_ANSWER.fullmatch(text)
    assert asked is not None, f"not a story question: {question!r}"
    if told is None or told["name"] != asked["name"]:
        return False
    slots = told.groupdict() | asked.groupdict()
    return all(slots[slot] in _world()[slot].get(slots[parent], ()) for slot, parent in _DEPENDS_ON.items())


def _draw(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _draw_distinct(rng: np.random.Generator, items: Sequence[T], num: int) -> list[T]:
    return [items[index] for index in rng.permutation(len(items))[:num]]
