"""The sample that the pictures show: a short answer, paired and masked by the library itself.

Both tokenizers are those of `tide-cache demo`, trained here in a moment, so nothing has to be at hand.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tide_cache.config.sections import ViewsConfig
from tide_cache.demo.vocabularies import train_vocabularies
from tide_cache.pairing import TextTokenizer
from tide_cache.pairing.pairer import SamplePairer
from tide_cache.records import Bools, ChatRow, Int32s, Message, SampleId, SamplePair
from tide_cache.views.compdemo import draw_shown_first
from tide_cache.views.masking import draw_view

QUESTION, ANSWER = "code scale: scale x by 50", "def scale(x): return x * 50"
NUM_VIEWS, SEED = 4, 4
"""With this seed no view masks everything, so that there is something to see."""


@dataclass(frozen=True)
class Token:
    """A token of the answer: the bytes `start` up to `end` of it, and its place in the sequence."""

    text: str
    start: int
    end: int
    place: int


@dataclass(frozen=True)
class Shown:
    """What the pictures need: tokens of both sides, chunks as byte spans, and the sample itself."""

    teacher: list[Token]
    student: list[Token]
    chunks: list[tuple[int, int]]
    pair: SamplePair
    views: ViewsConfig

    def view(self, number: int) -> tuple[float, Bools, Bools]:
        """Return t, the teacher's and the student's masked places of a view."""
        view = draw_view(self.pair, number, self.views)
        return view.t, view.is_teacher_masked_M, view.is_student_masked_L

    def shown_first(self, number: int) -> Bools:
        """Return the teacher's places on side A of a view."""
        view = draw_view(self.pair, number, self.views)
        return draw_shown_first(self.pair, view, self.views.seed, demo_ratio=0.5)


def make_sample() -> Shown:
    """Pair the answer."""
    with tempfile.TemporaryDirectory() as folder:
        vocabularies = train_vocabularies(Path(folder), seed=0)
        teacher = TextTokenizer.load(str(vocabularies.second))
        student = TextTokenizer.load(str(vocabularies.first))
    pairer = SamplePairer(
        teacher, student, teacher_max_length=64, student_max_length=64, student_block_size=8, fill_last_block=False
    )
    row = ChatRow(SampleId("0/docs#0"), (Message("user", QUESTION), Message("assistant", ANSWER)), "docs:1")
    pair = pairer.pair(row)
    assert isinstance(pair, SamplePair)
    chunks_C4 = pair.chunks_C4[pair.is_distillable_C]
    sides = {
        "teacher": _tokens(teacher, pair.teacher_ids_M, chunks_C4[0, 0], chunks_C4[-1, 1]),
        "student": _tokens(student, pair.student_ids_L, chunks_C4[0, 2], chunks_C4[-1, 3]),
    }
    by_place = {token.place: token for token in sides["student"]}
    chunks = [(by_place[start].start, by_place[end - 1].end) for _, _, start, end in chunks_C4.tolist()]
    return Shown(**sides, chunks=chunks, pair=pair, views=ViewsConfig(NUM_VIEWS, SEED, "stratified", "linear", False))


def _tokens(tokenizer: TextTokenizer, ids: Int32s, first: int, last: int) -> list[Token]:
    tokens, start = [], 0
    for place in range(first, last):
        text = tokenizer.decode([int(ids[place])])
        tokens.append(Token(text, start, start + len(text), place))
        start += len(text)
    assert "".join(token.text for token in tokens) == ANSWER
    return tokens
