"""Draws the pictures of docs/concepts.md from what the library really does with one sample: `make pictures`.

A test draws them again and compares, so they cannot say something else than the code.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sample import ANSWER, NUM_VIEWS, Shown, Token, make_sample
from svg import INK, LINE, MASK, PANEL, PAPER, SOFT, STUDENT, STUDENT_EDGE, TEACHER, TEACHER_EDGE, Picture

HERE = Path(__file__).resolve().parent
CELL, ROW, LEFT = 23, 26, 100
"""Width of one byte, height of a row of tokens, and where the first byte lies."""
WIDTH = LEFT + CELL * len(ANSWER) + 20
Paint = Callable[[Token], tuple[str, str]]
"""Gives fill and edge of a token's box."""
A, A_EDGE, B, B_EDGE = "#dbe7fb", "#2f5fb3", "#f9dbe4", "#b03060"


def flow(_: Shown) -> str:
    """Draw the way of the data through both halves."""
    picture = Picture(760, 326, "Data flow: the capture writes a cache, training reads it")
    top = [
        ("corpus/", "chat rows"),
        ("pairing/", "two tokenizers,|aligned chunks"),
        ("views/", "V draws of t|and mask"),
        ("teacher/", "one forward|per view"),
        ("shards/", "what it said,|as Parquet"),
    ]
    bottom = [
        ("loading/", "the same order|for any N"),
        ("student/", "[x_t, x_0],|one fused head"),
        ("objectives/", "sum and count,|small and pure"),
        ("training/", "DeepSpeed steps,|checkpoints"),
        ("evaluation/", "held-out NLL,|agreement"),
    ]
    picture.text(24, 30, "build-teacher-shards", mono=True, font_weight=600, fill=TEACHER_EDGE)
    picture.text(206, 30, "once for each teacher and student tokenizer", fill=SOFT)
    _stages(picture, 42, top, TEACHER, TEACHER_EDGE)
    picture.box(24, 136, 712, 52, PANEL, SOFT)
    picture.text(40, 158, "the cache on disk", font_weight=600)
    picture.text(40, 177, "all that the two halves share", fill=SOFT)
    picture.text(330, 158, "pairs/   signals/plain/   signals/compdemo/", mono=True, font_size=12)
    picture.text(330, 177, "manifest.json: written last, so a cache is whole or has none", font_size=12, fill=SOFT)
    picture.arrow(675, 108, 675, 132)
    picture.arrow(85, 190, 85, 216)
    _stages(picture, 220, bottom, STUDENT, STUDENT_EDGE)
    picture.text(24, 310, "train", mono=True, font_weight=600, fill=STUDENT_EDGE)
    picture.text(76, 310, "as often as you like: other students, other objectives, other seeds", fill=SOFT)
    return picture.finish()


def _stages(picture: Picture, y: int, stages: Sequence[tuple[str, str]], fill: str, edge: str) -> None:
    for number, (folder, what) in enumerate(stages):
        x = 24 + number * 147.5
        picture.box(x, y, 122, 66, fill, edge)
        picture.text(x + 61, y + 20, folder, mono=True, text_anchor="middle", font_weight=600)
        for line, words in enumerate(what.split("|")):
            picture.text(x + 61, y + 39 + 16 * line, words, text_anchor="middle", font_size=12)
        if number:
            picture.arrow(x - 24, y + 33, x - 2, y + 33)


def chunks(sample: Shown) -> str:
    """Draw how chunks tie the tokens of both sides."""
    picture = Picture(WIDTH, 210, f"Chunks of the answer {ANSWER!r} under two tokenizers")
    for start, end in sample.chunks:
        picture.box(_x(start) + 2, 50, (end - start) * CELL - 4, 104, PANEL, LINE, dash="3 3")
    picture.text(LEFT, 32, "one answer, twice tokenized; dashed: chunks, the smallest spans that both sides share")
    _tokens(picture, 58, "teacher", sample.teacher, lambda _: (TEACHER, TEACHER_EDGE))
    _tokens(picture, 120, "student", sample.student, lambda _: (STUDENT, STUDENT_EDGE))
    picture.text(16, 107, "chunks", fill=SOFT)
    for number, (start, end) in enumerate(sample.chunks):
        sizes = [sum(start <= token.start < end for token in side) for side in (sample.teacher, sample.student)]
        size = 12 if end - start > 1 else 10
        picture.text(_x((start + end) / 2), 107, f"{sizes[0]}:{sizes[1]}", text_anchor="middle", font_size=size)
        picture.text(_x((start + end) / 2), 174, str(number), text_anchor="middle", font_size=11, fill=SOFT)
    note = "teacher tokens : student tokens of each chunk; the dot in a token is a space"
    picture.text(LEFT, 196, note, fill=SOFT)
    return picture.finish()


def views(sample: Shown) -> str:
    """Draw the masks of all views on both sides."""
    picture = Picture(WIDTH, 50 + 76 * NUM_VIEWS, f"{NUM_VIEWS} masked views of one sample")
    picture.text(
        LEFT, 30, "dark: masked. A chunk is masked whole, on both sides, as soon as one of its tokens is drawn"
    )
    for number in range(NUM_VIEWS):
        t, is_teacher_masked_M, is_student_masked_L = sample.view(number)
        y = 48 + 76 * number
        picture.text(16, y + 18, f"view {number}", font_weight=600)
        picture.text(16, y + 46, f"t = {t:.2f}", fill=SOFT)
        _tokens(picture, y, "", sample.teacher, _masked(is_teacher_masked_M, TEACHER, TEACHER_EDGE))
        _tokens(picture, y + ROW + 2, "", sample.student, _masked(is_student_masked_L, STUDENT, STUDENT_EDGE))
    return picture.finish()


def compdemo(sample: Shown) -> str:
    """Draw the two partial views of one view, and where each signal comes from."""
    number = 0
    t, is_masked_M, _ = sample.view(number)
    is_first_M = sample.shown_first(number)
    picture = Picture(WIDTH, 262, "CompDemo: two partial views in place of one")
    picture.text(LEFT, 30, f"the teacher's side of view {number}, t = {t:.2f}: its masked chunks fall into A and B")
    rows = [
        ("view", "masked: A and B", is_masked_M, None),
        ("forward 1", "shows A, asks for B", is_masked_M & ~is_first_M, is_first_M),
        ("forward 2", "shows B, asks for A", is_first_M, is_masked_M & ~is_first_M),
    ]
    for line, (name, what, is_dark_M, is_shown_M) in enumerate(rows):
        y = 46 + 52 * line
        picture.text(16, y + 18, name, font_weight=600)
        _tokens(picture, y, "", sample.teacher, _sides(is_dark_M, is_shown_M, is_first_M))
        picture.text(LEFT, y + ROW + 15, what, fill=SOFT, font_size=12)
    picture.text(16, 220, "signals", font_weight=600)

    def origin(token: Token) -> tuple[str, str]:
        if not is_masked_M[token.place]:
            return PAPER, PAPER
        return (A, A_EDGE) if is_first_M[token.place] else (B, B_EDGE)

    _tokens(picture, 202, "", sample.teacher, origin)
    picture.text(LEFT, 246, "blue: side A, said in forward 2; red: side B, said in forward 1", fill=SOFT, font_size=12)
    return picture.finish()


def _sides(is_dark_M: Sequence[bool], is_shown_M: Sequence[bool] | None, is_first_M: Sequence[bool]) -> Paint:
    def paint(token: Token) -> tuple[str, str]:
        if is_dark_M[token.place]:
            return MASK, MASK
        if is_shown_M is not None and is_shown_M[token.place]:
            return (A, A_EDGE) if is_first_M[token.place] else (B, B_EDGE)
        return TEACHER, TEACHER_EDGE

    return paint


def _masked(is_masked: Sequence[bool], fill: str, edge: str) -> Paint:
    return lambda token: (MASK, MASK) if is_masked[token.place] else (fill, edge)


def _tokens(picture: Picture, y: float, label: str, tokens: Sequence[Token], paint: Paint) -> None:
    """Draw one side's tokens, each as wide as its bytes."""
    picture.text(16, y + 18, label)
    for token in tokens:
        fill, edge = paint(token)
        width = (token.end - token.start) * CELL
        picture.box(_x(token.start) + 1, y, width - 2, ROW, fill, edge)
        if fill == PAPER:
            continue
        text = "" if fill == MASK else token.text.replace(" ", "·")
        picture.text(_x(token.start) + width / 2, y + 18, text, mono=True, text_anchor="middle", fill=INK)


def _x(byte: float) -> float:
    return LEFT + byte * CELL


PICTURES: dict[str, Callable[[Shown], str]] = {"flow": flow, "chunks": chunks, "views": views, "compdemo": compdemo}


def draw_all() -> dict[str, str]:
    """Return every file's name and text."""
    sample = make_sample()
    return {f"{name}.svg": draw(sample) for name, draw in PICTURES.items()}


if __name__ == "__main__":
    for name, text in draw_all().items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(HERE / name, file=sys.stderr)
