"""Laws of a whole corpus: order, selection, identity, random access, bad rows, memory."""

import json
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import fresh
from tide_cache.corpus import open_corpus
from tide_cache.corpus.store import CHAT_ROWS, store_rows
from tide_cache.errors import CorpusError, RunFileError
from tide_cache.records import ChatRow, Message, SampleId

unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
chat_rows = st.builds(
    ChatRow,
    sample_id=unicode.map(SampleId),
    messages=st.lists(st.builds(Message, role=unicode, content=unicode), max_size=3).map(tuple),
    origin=unicode,
)


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(chat_rows, max_size=6), start=st.integers(0, 8), stop=st.integers(0, 8))
def test_what_is_stored_reads_back(rows: list[ChatRow], start: int, stop: int) -> None:
    corpus = store_rows(rows, [], CHAT_ROWS)
    assert list(corpus) == rows
    assert list(corpus.rows(start, stop)) == rows[start:stop]
    assert [corpus[i] for i in range(-len(rows), len(rows))] == rows + rows


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(chat_rows, min_size=1, max_size=4), others=st.lists(chat_rows, max_size=4))
def test_the_hash_is_equal_exactly_for_equal_contents(rows: list[ChatRow], others: list[ChatRow]) -> None:
    def contents(of: list[ChatRow]) -> list[object]:
        return [(row.sample_id, row.messages) for row in of]

    here = store_rows(rows, [], CHAT_ROWS).content_hash
    assert (here == store_rows(others, [], CHAT_ROWS).content_hash) == (contents(rows) == contents(others))
    assert here != store_rows(rows[:-1], [], CHAT_ROWS).content_hash
    moved = [ChatRow(row.sample_id, row.messages, row.origin + "!") for row in rows]
    assert here == store_rows(moved, [], CHAT_ROWS).content_hash


def test_the_hash_tells_how_text_is_cut_into_messages() -> None:
    def hashed(*contents: str) -> str:
        row = ChatRow(SampleId("0/a#0"), tuple(Message("user", content) for content in contents), "")
        return store_rows([row], [], CHAT_ROWS).content_hash

    assert len({hashed("ab"), hashed("a", "b"), hashed("ab", ""), hashed('a"], ["user", "b')}) == 4


def test_random_access_crosses_batches(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(1500)])
    corpus = open_corpus("a.jsonl", folder=tmp_path)
    assert len(corpus) == 1500
    for index in (0, 511, 512, 1023, 1024, 1499, -1):
        assert corpus[index].messages[0].content == f"row {index % 1500}"
    assert [row.messages[0].content for row in corpus.rows(500, 1030)] == [f"row {i}" for i in range(500, 1030)]
    for outside in (1500, -1501):
        with pytest.raises(IndexError):
            corpus[outside]


def test_a_corpus_may_move(tmp_path: Path) -> None:
    for place in ("here", "there/deep"):
        (tmp_path / place).mkdir(parents=True)
        write_lines(tmp_path / place / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    here = open_corpus("a.jsonl", folder=tmp_path / "here")
    there = open_corpus("there/deep/a.jsonl", folder=tmp_path)
    absolute = open_corpus(f"{tmp_path}/here/../here/a.jsonl[train:]", folder=Path("/"))
    assert here.content_hash == there.content_hash == absolute.content_hash
    assert list(here) == list(there)


def test_a_mix_is_its_parts_in_order(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": f"a{i}"} for i in range(5)])
    write_lines(tmp_path / "b.jsonl", [{"text": f"b{i}"} for i in range(3)])
    corpus = open_corpus("b.jsonl+a.jsonl[train:2]+a.jsonl[train:99]", folder=tmp_path)
    said = [row.messages[0].content for row in corpus]
    assert said == ["b0", "b1", "b2", "a0", "a1", "a0", "a1", "a2", "a3", "a4"]
    assert [row.sample_id for row in corpus][2:7] == [
        "0/b.jsonl#2", "1/a.jsonl#0", "1/a.jsonl#1", "2/a.jsonl#0", "2/a.jsonl#1",
    ]  # fmt: skip
    assert len({row.sample_id for row in corpus}) == len(corpus)


def test_rows_are_counted_after_the_language_filter(tmp_path: Path) -> None:
    code = "```python\nx = 1\n```"
    rows = [{"text": code if i % 3 == 0 else f"{i}: I like python"} for i in range(12)]
    write_lines(tmp_path / "a.jsonl", rows)  # type: ignore[arg-type]
    corpus = open_corpus("a.jsonl[lang:Py,train:3]", folder=tmp_path)
    assert [row.sample_id for row in corpus] == ["0/a.jsonl#0", "0/a.jsonl#3", "0/a.jsonl#6"]


def test_rows_beyond_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nbroken\n')
    assert len(open_corpus("a.jsonl[train:1]", folder=tmp_path)) == 1


def test_a_language_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    rows = [{"text": "x", "lang": "go"}, {"text": "x", "lang": "go"}, {"text": "x"}]
    write_lines(tmp_path / "a.jsonl", rows)  # type: ignore[arg-type]
    with pytest.raises(CorpusError) as caught:
        open_corpus("a.jsonl[lang:pyhton]", folder=tmp_path)
    assert str(caught.value) == (
        "a.jsonl: no row is left; expected at least one.\n"
        "None is of lang:pyhton; languages found: go (2), not told (1). Change or drop the lang selection."
    )


def test_bad_rows_can_be_skipped_and_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text"\n\n{"id": 3}\n"\xff"\n{"text": "b"}\n{"text": "c"}\n')
    corpus = open_corpus("a.jsonl[train:2]", folder=tmp_path, on_bad_row="skip")
    assert [(row.sample_id, row.origin) for row in corpus] == [
        ("0/a.jsonl#0", "a.jsonl:1"),
        ("0/a.jsonl#4", "a.jsonl:6"),
    ]
    assert [message.split(": ")[0] for message in corpus.skipped] == [f"{path}:{line}" for line in (2, 4, 5)]
    assert corpus.skipped[1].startswith(f"{path}:4: no usable field; found id; expected one of these: messages; ")


def test_nothing_but_bad_rows_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "good.jsonl", [{"text": "a"}])
    write_lines(tmp_path / "a.jsonl", [{"id": i} for i in range(7)])
    with pytest.raises(CorpusError) as caught:
        open_corpus("good.jsonl+a.jsonl", folder=tmp_path, on_bad_row="skip")
    message = str(caught.value)
    assert message.startswith("a.jsonl: no row is left; expected at least one.\n7 bad rows were skipped:\n  - ")
    assert message.count("no usable field; found id") == 5
    assert message.endswith("Fix them, or declare their columns in corpus.columns.")


def test_a_declared_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(
        CorpusError, match=r"corpus\.columns names anwser, which no row of 'a\.jsonl' has; expected names"
    ):
        open_corpus("a.jsonl", folder=tmp_path, columns={"user": "question", "assistant": "anwser"})


def test_an_impossible_mapping_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"corpus\.columns: found keys prompt"):
        open_corpus("missing.jsonl", folder=tmp_path, columns={"prompt": "x"})


def test_no_temporary_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    corpus = open_corpus("a.jsonl", folder=tmp_path)
    assert corpus[1].messages[0].content == "b"
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nbroken')
    with pytest.raises(CorpusError):
        open_corpus("a.jsonl", folder=tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert corpus[0].messages[0].content == "a"


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    """A limit on file size, in a process of its own, stands for the full disk."""
    write_lines(tmp_path / "a.jsonl", [{"text": "x" * 1000}] * 1000)
    program = (
        "import resource, sys; from pathlib import Path; from tide_cache.corpus import open_corpus\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: open_corpus('a.jsonl', folder=Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    result = fresh.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.startswith(f"WriteError {tmp_path}: cannot hold the normalised corpus: "), result.stderr
    assert "or set TMPDIR to a folder on a larger disk" in result.stdout


def test_memory_is_flat_in_corpus_size(tmp_path: Path) -> None:
    def peak_bytes(num_rows: int) -> int:
        write_lines(tmp_path / "a.jsonl", [{"question": f"{i}", "answer": "x" * 400} for i in range(num_rows)])
        tracemalloc.start()
        try:
            corpus = open_corpus("a.jsonl", folder=tmp_path)
            assert sum(1 for _ in corpus) == num_rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(600)  # whatever is allocated once
    assert peak_bytes(15_000 if fresh.IS_FULL else 6_000) < 1.2 * peak_bytes(1_500)


def test_memory_is_bounded_for_long_rows(tmp_path: Path) -> None:
    """A batch is cut by its characters too: 100 rows of a million would otherwise be held together."""

    def rows() -> Iterator[ChatRow]:
        for i in range(100):
            yield ChatRow(SampleId(str(i)), (Message("assistant", f"{i % 10}" * 1_000_000),), "")

    tracemalloc.start()
    try:
        corpus = store_rows(rows(), [], CHAT_ROWS)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert [row.messages[0].content[0] for row in corpus] == [str(i % 10) for i in range(100)]


def test_gsm8k_opens_in_about_a_second(shared: Path) -> None:
    start_s = time.process_time()
    corpus = open_corpus("gsm8k_train.jsonl", folder=shared / "data")
    assert time.process_time() - start_s < 3, "normally well below one second"
    assert (len(corpus), corpus.skipped) == (7473, ())
    lines = (shared / "data" / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    for index, row in enumerate(corpus):
        raw = json.loads(lines[index])
        assert [m.content for m in row.messages] == [raw["question"], raw["answer"]]
    assert corpus[16].origin == "gsm8k_train.jsonl:17"


def test_humaneval_reads_through_declared_columns(shared: Path) -> None:
    columns = {"user": "prompt", "assistant": "canonical_solution"}
    corpus = open_corpus("HumanEval.jsonl.gz", folder=shared / "data", columns=columns)
    assert len(corpus) == 164
    assert corpus[0].messages[0].content.startswith("from typing import List\n\n\ndef has_close_elements(")
    assert corpus[0].messages[1].content.startswith("    for idx, elem in enumerate(numbers):\n")
    with pytest.raises(
        CorpusError, match=r"HumanEval\.jsonl\.gz:1: no usable field; found task_id, prompt, entry_point"
    ):
        open_corpus("HumanEval.jsonl.gz", folder=shared / "data")
