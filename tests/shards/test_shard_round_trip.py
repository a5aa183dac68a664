"""Decode inverts encode, bytes are deterministic, and a view's rows lie in its own row groups."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.shard_examples import (
    HEADER,
    RULES,
    MemoryFiles,
    assert_pairs_equal,
    assert_records_equal,
    encode_both,
    encode_compdemo,
    encode_views,
    make_compdemo,
    make_shard,
)
from tide_cache.errors import ShardCorruptError
from tide_cache.shards import (
    SAMPLES_PER_GROUP,
    LocalFiles,
    ShardLayout,
    ShardReader,
    at_former_levels,
    encode_pairs,
    writer,
)
from tide_cache.shards.columns import columns_of
from tide_cache.shards.schema import former_compression_levels


@pytest.mark.parametrize("parts", [{"topk"}, {"topk", "tail", "chunks"}])
def test_a_repair_can_give_the_bytes_of_earlier_releases(parts, monkeypatch):
    rules = replace(RULES, num_views=2, parts=frozenset(parts))
    indexes, _, records = make_shard(3, 70, rules, max_chunks=4)
    header = replace(HEADER, table="plain")
    now = encode_views(header, indexes, records, rules, "float16")
    encode = writer._encode
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_encode", lambda *of: encode(*of, former_compression_levels(of[3])))
        former = encode_views(header, indexes, records, rules, "float16")
    assert former.data != now.data
    assert at_former_levels(now).data == former.data


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_samples=st.sampled_from([0, 1, 2, 63, 64, 65, 130]),
    num_views=st.integers(1, 3),
    parts=st.sets(st.sampled_from(["topk", "tail", "chunks"])),
    storage=st.sampled_from([("float16", "plain"), ("float32", "plain"), ("float16", "compact")]),
    table=st.sampled_from(["plain", "compdemo"]),
)
def test_decode_inverts_encode(tmp_path_factory, seed, num_samples, num_views, parts, storage, table):
    logprob_dtype, codec = storage
    parts = frozenset(parts if "topk" in parts else parts - {"tail"})
    rules = replace(RULES, num_views=num_views, parts=parts, codec=codec)
    indexes, pairs, records = make_shard(seed, num_samples, rules, max_chunks=4)
    records = make_compdemo(seed, records) if table == "compdemo" else records
    folder = tmp_path_factory.mktemp("shard")
    pair_shard = encode_pairs(HEADER, indexes, pairs, rules)
    signal_shard = encode_views(replace(HEADER, table=table), indexes, records, rules, logprob_dtype)
    readers = []
    for name, shard in (("pairs", pair_shard), ("signals", signal_shard)):
        (folder / name).write_bytes(shard.data)
        readers.append(ShardReader(folder / name, shard, rules, LocalFiles()))
    layout = ShardLayout(num_samples, num_views)
    for group in range(layout.num_groups):
        members = layout.samples_of(group)
        found = readers[0].read_pairs(group)
        assert_pairs_equal(found, pairs[members.start : members.stop])
        for view in range(num_views):
            decoded = readers[1].read_signals(view, group, found, thorough=True)
            assert_records_equal(decoded, records[view][members.start : members.stop], logprob_dtype)
    for reader in readers:
        reader.check_footer()


def test_equal_input_gives_equal_bytes():
    for first, second in zip(encode_both(3, 70), encode_both(3, 70), strict=True):
        assert first.data == second.data
        assert first.footer_sha256 == second.footer_sha256


@given(num_samples=st.integers(0, 300), num_views=st.integers(1, 9))
def test_layout_is_view_major_and_covers_every_row_once(num_samples, num_views):
    layout = ShardLayout(num_samples, num_views)
    order = [(view, group) for view in range(num_views) for group in range(layout.num_groups)]
    assert [layout.row_group(view, group) for view, group in order] == list(range(layout.num_row_groups))
    assert layout.rows == tuple(len(layout.samples_of(group)) for _, group in order)
    covered = [sample for group in range(layout.num_groups) for sample in layout.samples_of(group)]
    assert covered == list(range(num_samples))
    assert all(0 < rows <= SAMPLES_PER_GROUP for rows in layout.rows)


@pytest.mark.parametrize(("view", "group"), [(-1, 0), (2, 0), (0, -1), (0, 2)])
def test_layout_refuses_what_it_does_not_hold(view, group):
    with pytest.raises(IndexError, match=f"view {view}, group {group}"):
        ShardLayout(65, 2).row_group(view, group)


def test_layout_refuses_a_group_it_does_not_hold():
    with pytest.raises(IndexError, match="group 2 of a shard with 2 groups"):
        ShardLayout(65, 2).samples_of(2)


def test_file_holds_what_the_format_says(tmp_path: Path):
    """View-major rows, zstd, no dictionary, no statistics, byte streams split, and the shard's own name."""
    pair_shard, signal_shard = encode_both(5, 70)
    path = tmp_path / "shard.parquet"
    path.write_bytes(signal_shard.data)
    table = pq.read_table(path)
    assert table.column("view").to_pylist() == [view for view in range(3) for _ in range(70)]
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(6)] == [64, 6] * 3 == list(signal_shard.row_groups)
    encodings = {}
    for i in range(metadata.num_columns):
        column = metadata.row_group(0).column(i)
        assert (column.compression, column.has_dictionary_page, column.is_stats_set) == ("ZSTD", False, False)
        encodings[column.path_in_schema] = column.encodings
    for name in ("t", "view", "topk_ids.list.element", "topk_logprobs.list.element", "student_masked.list.element"):
        assert "BYTE_STREAM_SPLIT" in encodings[name]
    stored = {k.decode(): v.decode() for k, v in metadata.metadata.items() if k != b"tide_cache.row_groups"}
    assert stored == {
        "tide_cache.cache_id": "0123456789abcdef",
        "tide_cache.plan_hash": "fedcba9876543210",
        "tide_cache.table": "plain",
        "tide_cache.shard": "7",
        "tide_cache.format_version": "1",
        "tide_cache.codec": "plain",
    }
    assert sum(signal_shard.column_bytes.values()) < len(signal_shard.data)
    assert signal_shard.column_bytes["topk_ids"] > 0
    assert set(pair_shard.column_bytes) == set(pq.read_schema(_written(tmp_path, pair_shard.data)).names)


def test_the_split_is_a_column_of_the_compdemo_table_alone(tmp_path: Path):
    names = [
        pq.read_schema(_written(tmp_path, shard.data)).names for shard in (encode_both(5, 3)[1], encode_compdemo(5, 3))
    ]
    assert names[1] == [*names[0][:6], "shown_first", *names[0][6:]]
    _, _, records = make_shard(5, 3)
    for table, of_table in (("plain", make_compdemo(5, records)), ("compdemo", records)):
        with pytest.raises(AssertionError, match="signals differ from what the identity declares"):
            encode_views(replace(HEADER, table=table), [0, 1, 2], of_table, RULES, "float16")
    of_table = make_compdemo(5, records)
    of_table[0][1] = records[0][1]
    with pytest.raises(AssertionError, match="an optional signal in some rows only"):
        encode_views(replace(HEADER, table="compdemo"), [0, 1, 2], of_table, RULES, "float16")


def test_a_reader_crosses_into_worker_processes(tmp_path: Path):
    pair_shard, _ = encode_both(5, 3)
    reader = ShardReader(_written(tmp_path, pair_shard.data), pair_shard, RULES, LocalFiles())
    first = reader.read_pairs(0)
    assert_pairs_equal(pickle.loads(pickle.dumps(reader)).read_pairs(0), first)


@pytest.mark.parametrize("codec", ["plain", "compact"])
@pytest.mark.parametrize("signals", [["truth"], ["topk"], ["chunks", "truth"], ["truth", "topk", "chunks"]])
def test_only_the_signals_asked_for_are_decoded(codec, signals, monkeypatch):
    rules = replace(RULES, parts=frozenset({"topk", "tail", "chunks"}), codec=codec)
    indexes, pairs, records = make_shard(5, 7, rules)
    shard = encode_views(replace(HEADER, table="plain"), indexes, records, rules, "float16")
    reader = ShardReader(Path("s.parquet"), shard, rules, MemoryFiles(shard.data))
    names = []
    monkeypatch.setattr(
        "tide_cache.shards.reader.columns_of", lambda table: names.extend(table.column_names) or columns_of(table)
    )
    found = reader.read_signals(1, 0, pairs, thorough=True, signals=signals)
    assert {name.partition("_")[0] for name in names} & {"topk", "tail", "chunk"} == {
        prefix for prefix, kind in (("topk", "topk"), ("tail", "topk"), ("chunk", "chunks")) if kind in signals
    }
    expected = [
        replace(
            record,
            signal=replace(
                record.signal,
                topk=record.signal.topk if "topk" in signals else None,
                chunks=record.signal.chunks if "chunks" in signals else None,
            ),
        )
        for record in records[1]
    ]
    assert_records_equal(found, expected, "float16")


def test_signals_that_are_not_decoded_are_not_checked(monkeypatch):
    """But their bytes are: the hash of a row group covers all of it."""
    indexes, pairs, records = make_shard(5, 7)
    at = next(i for i, record in enumerate(records[1]) if len(record.signal.topk.logprobs_E))
    topk = replace(records[1][at].signal.topk, logprobs_E=np.ones_like(records[1][at].signal.topk.logprobs_E))
    records[1][at] = replace(records[1][at], signal=replace(records[1][at].signal, topk=topk))
    monkeypatch.setattr("tide_cache.shards.writer.check_signals", lambda *args, **kwargs: None)
    shard = encode_views(replace(HEADER, table="plain"), indexes, records, RULES, "float16")
    reader = ShardReader(Path("s.parquet"), shard, RULES, MemoryFiles(shard.data))
    with pytest.raises(ShardCorruptError, match="column topk_logprobs"):
        reader.read_signals(1, 0, pairs)
    assert len(reader.read_signals(1, 0, pairs, signals=["truth"])) == 7


def test_signals_that_are_not_stored_stay_absent():
    rules = replace(RULES, parts=frozenset())
    indexes, pairs, records = make_shard(5, 7, rules)
    shard = encode_views(replace(HEADER, table="plain"), indexes, records, rules, "float16")
    reader = ShardReader(Path("s.parquet"), shard, rules, MemoryFiles(shard.data))
    assert_records_equal(reader.read_signals(1, 0, pairs, signals=["topk", "chunks"]), records[1], "float16")


def test_polars_opens_a_plain_shard(tmp_path: Path):
    polars = pytest.importorskip("polars")
    indexes, _, records = make_shard(5, 70)
    shard = encode_views(replace(HEADER, table="plain"), indexes, records, RULES, "float16")
    rows = polars.read_parquet(_written(tmp_path, shard.data)).filter(polars.col("view") == 1)
    assert rows.schema["topk_logprobs"] == polars.List(polars.Float32)
    assert rows.schema["topk_ids"] == polars.List(polars.UInt32)
    assert rows["sample_index"].to_list() == indexes
    for found_ids, found_truth, record in zip(rows["topk_ids"], rows["truth_logprobs"], records[1], strict=True):
        assert found_ids.to_list() == record.signal.topk.ids_E.tolist()
        assert found_truth.to_list() == record.signal.truth_logprobs_N.tolist()


def test_duckdb_opens_a_plain_shard(tmp_path: Path):
    import duckdb

    indexes, _, records = make_shard(5, 70)
    shard = encode_views(replace(HEADER, table="plain"), indexes, records, RULES, "float16")
    path = _written(tmp_path, shard.data)
    types = {row[0]: row[1] for row in duckdb.sql(f"describe select * from '{path}'").fetchall()}
    assert types["topk_logprobs"] == types["truth_logprobs"] == types["topk_log_tail"] == "FLOAT[]"
    assert (types["topk_ids"], types["t"], types["is_top1"]) == ("UINTEGER[]", "DOUBLE", "BOOLEAN[]")
    rows = duckdb.sql(f"select sample_index, t, topk_ids, truth_logprobs from '{path}' where view = 1").fetchall()
    for row, index, record in zip(rows, indexes, records[1], strict=True):
        assert row[:2] == (index, record.view.t)
        assert row[2] == record.signal.topk.ids_E.tolist()
        assert np.array_equal(np.array(row[3], np.float32), record.signal.truth_logprobs_N)


def _written(folder: Path, data: bytes) -> Path:
    path = folder / "written.parquet"
    path.write_bytes(data)
    return path
