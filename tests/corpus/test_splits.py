"""Which files a split word takes, and what of a corpus is not read."""

import json
from pathlib import Path

import pytest

from tide_cache.corpus import open_corpus
from tide_cache.corpus.store import CHAT_ROWS
from tide_cache.errors import CorpusError, RunFileError
from tide_cache.records import ChatRow, Message, SampleId


def write(folder: Path, *names: str, **fields: object) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"question": "q", "answer": name, **fields}) + "\n")


def answers(spec: str, folder: Path) -> list[str]:
    return [row.messages[-1].content for row in open_corpus(spec, folder=folder)]


@pytest.mark.parametrize(
    ("names", "word", "expected"),
    [
        (["train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"], "train", ["train-00000-of-00001.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], "train", ["gsm8k_train.jsonl"]),
        (["train.jsonl", "validation.jsonl"], "val", ["validation.jsonl"]),
        (["train/a.jsonl", "test/a.jsonl"], "test", ["test/a.jsonl"]),
        (["d/train-00000-of-00002.jsonl", "d/test-00000-of-00002.jsonl"], "train", ["d/train-00000-of-00002.jsonl"]),
        (["sft-00000-of-00001.jsonl", "train-00000-of-00001.jsonl"], "sft", ["sft-00000-of-00001.jsonl"]),
        (["sft-00000-of-00001.jsonl", "train-00000-of-00001.jsonl"], "train", ["train-00000-of-00001.jsonl"]),
        (["part-0.jsonl", "part-1.jsonl"], "train", ["part-0.jsonl", "part-1.jsonl"]),
        (["trainer-notes.jsonl", "contest.jsonl"], "train", ["contest.jsonl", "trainer-notes.jsonl"]),
        (["train.jsonl", "notes.jsonl"], "train", ["train.jsonl"]),
    ],
)  # fmt: skip
def test_a_split_word_takes_its_files(tmp_path: Path, names: list[str], word: str, expected: list[str]) -> None:
    write(tmp_path / "rows", *names)
    assert answers(f"rows[{word}:]", tmp_path) == expected
    assert answers(f"rows[{word}:1]", tmp_path) == expected[:1]


@pytest.mark.parametrize(
    ("names", "word", "found"),
    [
        (["train.jsonl", "test.jsonl"], "validation", "test, train"),
        (["test.jsonl", "rows.jsonl"], "train", "test"),
        (["part-0.jsonl"], "test", "train"),
    ],
)
def test_a_split_that_no_file_has_is_refused(tmp_path: Path, names: list[str], word: str, found: str) -> None:
    write(tmp_path / "rows", *names)
    with pytest.raises(CorpusError, match=rf"found no file of split '{word}'; expected one of: {found}"):
        open_corpus(f"rows[{word}:]", folder=tmp_path)


def test_a_file_honours_train_and_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, "my_test.jsonl")
    assert len(answers("my_test.jsonl[train:1]", tmp_path)) == len(answers("my_test.jsonl[test:1]", tmp_path)) == 1
    with pytest.raises(CorpusError, match="found the split 'val'; a file has no splits"):
        open_corpus("my_test.jsonl[val:]", folder=tmp_path)


def test_a_saved_dataset_honours_its_own_split(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "saved"))
    assert len(open_corpus("saved[train:]", folder=tmp_path)) == 1
    with pytest.raises(CorpusError, match="found the split 'test' selected; it has no splits"):
        open_corpus("saved[test:]", folder=tmp_path)


def test_what_lies_there_and_is_not_read_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "rows", "train.jsonl", "test.jsonl", "old/train.jsonl", source="web", system="")
    (tmp_path / "rows" / "more.csv").write_text("q,a")
    (tmp_path / "rows" / ".hidden").write_text("")
    together, files, columns = open_corpus("rows", folder=tmp_path).notes
    assert "all splits are read together: test (1 files), train (1 files)" in together
    assert files.endswith("2 files not read: old/train.jsonl, more.csv")
    assert columns == "columns not read: source (2 rows)"


def test_fields_of_messages_that_are_not_read_are_listed(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q", "name": "Ann"}, {"role": "assistant", "content": "a", "mood": "good"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    assert open_corpus("a.jsonl", folder=tmp_path).notes == (
        "fields of messages not read: mood (1 rows), name (1 rows)",
    )


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_system_and_history_columns_are_part_of_the_conversation(tmp_path: Path, name: str) -> None:
    row = {name: "Add.", "history": [["1+1", "2"]], "instruction": "1+2", "input": "", "output": "3"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = open_corpus("a.jsonl", folder=tmp_path)
    turns = [(message.role, message.content) for message in read.messages]
    assert turns == [("system", "Add."), ("user", "1+1"), ("assistant", "2"), ("user", "1+2"), ("assistant", "3")]


def test_fields_are_stored_and_change_the_hash() -> None:
    plain = ChatRow(SampleId("a"), (Message("assistant", "x"),), "a:1")
    others = [
        ChatRow(SampleId("a"), (Message("assistant", "x", False),), "a:1"),
        ChatRow(SampleId("a"), (Message("assistant", "x", True, '{"reasoning_content": "y"}'),), "a:1"),
        ChatRow(SampleId("a"), (Message("assistant", "x"),), "a:1", "[{}]"),
    ]
    forms = {CHAT_ROWS.hashed_form(row) for row in (plain, *others)}
    assert len(forms) == 4
    assert CHAT_ROWS.hashed_form(plain) == b'["a", [["assistant", "x"]]]\n'


def test_messages_name_the_key_that_the_user_can_set(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"foo": "x"}\n')
    cases = [
        ({"columns": {"user": "q"}}, "data.corpus", RunFileError, r"^data\.corpus\.columns: found keys user"),
        ({}, "data.corpus", CorpusError, r"declare its columns in data\.corpus\.columns"),
        ({}, "corpus", CorpusError, r"declare its columns in corpus\.columns"),
    ]
    for options, section, error, message in cases:
        with pytest.raises(error, match=message):
            open_corpus("a.jsonl", folder=tmp_path, section=section, **options)
    with pytest.raises(CorpusError, match="Fix the row, or leave") as refused:
        open_corpus("a.jsonl", folder=tmp_path, section="--dataset")
    assert "corpus." not in str(refused.value)
    with pytest.raises(RunFileError, match=r"^--dataset 'a\[x\]' cannot be used"):
        open_corpus("a[x]", folder=tmp_path, section="--dataset")
