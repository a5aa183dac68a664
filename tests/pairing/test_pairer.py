"""A sample's tokens, what is supervised, and the chunks between teacher and student."""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.errors import PairingError
from tide_cache.pairing import (
    Dropped,
    PairedRows,
    PairingReport,
    SamplePairer,
    TextTokenizer,
    encode_student,
)
from tide_cache.pairing.checking import require_usable
from tide_cache.records import ChatRow, Message, SampleId, SamplePair

MakeRow = Callable[..., ChatRow]
Load = Callable[[str], TextTokenizer]


def make_pairer(teacher: TextTokenizer, student: TextTokenizer, **options: int | bool) -> SamplePairer:
    settings: dict = {
        "teacher_max_length": 1024,
        "student_max_length": 512,
        "student_block_size": 8,
        "fill_last_block": False,
    }
    return SamplePairer(teacher, student, **(settings | options))


def paired(result: SamplePair | Dropped) -> SamplePair:
    assert isinstance(result, SamplePair)
    return result


def supervised_text(pair: SamplePair, student: TextTokenizer) -> str:
    return student.decode(pair.student_ids_L[pair.is_supervised_L])


def chunk_bytes(pair: SamplePair, teacher: TextTokenizer, student: TextTokenizer) -> list[tuple[bytes, bytes]]:
    return [
        (
            teacher.token_bytes.join(pair.teacher_ids_M[a:b].tolist()),
            student.token_bytes.join(pair.student_ids_L[c:d].tolist()),
        )
        for a, b, c, d in pair.chunks_C4
    ]


words = st.sampled_from(
    ["the", " cat", " sat", "forty", " 42", "über", "한국", "🎉", "\n", "  ", "e\u0301", "<|im_end|>"]
)
content = st.lists(words | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=12).map("".join)


@given(st.lists(content, min_size=2, max_size=4))
def test_chunks_spell_the_same_on_both_sides(small: TextTokenizer, large: TextTokenizer, make_row: MakeRow, texts):
    """Never aligned wrongly: equal bytes where the text has only one spelling, equal after NFC elsewhere."""
    for teacher, student in ((large, small), (small, large)):
        result = make_pairer(teacher, student).pair(make_row(*texts, "the cat sat"))
        pair = paired(result)
        for teacher_bytes, student_bytes in chunk_bytes(pair, teacher, student):
            if teacher_bytes != student_bytes:
                forms = [unicodedata.normalize("NFC", side.decode()) for side in (teacher_bytes, student_bytes)]
                assert forms[0] == forms[1]
        starts, ends = pair.chunks_C4[:, [0, 2]], pair.chunks_C4[:, [1, 3]]
        assert (starts < ends).all()
        assert (starts[1:] >= ends[:-1]).all()


def answer_coverage(rows: Sequence[ChatRow], result: PairedRows, student: TextTokenizer) -> float:
    """Share of the answers' bytes that lie in chunks."""
    inside = total = 0
    for row, pair in zip(rows, result.pairs, strict=True):
        total += len(row.messages[-1].content.encode())
        for _, _, start, end in pair.chunks_C4[pair.is_distillable_C]:
            inside += len(student.token_bytes.join(pair.student_ids_L[start:end].tolist()))
    return inside / total


@pytest.mark.parametrize("name", ["falcon", "phi3", "cl100k"])
def test_every_answer_byte_of_gsm8k_is_in_a_chunk(load_shared: Load, gsm8k, name: str, tmp_path: Path, shared: Path):
    student, teacher = load_shared("qwen"), load_shared(name)
    if name == "cl100k":
        # Its own template ends a header with ">", which its pre-tokenizer glues to the first word of the answer.
        file = tmp_path / "lines.jinja"
        file.write_text("{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|endoftext|>{% endfor %}")
        folder = str(shared / "tokenizers" / name)
        teacher = TextTokenizer.load(folder, add_mask_token=True, chat_template=file)
    result = make_pairer(teacher, student, student_max_length=1024).pair_many(gsm8k)
    assert result.report.samples == len(gsm8k)
    assert answer_coverage(gsm8k, result, student) == 1.0
    for pair in result.pairs[:20]:
        assert all(a == b for a, b in chunk_bytes(pair, teacher, student))
    assert result.report.spans_dropped == result.report.chunks_rejected == 0


def test_a_token_that_straddles_the_answer_is_in_no_chunk(load_shared: Load, make_row: MakeRow):
    """cl100k reads `>The` as one token: half of it is the template's."""
    teacher, student = load_shared("cl100k"), load_shared("qwen")
    pair = paired(make_pairer(teacher, student).pair(make_row("How long?", "The trip takes 2 days.")))
    assert b"".join(a for a, _ in chunk_bytes(pair, teacher, student)).endswith(b"long? trip takes 2 days.")


@pytest.mark.parametrize("name", ["falcon", "phi3"])
def test_normalised_text_is_resynchronised(load_shared: Load, make_row: MakeRow, shared: Path, name: str):
    """Decomposed accents and jamo, which qwen's NFC composes: at least 95 % stays covered."""
    texts = [entry["text"] for entry in json.loads((shared / "golden" / "align_texts.json").read_text())["texts"]]
    changed = [text for text in texts if unicodedata.normalize("NFC", text) != text]
    mixed = "Le café de la forêt était fermé, alors nous avons mangé une crème brûlée à l'hôtel. " * 3
    changed.append(unicodedata.normalize("NFD", mixed))
    rows = [make_row("Say it.", text, name=f"s{k}") for k, text in enumerate(changed)]
    student, teacher = load_shared("qwen"), load_shared(name)
    result = make_pairer(teacher, student).pair_many(rows)
    assert len(changed) >= 6
    assert result.report.spans_resynchronised == len(changed)
    assert result.report.spans_dropped == 0
    covered = total = 0
    for pair in result.pairs:
        final = np.flatnonzero(pair.is_supervised_L)[:-2]  # without the end of turn and the line break
        total += len(final)
        inside = np.zeros(len(pair.student_ids_L), bool)
        for _, _, start, end in pair.chunks_C4:
            inside[start:end] = True
        covered += inside[final].sum()
        for teacher_bytes, student_bytes in chunk_bytes(pair, teacher, student):
            assert unicodedata.normalize("NFC", teacher_bytes.decode(errors="replace")) == unicodedata.normalize(
                "NFC", student_bytes.decode(errors="replace")
            )
    assert covered / total >= 0.95


def test_a_short_answer_pairs_with_the_answer(small: TextTokenizer, large: TextTokenizer, make_row: MakeRow):
    row = make_row("is it 42 or 43", "42")
    pair = paired(make_pairer(large, small).pair(row))
    start = len(small.render(row.messages[:1]).text)
    edges = [0, *small.encode(small.render(row.messages).text).byte_ends_L]
    distillable = pair.chunks_C4[pair.is_distillable_C]
    assert len(distillable) > 0
    assert all(edges[first] >= start for first in distillable[:, 2])
    assert b"".join(b for _, b in chunk_bytes(pair, large, small))[-2:] == b"42"


def test_supervised_tokens(small: TextTokenizer, make_row: MakeRow):
    def supervised(*contents: str) -> str:
        return supervised_text(encode_student([make_row(*contents)], small, **LONG).pairs[0], small)

    assert supervised("the cat", "sat") == "sat<|im_end|>\n"
    assert supervised("a", "first", "b", "second") == "first<|im_end|>second<|im_end|>\n"
    assert supervised("a", "first", "the user speaks last") == "first<|im_end|>"
    assert supervised("a", "") == "<|im_end|>\n"


LONG = {"max_length": 512, "block_size": 8, "fill_last_block": False}


def test_a_straddling_token_is_not_supervised(load_shared: Load, make_row: MakeRow):
    pair = encode_student([make_row("How long?", "The trip takes 2 days.")], load_shared("cl100k"), **LONG).pairs[0]
    assert supervised_text(pair, load_shared("cl100k")) == " trip takes 2 days.<|endoftext|>"


def test_equal_sides_pair_every_token(small: TextTokenizer, make_row: MakeRow):
    pairer = make_pairer(small, small, fill_last_block=True)
    pair = paired(pairer.pair(make_row("the cat", "sat on the mat")))
    length = len(pair.student_ids_L)
    assert length % 8 == 0
    np.testing.assert_array_equal(pair.teacher_ids_M, pair.student_ids_L)
    at = np.arange(length)
    np.testing.assert_array_equal(pair.chunks_C4, np.stack([at, at + 1, at, at + 1], axis=1))
    assert pair.is_aligned_pair_C(small.vocab_size).all()
    np.testing.assert_array_equal(pair.is_distillable_C, pair.is_supervised_L)


def test_tokenizers_that_read_alike_tokenize_once(small, make_tokenizer, make_row, monkeypatch):
    """The shared-tokenizer pipeline does half the work, for the same samples."""
    again = TextTokenizer.load(small.name, add_mask_token=True)
    assert again.reads_like(small)
    other_end = TextTokenizer.load(str(make_tokenizer("end", size=300, eos_token="<|endoftext|>")), add_mask_token=True)
    assert other_end.fingerprint() == small.fingerprint()
    assert not other_end.reads_like(small)
    rows = [make_row("the cat", "sat on the mat"), make_row("x", " the log\n", name="b")]
    once = make_pairer(again, small, fill_last_block=True).pair_many(rows)
    monkeypatch.setattr(TextTokenizer, "reads_like", lambda self, other: False)
    twice = make_pairer(again, small, fill_last_block=True).pair_many(rows)
    for a, b in zip(once.pairs, twice.pairs, strict=True):
        for name in ("student_ids_L", "is_supervised_L", "teacher_ids_M", "chunks_C4"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert once.report == twice.report
    encoded = []
    encode_many = TextTokenizer.encode_many
    monkeypatch.undo()
    monkeypatch.setattr(
        TextTokenizer, "encode_many", lambda self, texts: encoded.append(len(texts)) or encode_many(self, texts)
    )
    make_pairer(again, small).pair_many(rows)
    assert encoded == [2]


def test_equal_sides_of_different_lengths(small: TextTokenizer, make_row: MakeRow):
    row = make_row("the cat", "sat on the mat and " * 3)
    whole = encode_student([row], small, **LONG).pairs[0].student_ids_L
    size = len(whole)
    for teacher_length, student_length in ((size - 2, 512), (512, size - 2), (size + 1, 512), (size, 512)):
        options = {"teacher_max_length": teacher_length, "student_max_length": student_length}
        pair = paired(make_pairer(small, small, fill_last_block=True, **options).pair(row))
        assert len(pair.teacher_ids_M) <= teacher_length
        assert len(pair.student_ids_L) <= student_length
        shorter = min(len(pair.teacher_ids_M), len(pair.student_ids_L))
        assert len(pair.chunks_C4) == shorter
        np.testing.assert_array_equal(pair.teacher_ids_M[:shorter], pair.student_ids_L[:shorter])
    assert len(pair.teacher_ids_M) == size


@given(st.integers(1, 90), st.integers(1, 16))
def test_the_last_block_is_filled_with_supervised_end_of_text(small, large, make_row, max_length, block_size):
    row = make_row("the cat", "sat on the mat")
    plain = encode_student([row], small, max_length=512, block_size=1, fill_last_block=True).pairs[0]
    options = {"student_max_length": max_length, "student_block_size": block_size}
    result = make_pairer(large, small, fill_last_block=True, **options).pair(row)
    if isinstance(result, Dropped):
        assert not plain.is_supervised_L[:max_length].any()
        return
    size = len(plain.student_ids_L)
    length = len(result.student_ids_L)
    assert length == min(max_length, -(-size // block_size) * block_size)
    assert (result.student_ids_L[size:] == small.eos_id).all()
    assert result.is_supervised_L[size:].all()
    np.testing.assert_array_equal(result.student_ids_L[:size], plain.student_ids_L[:length])
    assert (result.chunks_C4[:, 3] <= min(size, length)).all()
    alone = encode_student([row], small, max_length=max_length, block_size=block_size, fill_last_block=True).pairs[0]
    np.testing.assert_array_equal(alone.student_ids_L, result.student_ids_L)
    np.testing.assert_array_equal(alone.is_supervised_L, result.is_supervised_L)


def test_truncation_keeps_chunks_inside_both(small: TextTokenizer, large: TextTokenizer, make_row: MakeRow):
    row = make_row("the cat", "sat on the mat and the dog sat on the log")
    whole = paired(make_pairer(large, small).pair(row))
    teacher_length, student_length = len(whole.teacher_ids_M) - 6, len(whole.student_ids_L) - 5
    options = {"teacher_max_length": teacher_length, "student_max_length": student_length}
    result = make_pairer(large, small, **options).pair_many([row])
    pair = result.pairs[0]
    want = [c for c in whole.chunks_C4.tolist() if c[1] <= teacher_length and c[3] <= student_length]
    assert pair.chunks_C4.tolist() == want
    assert 0 < len(want) < len(whole.chunks_C4)
    assert result.report.truncated == 1


def test_templates_that_strip_pair_with_templates_that_do_not(small, make_tokenizer, make_row):
    template = "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'].strip() }}<|endoftext|>{% endfor %}"
    folder = make_tokenizer("strips", size=480, template=template, eos_token="<|endoftext|>")
    strips = TextTokenizer.load(str(folder), add_mask_token=True)
    row = make_row(" the cat\n", "\n sat on the mat  ")
    for teacher, student in ((strips, small), (small, strips)):
        pair = paired(make_pairer(teacher, student).pair(row))
        spelled = chunk_bytes(pair, teacher, student)
        assert all(a == b for a, b in spelled)
        assert b" on the mat" in b"".join(a for a, _ in spelled)


def test_contents_that_the_templates_write_differently_are_dropped(small, make_tokenizer, make_row):
    template = "{% for m in messages %}{{ m['content'] | replace('cat', 'dog') }}<|endoftext|>{% endfor %}"
    folder = make_tokenizer("replaces", template=template, eos_token="<|endoftext|>")
    replaces = TextTokenizer.load(str(folder), add_mask_token=True)
    result = make_pairer(replaces, small).pair_many([make_row("the cat", "the mat")])
    assert result.report.spans_dropped == 1
    spelled = chunk_bytes(result.pairs[0], replaces, small)
    assert b"".join(a for a, _ in spelled) == b"the mat"


def test_contents_in_another_order_are_not_crossed(small, make_tokenizer, make_row):
    folder = make_tokenizer("swaps", template="{{ messages[1]['content'] }}<|endoftext|>{{ messages[0]['content'] }}")
    swaps = TextTokenizer.load(str(folder), add_mask_token=True)
    result = make_pairer(swaps, small).pair_many([make_row("the cat", "the mat")])
    assert result.report.spans_dropped == 1
    assert (np.diff(result.pairs[0].chunks_C4, axis=0) > 0).all()


def test_a_normaliser_with_other_words_is_rejected_not_misaligned(small, make_tokenizer, make_row):
    folder = make_tokenizer("lower", size=480, eos_token="<|endoftext|>")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    lower = TextTokenizer.load(str(folder), add_mask_token=True)
    result = make_pairer(lower, small).pair_many([make_row("the cat", "SAT on the MAT")])
    assert result.report.chunks_rejected > 0
    assert all(a == b for a, b in chunk_bytes(result.pairs[0], lower, small))


def test_rows_without_use_are_dropped_with_their_reasons(small, large, make_row):
    rows = [
        make_row("the cat", "sat", name="good"),
        make_row("only a question", name="no-answer"),
        make_row("the cat " * 300, "sat", name="too-long"),
        make_row("the cat", "<|mask|>", name="masked"),
        make_row("the cat", "\ud800", name="broken"),
        ChatRow(SampleId("also-good"), (Message("assistant", "the cat"),), "x:1"),
    ]
    result = make_pairer(large, small).pair_many(rows)
    assert [pair.sample_id for pair in result.pairs] == ["good", "also-good"]
    reasons = {dropped.sample_id: dropped.reason for dropped in result.dropped}
    assert list(reasons) == ["no-answer", "too-long", "masked", "broken"]
    assert reasons["no-answer"] == reasons["too-long"] == "no supervised student token within max_length"
    assert reasons["masked"] == "the text contains the mask token"
    assert reasons["broken"] == "a content is not valid Unicode (it holds a lone surrogate)"
    assert sum(result.report.dropped.values()) == 4
    alone = encode_student(rows, small, **LONG)
    assert [dropped.reason for dropped in alone.dropped] == [dropped.reason for dropped in result.dropped]
    assert make_pairer(large, small).pair(rows[1]) == result.dropped[0]


def test_a_teacher_that_sees_nothing(small, make_tokenizer, make_row):
    folder = make_tokenizer("strips-all", template="{% for m in messages %}{{ m['content'].strip() }}{% endfor %}")
    bare = TextTokenizer.load(str(folder), add_mask_token=True)
    assert make_pairer(bare, small).pair(make_row(" ", " ")) == Dropped(SampleId("sample-0"), "no teacher token")


def test_a_row_that_cannot_be_rendered_is_named(small, make_tokenizer, make_row):
    folder = make_tokenizer(
        "omits", template="{% for m in messages %}{{ m['content'] if 'long' not in m['content'] }};{% endfor %}"
    )
    omits = TextTokenizer.load(str(folder), add_mask_token=True)
    result = make_pairer(omits, small).pair_many([make_row("the cat", "mat"), make_row("cat", "long", name="bad")])
    assert len(result.pairs) == 1
    (fault,) = result.faults
    assert re.match(r"bad\.jsonl:1: .*drops the content of message 1", fault)
    with pytest.raises(PairingError, match=r"^rows: 1 row cannot be rendered .*\n  - bad\.jsonl:1: ") as error:
        require_usable("rows", result.faults, "error", "corpus.on_bad_row")
    assert "--on-bad-row skip (corpus.on_bad_row = 'skip')" in str(error.value)
    require_usable("rows", result.faults, "skip", "corpus.on_bad_row")


def test_a_batch_equals_its_rows(load_shared: Load, gsm8k):
    rows = [*gsm8k[:10], ChatRow(SampleId("nfd"), (Message("assistant", "cafe\u0301 noir"),), "x:1"), *gsm8k[10:20]]
    pairer = make_pairer(load_shared("falcon"), load_shared("qwen"), fill_last_block=True, student_max_length=200)
    together = pairer.pair_many(rows)
    apart = [pairer.pair_many([row]) for row in rows]
    for a, b in zip(together.pairs, (pair for one in apart for pair in one.pairs), strict=True):
        for name in ("student_ids_L", "is_supervised_L", "teacher_ids_M", "chunks_C4"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            assert getattr(a, name).dtype == getattr(b, name).dtype
    assert sum((one.report for one in apart), PairingReport()) == together.report


def test_report_counts(load_shared: Load, gsm8k):
    result = make_pairer(load_shared("falcon"), load_shared("qwen"), fill_last_block=True).pair_many(gsm8k[:50])
    report = result.report
    assert report.supervised_tokens == sum(int(pair.is_supervised_L.sum()) for pair in result.pairs)
    widths = [pair.chunks_C4[pair.is_distillable_C] for pair in result.pairs]
    assert report.covered_tokens == sum(int((w[:, 3] - w[:, 2]).sum()) for w in widths)
    assert report.chunks == sum(len(pair.chunks_C4) for pair in result.pairs)
    assert 0 < report.pairs_one_to_one < report.chunks
    assert json.loads(json.dumps(asdict(report))) == asdict(report)


def test_no_rows(small, large):
    result = make_pairer(large, small).pair_many([])
    assert (result.pairs, result.dropped, result.report) == ([], [], PairingReport())
    assert encode_student([], small, **LONG).pairs == []


def test_without_a_teacher_there_are_no_chunks(small, make_row):
    pair = encode_student([make_row("the cat", "sat")], small, **LONG).pairs[0]
    assert pair.teacher_ids_M.shape == (0,)
    assert pair.chunks_C4.shape == (0, 4)
    assert pair.chunks_C4.dtype == pair.teacher_ids_M.dtype == pair.student_ids_L.dtype == np.int32
    assert pair.is_distillable_C.shape == (0,)
