"""Preprocessed sets: every container gives the same rows, and every fault of form is told with its place."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tide_cache.corpus import Corpus, PreprocessedFormat, open_corpus, open_preprocessed
from tide_cache.errors import CorpusError, RunFileError
from tide_cache.records import PreprocessedRow

CROSS: dict[str, Any] = {
    "input_ids": [5, 6, 7],
    "labels": [-100, 6, 7],
    "teacher_input_ids": [8, 9],
    "teacher_labels": [-100, 9],
    "ranges": [[0, 1, 0, 1], [1, 2, 1, 3]],
    "prompt_len": 1,
    "_discard": False,
}
SHARED: dict[str, Any] = {
    "input_ids": [5, 6, 7],
    "labels": [-100, 6, 7],
    "teacher_input_ids": [4, 5, 6],
    "align_student": [1, 2],
    "align_teacher": [2, 3],
}
FORMATS: dict[PreprocessedFormat, dict[str, Any]] = {"tide-cross": CROSS, "tide-shared": SHARED}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(
    path: Path, format: PreprocessedFormat = "tide-cross", student: int = 10, teacher: int = 10, **options: Any
) -> Corpus[PreprocessedRow]:
    return open_preprocessed(
        path.name,
        folder=path.parent,
        format=format,
        student_vocab_size=student,
        teacher_vocab_size=teacher,
        **options,
    )


def values(row: PreprocessedRow) -> dict[str, Any]:
    fields = ((name, getattr(row, name)) for name in PreprocessedRow.__dataclass_fields__)
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields}


def test_both_formats_become_spans(tmp_path: Path) -> None:
    path = write(tmp_path, CROSS, {**CROSS, "_discard": True})
    cross, discarded = read(path)
    assert values(cross) == {
        "sample_id": "0/set.jsonl#0",
        "origin": "set.jsonl:1",
        "student_ids_L": [5, 6, 7],
        "is_supervised_L": [False, True, True],
        "teacher_ids_M": [8, 9],
        "is_teacher_labelled_M": [False, True],
        "spans_P4": [[0, 1, 0, 1], [1, 2, 1, 3]],
        "is_discarded": False,
    }
    assert discarded.is_discarded
    (shared,) = read(write(tmp_path, SHARED), "tide-shared")
    assert shared.spans_P4.tolist() == [[2, 3, 1, 2], [3, 4, 2, 3]]
    assert shared.is_teacher_labelled_M.all(), "the set does not say"
    assert (cross.spans_P4.dtype, cross.student_ids_L.dtype, cross.is_supervised_L.dtype) == (np.int32, np.int32, bool)


def test_empty_lists_are_rows_too(tmp_path: Path) -> None:
    """The reference writes them for rows that it discards."""
    empty = {name: [] for name in CROSS} | {"_discard": True, "prompt_len": 69}
    (row,) = read(write(tmp_path, empty))
    assert values(row)["spans_P4"] == []
    assert row.spans_P4.shape == (0, 4)
    assert row.is_discarded


@pytest.mark.parametrize("format", FORMATS)
def test_every_container_gives_the_same_rows(tmp_path: Path, format: PreprocessedFormat) -> None:
    rows = [FORMATS[format], {**FORMATS[format], "input_ids": [5, 6, 8], "labels": [-100, -100, 8]}] * 3
    lines = write(tmp_path, *rows)
    (tmp_path / "set.jsonl.zst").write_bytes(zstandard.compress(lines.read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "splits"))

    def contents(name: str) -> list[dict[str, Any]]:
        without = ("sample_id", "origin")
        corpus = open_preprocessed(
            name, folder=tmp_path, format=format, student_vocab_size=10, teacher_vocab_size=10
        )  # fmt: skip
        return [{key: value for key, value in values(row).items() if key not in without} for row in corpus]

    expected = contents("set.jsonl")
    assert len(expected) == 6
    for name in ("set.jsonl.zst", "set.parquet", "saved", "splits[train:]"):
        assert contents(name) == expected, name
    assert contents("saved[train:2]+set.parquet[train:1]") == [*expected[:2], expected[0]]


def test_the_hash_covers_every_number_and_not_the_place(tmp_path: Path) -> None:
    def hashed(folder: str = "here", **changes: Any) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        return read(write(tmp_path / folder, {**CROSS, **changes})).content_hash

    changed = [
        hashed(input_ids=[4, 6, 7]),
        hashed(labels=[-100, -100, 7]),
        hashed(teacher_input_ids=[7, 9]),
        hashed(teacher_labels=[8, 9]),
        hashed(ranges=[[0, 1, 0, 1], [1, 2, 1, 2]]),
        hashed(_discard=True),
    ]
    assert len({hashed(), *changed}) == 1 + len(changed)
    assert hashed("there") == hashed()
    assert hashed(prompt_len=7) == hashed(), "what is not used does not count"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "found no labels (fields found: input_ids, labels, "),
        ({"ranges": None, "align_student": [0]}, "found no ranges (fields found: "),
        ({"labels": [5, 6]}, "labels: found 2 labels for 3 input_ids; expected as many"),
        ({"labels": [6, 7, 7]}, "labels[0] is 6, but input_ids[0] is 5; expected the same id, or -100"),
        ({"teacher_labels": [9, -100]}, "teacher_labels[0] is 9, but teacher_input_ids[0] is 8; expected the same"),
        ({"input_ids": "567"}, "input_ids: found a string; expected a list of whole numbers"),
        ({"input_ids": [5, True, 7]}, "input_ids[1]: found a boolean; expected a whole number"),
        ({"input_ids": [5, 6.5, 7]}, "input_ids[1]: found a number; expected a whole number"),
        ({"input_ids": [5, 6, 1 << 40]}, "input_ids[2] is 1099511627776; expected a number of 32 bits"),
        ({"ranges": [[0, 1, 0]]}, "ranges: found something other than a list of lists of four numbers"),
        ({"ranges": [[0, 1, 2, 1]]}, "ranges[0] is [0, 1, 2, 1]; expected 0 <= start <= end on both sides"),
        ({"ranges": [[0, 1, 0, 1], [-1, 1, 2, 3]]}, "ranges[1] is [-1, 1, 2, 3]; expected 0 <= start <= end"),
        ({"_discard": "no"}, "_discard: found a string; expected true or false"),
    ],
)
def test_a_fault_of_form_names_the_row_and_can_be_skipped(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, CROSS, {**CROSS, **changes})
    with pytest.raises(CorpusError) as refusal:
        read(path)
    assert str(refusal.value).startswith(f"{path}:2: {message}")
    assert "rows have input_ids, labels, teacher_input_ids, ranges. Fix the row, correct corpus.format" in str(
        refusal.value
    )
    left = read(path, on_bad_row="skip")
    assert len(left) == 1
    assert left.skipped[0].startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"align_teacher": [2]}, "align_teacher: found 1 positions for 2 of align_student; expected as many"),
        ({"align_student": [1, -2]}, "align_student[1] is -2; expected a position from 0"),
        ({"align_student": None}, "found no align_student"),
    ],
)
def test_a_fault_of_positions_names_the_row(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, {**SHARED, **changes})
    with pytest.raises(CorpusError) as refusal:
        read(path, "tide-shared")
    assert str(refusal.value).startswith(f"{path}:1: {message}")


def test_a_row_that_is_no_object_or_no_json_is_told(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(f"{json.dumps(CROSS)}\n[1]\n{{\n")
    left = read(path, on_bad_row="skip")
    assert left.skipped[0] == f"{path}:2: the row is a list; expected an object with named fields"
    assert left.skipped[1].startswith(f"{path}:3: broken JSON")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"student": 7}, "set.jsonl:1: input_ids[2] is 7; the student's tokenizer has ids from 0 to 6."),
        ({"teacher": 9}, "set.jsonl:1: teacher_input_ids[1] is 9; the teacher's tokenizer has ids from 0 to 8."),
    ],
)
def test_an_id_beyond_the_vocabulary_names_row_column_and_id(
    tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(CorpusError) as refusal:
        read(write(tmp_path, CROSS), on_bad_row="skip", **sizes)
    assert str(refusal.value).startswith(message)
    assert "Give the tokenizer that the set was made with as " in str(refusal.value)
    with pytest.raises(CorpusError, match=r"input_ids\[0\] is -1"):
        read(write(tmp_path, {**CROSS, "input_ids": [-1, 6, 7]}))


def test_what_such_sets_cannot_give_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, CROSS)
    with pytest.raises(RunFileError, match=r"found assistant, user; expected none with"):
        read(path, columns={"user": "a", "assistant": "b"})
    with pytest.raises(RunFileError, match=r"found lang:python; expected no lang selection with corpus\.format"):
        open_preprocessed(
            "set.jsonl[lang:python]", folder=tmp_path, format="tide-cross", student_vocab_size=9, teacher_vocab_size=9
        )


def test_conversations_and_preprocessed_sets_are_not_taken_for_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, CROSS)
    with pytest.raises(CorpusError, match=r"; for a preprocessed set, say so in corpus\.format"):
        open_corpus("set.jsonl", folder=tmp_path)
    with pytest.raises(RunFileError, match=r"corpus.format: found 'tide-cross'; expected 'chat' here"):
        open_corpus("set.jsonl", folder=tmp_path, format="tide-cross")
    path.write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(CorpusError, match="found no input_ids, labels, teacher_input_ids, ranges"):
        read(path)
