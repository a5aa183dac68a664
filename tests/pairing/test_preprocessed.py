"""Rows that the reference's preprocessing made, its faults included: what is kept is right, the rest is counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.corpus import PreprocessedFormat, open_preprocessed
from tide_cache.pairing import PairedRows, PreprocessedPairer, SamplePairer, TextTokenizer
from tide_cache.pairing.collecting import HOLDS_MASK, NO_TEACHER_TOKEN, NOT_SUPERVISED
from tide_cache.pairing.preprocessed import DISCARDED
from tide_cache.records import Bools, ChatRow, Message, PreprocessedRow, SampleId, SamplePair

CROSS, CROSS_CUT = ("cross/Neutral-Neutral/ml96_mtl1024_padNone/", "cross/Neutral-Neutral/ml64_mtl40_pad64/")
SHARED, SHARED_CUT = ("aligned/ml96_tml192_padNone/", "aligned/ml64_tml48_pad64/")

Load = Callable[[str], TextTokenizer]


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((shared / "golden" / "collators.json").read_text())
    return document


@pytest.fixture(scope="session")
def read_golden(
    golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[PreprocessedRow]]:
    """Read the rows of a recording as a corpus; their sample ids count from 0."""

    def read(name: str) -> list[PreprocessedRow]:
        kind, format = ("cross", "tide-cross") if name.startswith("cross") else ("aligned", "tide-shared")
        folder = tmp_path_factory.mktemp("golden")
        rows = golden[kind][name]["rows"]
        (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        which: PreprocessedFormat = "tide-cross" if format == "tide-cross" else "tide-shared"
        sizes = {"student_vocab_size": 200_000, "teacher_vocab_size": 200_000}
        return list(open_preprocessed("set.jsonl", folder=folder, format=which, **sizes))

    return read


def pairer(teacher: TextTokenizer, student: TextTokenizer, **changes: Any) -> PreprocessedPairer:
    limits = {"teacher_max_length": 1024, "student_max_length": 512, "student_block_size": 32, "fill_last_block": False}
    return PreprocessedPairer(teacher, student, **(limits | changes))


def named(golden: dict[str, Any], name: str, result: PairedRows) -> dict[str, SamplePair]:
    rows = golden["cross" if name.startswith("cross") else "aligned"][name]["rows"]
    return {rows[int(pair.sample_id.partition("#")[2])]["name"]: pair for pair in result.pairs}


def require_right(pair: SamplePair, teacher: TextTokenizer, student: TextTokenizer) -> None:
    """Chunks are disjoint, in order, inside both sides, and spell the same on both."""
    assert (pair.chunks_C4[:, 0] < pair.chunks_C4[:, 1]).all()
    assert (pair.chunks_C4[:, 2] < pair.chunks_C4[:, 3]).all()
    assert (pair.chunks_C4[1:, 0] >= pair.chunks_C4[:-1, 1]).all()
    assert (pair.chunks_C4[1:, 2] >= pair.chunks_C4[:-1, 3]).all()
    assert (pair.chunks_C4 >= 0).all()
    for a, b, c, d in pair.chunks_C4.tolist():
        assert b <= len(pair.teacher_ids_M)
        assert d <= len(pair.student_ids_L)
        spelled = teacher.token_bytes.join(pair.teacher_ids_M[a:b].tolist())
        assert spelled == student.token_bytes.join(pair.student_ids_L[c:d].tolist()) != b""


@pytest.mark.parametrize("name", [CROSS, CROSS_CUT, "cross/GPT2-Qwen3/ml96_mtl1024_padNone/"])
@pytest.mark.parametrize("lengths", [(1024, 512), (40, 64), (30, 30)])
def test_every_chunk_of_the_cross_set_is_right(
    golden: dict[str, Any], read_golden: Any, load_shared: Load, name: str, lengths: tuple[int, int]
) -> None:
    teacher, student = load_shared("falcon"), load_shared("qwen")
    paired = pairer(teacher, student, teacher_max_length=lengths[0], student_max_length=lengths[1])
    pairs = named(golden, name, paired.pair_many(read_golden(name)))
    assert "gsm0" in pairs or lengths[1] < 47, "its prompt alone is as long"
    for pair in pairs.values():
        require_right(pair, teacher, student)
        assert len(pair.teacher_ids_M) <= lengths[0]
        assert len(pair.student_ids_L) <= lengths[1]


def test_the_cross_set_gives_the_chunks_that_pairing_the_conversations_gives(
    golden: dict[str, Any], read_golden: Any, load_shared: Load
) -> None:
    """Where the reference's search found the right place, nothing is lost by starting from its tokens."""
    teacher, student = load_shared("falcon"), load_shared("qwen")
    pairs = named(golden, CROSS, pairer(teacher, student).pair_many(read_golden(CROSS)))
    rows = {row["name"]: row for row in golden["cross"][CROSS]["rows"]}
    templates = golden["templates"]
    with_templates = [
        TextTokenizer(load_shared(side)._tokenizer, side, None, templates[template], True)
        for side, template in (("falcon", "ROLES"), ("qwen", "CHATML"))
    ]
    own = SamplePairer(
        *with_templates,
        teacher_max_length=1024,
        student_max_length=96,
        student_block_size=32,
        fill_last_block=False,
    )
    compared = 0
    for conversation in golden["conversations"]:
        messages = tuple(Message(m["role"], m["content"]) for m in conversation["messages"])
        expected = own.pair(ChatRow(SampleId("x"), messages, "x"))
        found = pairs.get(conversation["name"])
        if not conversation["name"].startswith(("gsm", "unicode", "lead-newline")):
            continue
        assert isinstance(expected, SamplePair)
        assert found is not None
        assert (
            found.student_ids_L.tolist() == expected.student_ids_L.tolist() == rows[conversation["name"]]["input_ids"]
        )
        assert found.teacher_ids_M.tolist() == expected.teacher_ids_M.tolist()
        assert (
            found.chunks_C4[found.is_distillable_C].tolist() == expected.chunks_C4[expected.is_distillable_C].tolist()
        )
        compared += 1
    assert compared == 7


def test_ranges_in_a_wrong_place_give_no_chunk(golden: dict[str, Any], read_golden: Any, load_shared: Load) -> None:
    """Answers that occur in the prompt or in the template: the reference ties them to that place."""
    teacher, student = load_shared("falcon"), load_shared("qwen")
    result = pairer(teacher, student).pair_many(read_golden(CROSS))
    pairs = named(golden, CROSS, result)
    for name in ("short-answer-in-prompt", "answer-equals-template-word", "answer-repeats-question", "nfd-answer"):
        assert not pairs[name].is_distillable_C.any(), name
    assert pairs["multi-turn"].chunks_C4[:, 2].min() >= 23, "the answer is the last message"
    assert result.report.spans_dropped == 0, "without a supervised token there is nothing to lose"


def test_discarded_rows_are_counted(golden: dict[str, Any], read_golden: Any, load_shared: Load) -> None:
    for name, teacher in ((CROSS_CUT, "falcon"), (SHARED_CUT, "qwen")):
        result = pairer(load_shared(teacher), load_shared("qwen")).pair_many(read_golden(name))
        assert result.report.dropped == {DISCARDED: 3}
        assert {int(dropped.sample_id.partition("#")[2]) for dropped in result.dropped} == {2, 3, 4}
        assert result.report.samples == 12


@pytest.mark.parametrize("name", [SHARED, SHARED_CUT])
def test_the_shared_set_gives_its_pairs_of_equal_bytes(
    golden: dict[str, Any], read_golden: Any, load_shared: Load, name: str
) -> None:
    qwen = load_shared("qwen")
    result = pairer(qwen, qwen, fill_last_block=True).pair_many(read_golden(name))
    rows = {row["name"]: row for row in golden["aligned"][name]["rows"]}
    for row_name, pair in named(golden, name, result).items():
        row = rows[row_name]
        require_right(pair, qwen, qwen)
        declared = zip(row["align_teacher"], row["align_student"], strict=True)
        expected = [[t, t + 1, s, s + 1] for t, s in declared if row["labels"][s] != -100]
        assert pair.chunks_C4.tolist() == expected, row_name
        assert pair.is_aligned_pair_C(151_646).all()
        assert len(pair.student_ids_L) % 32 == 0
        assert pair.is_supervised_L[len(row["input_ids"]) :].all(), "the fill is learnt, as for conversations"


def preprocessed(
    teacher: list[int], student: list[int], spans: list[list[int]], labelled: Bools | None = None, unsupervised: int = 0
) -> PreprocessedRow:
    is_supervised_L = np.arange(len(student)) >= unsupervised
    return PreprocessedRow(
        SampleId("0/set#0"),
        "set:1",
        np.array(student, np.int32),
        is_supervised_L,
        np.array(teacher, np.int32),
        np.ones(len(teacher), bool) if labelled is None else labelled,
        np.array(spans, np.int32).reshape(-1, 4),
        False,
    )


def tokens(tokenizer: TextTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text).ids_L.tolist()
    return ids


def chunks_and_dropped(paired: PreprocessedPairer, row: PreprocessedRow) -> tuple[list[list[int]], int]:
    result = paired.pair_many([row])
    chunks: list[list[int]] = result.pairs[0].chunks_C4.tolist()
    return chunks, result.report.spans_dropped


def test_spans_of_other_bytes_are_dropped_and_counted(large: TextTokenizer, small: TextTokenizer) -> None:
    paired = pairer(large, small)
    teacher, student = tokens(large, "the cat sat"), tokens(small, "the dog sat")
    whole = [0, len(teacher), 0, len(student)]
    assert chunks_and_dropped(paired, preprocessed(teacher, student, [whole])) == ([], 1)
    prefix = tokens(small, "the cat")
    assert chunks_and_dropped(paired, preprocessed(teacher, prefix, [[0, len(teacher), 0, len(prefix)]])) == ([], 1)
    chunks, dropped = chunks_and_dropped(paired, preprocessed(teacher, prefix, [[0, len(teacher), 0, 99]]))
    assert dropped == 0, "the set cut the student's tokens, not its ranges"
    assert chunks[-1][3] == len(prefix)
    shorter, longer = tokens(large, "the cat"), tokens(small, "the cat sat")
    assert chunks_and_dropped(paired, preprocessed(shorter, longer, [[0, len(shorter), 0, len(longer)]])) == ([], 1)


def test_whitespace_at_the_ends_does_not_matter(large: TextTokenizer, small: TextTokenizer) -> None:
    teacher, student = tokens(large, "\n\nthe cat"), tokens(small, "the cat \n")
    chunks, dropped = chunks_and_dropped(
        pairer(large, small), preprocessed(teacher, student, [[0, len(teacher), 0, len(student)]])
    )
    assert dropped == 0
    spelled = b"".join(large.token_bytes.join(teacher[a:b]) for a, b, _, _ in chunks)
    assert spelled == b"the cat"


def test_repeated_positions_padding_and_unequal_ids_are_dropped(small: TextTokenizer) -> None:
    """The faults of the shared set: padded index 0, duplicate writes, ids that differ."""
    ids = tokens(small, "the cat sat on the mat")
    assert len(ids) > 5
    right = [[k, k + 1, k, k + 1] for k in range(4)]
    row = preprocessed(ids, ids, [*right, [0, 1, 0, 1], [0, 1, 0, 1], [5, 6, 4, 5]])
    assert small.token_bytes.of(ids[5]) != small.token_bytes.of(ids[4])
    assert chunks_and_dropped(pairer(small, small), row) == (right, 3)
    crossed = preprocessed(ids, ids, [[1, 2, 1, 2], [0, 1, 2, 3]])
    assert chunks_and_dropped(pairer(small, small), crossed) == ([[1, 2, 1, 2]], 1)


def test_equal_ids_of_different_vocabularies_are_no_pair(load_shared: Load) -> None:
    teacher, student = load_shared("falcon"), load_shared("qwen")
    assert teacher.token_bytes.of(1000) != student.token_bytes.of(1000)
    row = preprocessed([1000], [1000], [[0, 1, 0, 1]])
    assert chunks_and_dropped(pairer(teacher, student), row) == ([], 1)


def test_an_answer_tied_to_the_teachers_prompt_is_dropped(small: TextTokenizer) -> None:
    ids = tokens(small, "the the")
    half = len(ids) // 2
    teacher = [*ids[:half], *ids[:half]]
    labelled = np.arange(len(teacher)) >= half
    wrong = preprocessed(teacher, ids[:half], [[0, half, 0, half]], labelled)
    assert chunks_and_dropped(pairer(small, small), wrong) == ([], 1)
    right, dropped = chunks_and_dropped(
        pairer(small, small), preprocessed(teacher, ids[:half], [[half, 2 * half, 0, half]], labelled)
    )
    assert dropped == 0
    assert right


def test_spans_beyond_the_teachers_tokens_are_dropped(small: TextTokenizer) -> None:
    ids = tokens(small, "the cat")
    row = preprocessed(ids, ids, [[len(ids), len(ids) + 1, 0, 1]])
    assert chunks_and_dropped(pairer(small, small), row) == ([], 1)


def test_long_rows_are_cut_between_chunks(large: TextTokenizer, small: TextTokenizer) -> None:
    text = "the cat sat on the mat and the dog sat on the log"
    teacher, student = tokens(large, text), tokens(small, text)
    row = preprocessed(teacher, student, [[0, len(teacher), 0, len(student)]])
    (whole,) = pairer(large, small).pair_many([row]).pairs
    result = pairer(large, small, teacher_max_length=7, student_max_length=10).pair_many([row])
    assert result.report.truncated == 1
    kept = [chunk for chunk in whole.chunks_C4.tolist() if chunk[1] <= 7 and chunk[3] <= 10]
    assert result.pairs[0].chunks_C4.tolist() == kept != []


def test_rows_that_cannot_be_used_are_left_out_with_their_reason(small: TextTokenizer) -> None:
    ids = tokens(small, "the cat")
    cases = {
        NOT_SUPERVISED: preprocessed(ids, ids, [], unsupervised=len(ids)),
        NO_TEACHER_TOKEN: preprocessed([], ids, []),
        HOLDS_MASK: preprocessed([small.mask_id], ids, []),
    }
    for reason, row in cases.items():
        assert pairer(small, small).pair_many([row]).report.dropped == {reason: 1}
    masked = preprocessed(ids, [small.mask_id], [])
    assert pairer(small, small).pair_many([masked]).report.dropped == {HOLDS_MASK: 1}
    assert pairer(small, small).pair_many([]).pairs == []


@given(data=st.data())
def test_whatever_a_set_claims_chunks_are_right(
    data: st.DataObject, large: TextTokenizer, small: TextTokenizer
) -> None:
    """Any spans over any tokens: nothing is raised, and no chunk ties different bytes."""
    text = st.text(st.sampled_from("the cat sa\n\té한"), max_size=12)
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        content = data.draw(text)
        teacher = tokens(large, data.draw(st.one_of(st.just(content), text)))
        student = tokens(small, content)
        ends = st.integers(0, max(len(teacher), len(student)) + 2)
        bounds = st.tuples(ends, ends).map(sorted)
        spans = data.draw(st.lists(st.tuples(bounds, bounds).map(lambda pair: [*pair[0], *pair[1]]), max_size=5))
        spans += data.draw(st.sampled_from([[], [[0, len(teacher), 0, len(student)]]]))
        rows.append(preprocessed(teacher, student, spans, unsupervised=data.draw(st.integers(0, 2))))
    for pair in pairer(large, small).pair_many(rows).pairs:
        require_right(pair, large, small)
