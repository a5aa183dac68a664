"""Exported values are the reader's, in both formats, and other programs read them."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.demo.vocabularies import Vocabularies
from tide_cache.errors import CacheMismatchError, RunFileError
from tide_cache.inspecting import export as exporting
from tide_cache.inspecting.export import export_view
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.records import ViewRecord
from tide_cache_cli.main import app

VIEW = 2


@pytest.fixture(scope="module")
def cache(build_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards with every signal that there is, and both passes."""
    out = tmp_path_factory.mktemp("export") / "cache"
    signals = {"kinds": ["truth", "topk", "chunks"], "top_k": 8, "tail_samples": 3, "temperatures": [1.0, 2.0]}
    values = build_values(out, "shared", build__passes=["plain", "compdemo"])
    build_cache(BuildRun.model_validate(values | {"signals": signals | {"chunk_k": 4}}))
    return out


def records_of(cache: Path, which: str, view: int) -> Iterator[ViewRecord]:
    manifest = Manifest.load(cache)
    for shard in range(manifest.plan.num_shards):
        pairs = manifest.reader(cache, "pairs", shard).read_pairs(0)
        yield from manifest.reader(cache, which, shard).read_signals(view, 0, pairs)  # type: ignore[arg-type]


def flat(nested: list[list[Any]]) -> list[Any]:
    return [value for values in nested for value in values]


def require_equal(row: dict[str, Any], record: ViewRecord) -> None:
    """Flatten a row again, and compare it with what training reads."""
    pair, view, signal = record.pair, record.view, record.signal
    assert signal is not None
    assert signal.topk is not None
    assert signal.topk.tail is not None
    assert signal.chunks is not None
    topk, tail, chunks = signal.topk, signal.topk.tail, signal.chunks
    assert (row["sample_id"], row["view"], row["t"]) == (pair.sample_id, view.view, view.t)
    masked_teacher_N = np.flatnonzero(view.is_teacher_masked_M)
    sizes = [[len(ids) for ids in of_chunk] for of_chunk in row["candidate_ids"]]
    chunk_sizes = (pair.chunks_C4[chunks.chunks_A, 3] - pair.chunks_C4[chunks.chunks_A, 2]).tolist()
    assert all(set(of_chunk) <= {size} for of_chunk, size in zip(sizes, chunk_sizes, strict=True))
    for name, found, expected in [
        ("student_ids", row["student_ids"], pair.student_ids_L),
        ("is_supervised", row["is_supervised"], pair.is_supervised_L),
        ("masked_student", row["masked_student"], np.flatnonzero(view.is_student_masked_L)),
        ("teacher_ids", row["teacher_ids"], pair.teacher_ids_M),
        ("masked_teacher", row["masked_teacher"], masked_teacher_N),
        ("chunks", row["chunks"], pair.chunks_C4),
        ("truth_logprobs", row["truth_logprobs"], signal.truth_logprobs_N),
        ("is_top1", row["is_top1"], signal.is_top1_N),
        ("topk_positions", row["topk_positions"], masked_teacher_N[topk.rows_R]),
        ("topk counts", [len(ids) for ids in row["topk_ids"]], topk.counts_R),
        ("topk_ids", flat(row["topk_ids"]), topk.ids_E),
        ("topk_logprobs", flat(row["topk_logprobs"]), topk.logprobs_E),
        ("topk_log_tail", row["topk_log_tail"], topk.log_tail_RT),
        ("topk_log_partition", row["topk_log_partition"], topk.log_partition_RT),
        ("tail counts", [len(ids) for ids in row["tail_ids"]], tail.counts_R),
        ("tail_ids", flat(row["tail_ids"]), tail.ids_S),
        ("tail_logprobs", flat(row["tail_logprobs"]), tail.logprobs_S),
        ("tail_draws", flat(row["tail_draws"]), tail.draws_S),
        ("candidate_chunks", row["candidate_chunks"], chunks.chunks_A),
        ("candidate counts", [len(of_chunk) for of_chunk in row["candidate_ids"]], chunks.counts_A),
        ("candidate_ids", flat(flat(row["candidate_ids"])), chunks.ids_F),
        ("candidate_logprobs", flat(row["candidate_logprobs"]), chunks.logprobs_J),
        ("candidate_log_tail", row["candidate_log_tail"], chunks.log_tail_AT),
        ("candidate_log_partition", row["candidate_log_partition"], chunks.log_partition_AT),
    ]:
        array = np.array(found, dtype=expected.dtype).reshape(expected.shape)
        np.testing.assert_array_equal(array, expected, name)
    assert ("is_shown_first" in row) == (signal.is_shown_first_N is not None)
    if signal.is_shown_first_N is not None:
        assert row["is_shown_first"] == signal.is_shown_first_N.tolist()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines with the zstandard package; null stands for the log of nothing."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        rows = [json.loads(line) for line in io.TextIOWrapper(stream, encoding="utf-8")]
    return [{name: with_infinities(value) for name, value in row.items()} for row in rows]


def with_infinities(value: Any) -> Any:
    if isinstance(value, list):
        return [with_infinities(entry) for entry in value]
    return -np.inf if value is None else value


@pytest.mark.parametrize("which", ["plain", "compdemo"])
@pytest.mark.parametrize("name", ["view.parquet", "view.jsonl.zst"])
def test_the_file_holds_what_training_reads(cache: Path, tmp_path: Path, which: Any, name: str) -> None:
    found = export_view(cache, tmp_path / name, VIEW, signal_pass=which)
    rows = pq.read_table(tmp_path / name).to_pylist() if name.endswith("parquet") else read_lines(tmp_path / name)
    records = list(records_of(cache, which, VIEW))
    assert found.num_samples == len(rows) == len(records) == 40
    for row, record in zip(rows, records, strict=True):
        assert tuple(row) == found.columns
        require_equal(row, record)
    assert found.num_bytes == (tmp_path / name).stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [name], "no temporary file stays"


def test_the_log_of_nothing_is_null_in_json() -> None:
    assert exporting._finite({"a": [[-np.inf, 1.0], []], "b": "x", "c": [1]}) == {
        "a": [[None, 1.0], []], "b": "x", "c": [1],
    }  # fmt: skip


def test_duckdb_reads_both(cache: Path, tmp_path: Path) -> None:
    for name in ("view.parquet", "view.jsonl.zst"):
        export_view(cache, tmp_path / name, 0)
    both = [
        duckdb.sql(
            f"select sample_id, len(topk_ids), list_sum(truth_logprobs) from {reader}('{tmp_path / name}') order by 1"
        ).fetchall()
        for reader, name in (("read_parquet", "view.parquet"), ("read_json_auto", "view.jsonl.zst"))
    ]
    assert [row[:2] for row in both[0]] == [row[:2] for row in both[1]]
    assert [row[2] for row in both[0]] == pytest.approx([row[2] for row in both[1]])
    kept = sum(len(record.signal.topk.rows_R) for record in records_of(cache, "plain", 0) if record.signal.topk)
    assert sum(row[1] for row in both[0]) == kept


def test_text_needs_the_caches_own_tokenizer(cache: Path, tmp_path: Path, vocabularies: Vocabularies) -> None:
    out = tmp_path / "view.parquet"
    with pytest.raises(CacheMismatchError, match="found a tokenizer with hash"):
        export_view(cache, out, 0, student=str(vocabularies.first))
    export_view(cache, out, 0, student=str(vocabularies.second))
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    for row in pq.read_table(out, columns=["student_ids", "student_text"]).to_pylist():
        assert row["student_text"] == tokenizer.decode(row["student_ids"])


def test_the_file_says_which_cache_it_is_of(cache: Path, tmp_path: Path) -> None:
    found = export_view(cache, tmp_path / "view.bin", 0, format="parquet", signal_pass="compdemo")
    metadata = pq.read_schema(tmp_path / "view.bin").metadata
    assert metadata[b"cache_id"].decode() == found.cache_id
    assert metadata[b"pass"] == b"compdemo"
    assert json.loads(metadata[b"temperatures"]) == [1.0, 2.0] == list(found.temperatures)


def test_an_existing_file_is_kept(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "view.parquet"
    out.write_text("mine")
    with pytest.raises(RunFileError, match="exists, and nothing is overwritten; give another name, or remove it"):
        export_view(cache, out, 0)
    assert out.read_text() == "mine"
    out.unlink()
    with pytest.raises(RunFileError, match="exists, and nothing is overwritten"):
        export_view(cache, out, 0, on_samples=lambda done, total: out.write_text("late"))
    assert (out.read_text(), len(list(tmp_path.iterdir()))) == ("late", 1)


def test_an_export_that_fails_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped

    for name in ("view.parquet", "view.jsonl.zst"):
        with pytest.raises(Stopped):
            export_view(cache, tmp_path / name, 0, on_samples=stop)
    assert not list(tmp_path.iterdir())


def test_what_the_cache_has_not_is_refused(
    cache: Path, build_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "view.parquet"
    with pytest.raises(RunFileError, match="found no view 4; expected 0 to 3, one of those of each sample"):
        export_view(cache, out, 4)
    build_cache(BuildRun.model_validate(build_values(tmp_path / "plain", views__num_views=1)))
    with pytest.raises(RunFileError, match="found no pass 'compdemo'; expected one of plain"):
        export_view(tmp_path / "plain", out, 0, signal_pass="compdemo")
    with pytest.raises(RunFileError, match=r"expected one ending in \.parquet or \.jsonl\.zst, or the format with"):
        export_view(cache, tmp_path / "view.csv", 0)
    assert not out.exists()


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_says_what_it_wrote(cache: Path, vocabularies: Vocabularies, tmp_path: Path) -> None:
    out, other = tmp_path / "new" / "view.jsonl.zst", tmp_path / "view.parquet"
    result = call(
        cache, "--view", 1, "--out", out, "--pass", "compdemo", "--student", vocabularies.second, "--text", "--json"
    )
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    rows = read_lines(out)
    assert (document["file"], document["format"], document["num_samples"]) == (str(out), "jsonl.zst", len(rows))
    assert document["signal_pass"] == "compdemo"
    assert document["columns"] == list(rows[0])
    assert all(row["student_text"] for row in rows)
    assert "export: 40 of 40 samples" in result.stderr
    table = call(cache, "--view", 1, "--out", other)
    assert f"View 1 of cache {document['cache_id']}" in table.stdout
    again = call(cache, "--view", 1, "--out", other)
    assert again.exit_code == 2
    assert "exists, and nothing is overwritten" in again.stderr


@pytest.mark.parametrize("options", [("--text",), ("--student", "somewhere")])
def test_text_and_tokenizer_come_together(cache: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    result = call(cache, "--view", 1, "--out", tmp_path / "view.parquet", *options)
    assert result.exit_code == 2
    assert "expected both, for the student's text, or neither" in result.stderr
    assert not list(tmp_path.iterdir())
