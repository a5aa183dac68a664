"""Every kind of source gives the same rows, and every way one can be broken has its message."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tide_cache.corpus import Corpus, open_corpus
from tide_cache.errors import CorpusError
from tide_cache.records import ChatRow

ROWS = [{"id": i, "question": f"wie viel ist {i} × 2?", "answer": f"{2 * i} €"} for i in range(700)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(spec: str, folder: Path) -> Corpus[ChatRow]:
    return open_corpus(spec, folder=folder)


def refusal(spec: str, folder: Path, **options: object) -> str:
    with pytest.raises(CorpusError) as caught:
        open_corpus(spec, folder=folder, **options)  # type: ignore[arg-type]
    return str(caught.value)


def write_two_zstd_frames(path: Path) -> None:
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(compress(LINES[:999]) + compress(LINES[999:]))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n").rstrip()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.zst": write_two_zstd_frames,
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "data.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "A.PARQUET": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=300),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    WRITERS[name](tmp_path / name)
    corpus = read(name, tmp_path)
    assert [tuple(m.content for m in row.messages) for row in corpus] == [(r["question"], r["answer"]) for r in ROWS]
    assert [row.sample_id for row in corpus] == [f"0/{name}#{i}" for i in range(700)]
    assert corpus[16].origin == (f"{name}:17" if "jsonl" in name else f"{name} row 16")


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "a"}\n \n\n{"text": "b"}\n\n')
    rows = list(read("a.jsonl", tmp_path))
    assert [(row.sample_id, row.origin) for row in rows] == [("0/a.jsonl#0", "a.jsonl:2"), ("0/a.jsonl#1", "a.jsonl:5")]


def test_a_text_file_gives_one_row_per_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\n one\r\n two\r\n\r\n \nthrée".encode())
    rows = list(read("a.txt", tmp_path))
    assert [(m.role, m.content) for row in rows for m in row.messages] == [
        ("assistant", " one\n two"),
        ("assistant", "thrée"),
    ]
    assert [row.origin for row in rows] == ["a.txt:2", "a.txt:6"]


def test_a_folder_is_its_readable_files_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "b.jsonl").write_text('{"text": "b"}\n')
    (folder / "a.txt").write_text("a")
    (folder / "README.md").write_text("no corpus")
    (folder / ".hidden.jsonl").write_text("no corpus")
    assert [row.sample_id for row in read("parts", tmp_path)] == ["0/a.txt#0", "0/b.jsonl#0"]


def test_a_saved_dataset_with_splits_needs_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    splits = {"train": datasets.Dataset.from_list(ROWS[:5]), "test": datasets.Dataset.from_list(ROWS[5:8])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert [row.messages[1].content for row in read("saved[test:]", tmp_path)] == ["10 €", "12 €", "14 €"]
    assert len(read("saved[train:2]", tmp_path)) == 2
    message = refusal("saved", tmp_path)
    assert "found 2 splits and none selected; expected one of train, test. Select it with [train:]" in message
    assert "found no split 'dev'; expected one of train, test" in refusal("saved[dev:3]", tmp_path)


def test_columns_that_no_shape_uses_are_not_decoded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A date beyond Python's years cannot be decoded; in a column that nobody needs it must not stand in the way."""
    table = pa.table({"id": [1], "when": pa.array([1 << 60], pa.timestamp("ms")), "text": ["hello"]})
    with pytest.raises(OverflowError):
        table.to_pylist()
    pq.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "saved"):
        assert read(name, tmp_path)[0].messages[0].content == "hello"
    pq.write_table(table.drop_columns(["text"]), tmp_path / "b.parquet")
    datasets.Dataset(table.drop_columns(["text"])).save_to_disk(tmp_path / "bare")
    for name in ("b.parquet", "bare"):
        assert f"{name} row 0: no usable field; found id, when; expected one of" in refusal(name, tmp_path)


def test_a_missing_file_suggests_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_train.jsonl").touch()
    message = refusal("gsm8k_trian.jsonl", tmp_path)
    assert message.startswith(f"{tmp_path}/gsm8k_trian.jsonl: no such file or folder; found 'gsm8k_trian.jsonl', ")
    assert message.endswith("expected a path or a hub name like owner/name. Did you mean gsm8k_train.jsonl?")
    assert refusal("zzz", tmp_path).endswith(f"Nothing in {tmp_path} has a similar name.")
    assert refusal("no/a.jsonl", tmp_path).endswith(f"The folder {tmp_path}/no does not exist either.")


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    message = refusal("a.jsonl+./b", tmp_path)
    assert message.startswith("The corpus cannot be read:\n  - ")
    assert f"{tmp_path}/a.jsonl: no such" in message
    assert f"{tmp_path}/b: no such" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    contents = {
        "a.jsonl.gz": gzip.compress(b""),
        "a.jsonl.zst": zstandard.compress(b"\n"),
        "a.json": b"[]",
    }
    (tmp_path / name).write_bytes(contents.get(name, b""))
    if name == "a.parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / name)
    expected = f"{tmp_path}/{name}: is empty; expected at least one row. Fill it, or take it out of the spec."
    assert refusal(name, tmp_path) == expected


def test_a_file_without_a_byte_is_empty_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"")
    assert "a.json: is empty" in refusal("a.json", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b"\n',
            r"a\.jsonl:2: broken JSON at column \d+: Expecting ',' delimiter",
        ),
        ("a.jsonl", b"[\n", r"a\.jsonl:1: broken JSON at column .*; expected one JSON object per line"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: the row is a list; expected an object with named fields"),
        ("a.jsonl", b"9" * 5000, r"a\.jsonl:1: JSON that cannot be decoded: Exceeds the limit"),
        ("a.jsonl", b"[" * 99999, r"a\.jsonl:1: JSON that cannot be decoded: .*recursion"),
        (
            "a.jsonl",
            b'{"text": "\xff"}',
            r"a\.jsonl:1: 0xff at byte 10 is not UTF-8 \(invalid start byte\); expected UTF-8",
        ),
        ("a.txt", b"good\n\nstill\n\xe9t\xe9", r"a\.txt:3: 0xe9 at byte 0 is not UTF-8"),
        ("a.jsonl", b'{"id": 1}', r"a\.jsonl:1: no usable field; found id; expected one of these: messages; "),
        ("a.json", b'[{"text": "a"}, {"text": 1}]', r"a\.json row 1: text: found a number; expected a string"),
    ],
)
def test_a_bad_row_is_refused_with_the_way_out(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    found = refusal(name, tmp_path)
    assert re.match(re.escape(f"{tmp_path}/") + message, found), found
    assert found.endswith(
        "\nFix the row, declare its columns in corpus.columns, for example "
        '{user = "question_text", assistant = "reply"}, or leave such rows out with --on-bad-row skip.'
    )


WHOLE_FILE_FAULTS = [
    (
        "a.json",
        b'[{"text": "a"},\n {"text" "b"}]',
        "a.json:2:10: broken JSON: Expecting ':' delimiter; expected one JSON",
    ),
    (
        "a.json",
        b'{"text": "a"}\n{"text": "b"}',
        "Extra data; expected one JSON document; for one object per line, name ",
    ),
    ("a.json", b'{"rows": [], "n": 0}', 'found keys rows, n; expected an array of rows, or {"data": [rows]}; for one'),
    ("a.json", b"3", "found a number; expected an array of rows"),
    (
        "a.json",
        b"\xff",
        "0xff at byte 0 is not UTF-8 (invalid start byte); expected UTF-8 text; save the file as UTF-8",
    ),
    ("a.json", b"[" * 99999, "JSON that cannot be decoded"),
    ("a.jsonl.gz", gzip.compress(LINES)[:-20], "cannot be read: Compressed file ended before the end-of-stream marker"),
    ("a.jsonl.gz", b"not gzip at all", "cannot be read: Not a gzipped file"),
    ("a.jsonl.zst", zstandard.compress(LINES)[:-9], "cannot be read: Truncated compressed stream; expected a whole, "),
    ("a.jsonl.zst", b"not zstd at all", "cannot be read: ZSTD decompress failed"),
    ("a.parquet", b"PAR1 no more", "cannot be read: Parquet magic bytes not found in footer."),
    (
        "a.csv",
        b"a,b\n",
        "found a file of unknown kind; expected a name ending in .jsonl, .jsonl.gz, .jsonl.zst, .json, ",
    ),
]


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize(("name", "content", "message"), WHOLE_FILE_FAULTS)
def test_a_broken_file_is_refused_even_when_rows_may_be_skipped(
    name: str, content: bytes, message: str, on_bad_row: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    found = refusal(name, tmp_path, on_bad_row=on_bad_row)
    assert found.startswith(f"{tmp_path}/{name}:")
    assert message in found


def test_a_flipped_byte_in_parquet_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, compression="none", write_page_checksum=True, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[data.index(b"wie viel ist 44")] ^= 1
    path.write_bytes(data)
    assert "a.parquet: cannot be read: could not verify page integrity" in refusal("a.parquet", tmp_path)


def test_a_parquet_string_that_is_not_utf8_spoils_its_row_only(tmp_path: Path) -> None:
    offsets, text = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1, 2, 3))), pa.py_buffer(b"a\xffc")
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(3, offsets, text)}), tmp_path / "a.parquet")
    corpus = open_corpus("a.parquet", folder=tmp_path, on_bad_row="skip")
    assert [row.sample_id for row in corpus] == ["0/a.parquet#0", "0/a.parquet#2"]
    message = f"{tmp_path}/a.parquet row 1: a string is not UTF-8 (invalid start byte); expected UTF-8 text"
    assert corpus.skipped == (message,)


def test_a_broken_saved_dataset_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:200])
    assert re.search(
        r"saved: .*expected a folder that save_to_disk of datasets wrote", refusal("saved", tmp_path), re.S
    )


def test_a_folder_without_readable_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").touch()
    assert f"{tmp_path}/docs: none of its 1 files ends in .jsonl, " in refusal("docs", tmp_path)


def test_a_hub_configuration_makes_no_sense_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert "[name:main] selects a hub configuration, but this is local; leave it out" in refusal(
        "a.jsonl[name:main]", tmp_path
    )
