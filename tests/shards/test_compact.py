"""The compact codec: unpack inverts pack to the last bit, the written order is the specified one, lies are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.shard_examples import (
    HEADER,
    RULES,
    MemoryFiles,
    assert_records_equal,
    encode_both,
    encode_views,
    make_shard,
)
from tide_cache.errors import ShardCorruptError, TeacherOutputError
from tide_cache.shards import ShardReader
from tide_cache.shards.codecs import CODECS
from tide_cache.shards.columns import Ragged
from tide_cache.shards.compact import (
    BLOCK,
    ESCAPE,
    escapes,
    join_ids,
    logprobs_of_steps,
    pack,
    split_ids,
    steps_by_rank,
    unpack,
)
from tide_cache.shards.value_faults import ValueFault

COMPACT = replace(RULES, codec="compact")
WHOLE = replace(COMPACT, parts=frozenset({"topk", "tail", "chunks", "projected"}))
FINITE = st.integers(0, 2**16 - 1).filter(lambda bits: bits & 0x7C00 != 0x7C00)
"""Bit patterns of all float16 numbers: both zeros, both signs, subnormal ones and the largest."""


@st.composite
def candidates(draw, prefix: str) -> dict[str, Ragged]:
    """Counts, ids and log-probs of some rows of a table; ids of chunks have counts of their own."""
    counts = draw(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=5))
    num_logprobs = [sum(of_row) for of_row in counts]
    num_ids = [draw(st.integers(0, 6)) for _ in counts] if prefix == "chunk" else num_logprobs
    vocabulary = draw(st.sampled_from([2, 200, 256, 65_280, 65_281, 151_936, 2**24, 2**32]))
    ids = [draw(st.lists(st.integers(0, vocabulary - 1), min_size=n, max_size=n)) for n in num_ids]
    bits = [draw(st.lists(FINITE, min_size=n, max_size=n)) for n in num_logprobs]
    return {
        f"{prefix}_counts": Ragged.of([np.array(one, np.int32) for one in counts], np.int32),
        f"{prefix}_ids": Ragged.of([np.array(one, np.uint32) for one in ids], np.uint32),
        f"{prefix}_logprobs": Ragged.of(
            [np.array(one, np.uint16).view(np.float16).astype(np.float32) for one in bits], np.float32
        ),
    }


def assert_same(found: dict[str, Ragged], expected: dict[str, Ragged]) -> None:
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        assert found[name].values.dtype == column.values.dtype
        assert found[name].values.tobytes() == column.values.tobytes(), name
        assert found[name].offsets.tolist() == column.offsets.tolist()


@settings(deadline=None)
@given(topk=candidates("topk"), tail=candidates("tail"), chunk=candidates("chunk"))
def test_unpack_inverts_pack(topk, tail, chunk):
    columns = {**topk, **tail, **chunk, "view": np.zeros(3, np.int32)}
    packed = pack(columns)
    assert not {"topk_ids", "tail_logprobs"} & packed.keys()
    unpacked = unpack(packed)
    assert unpacked.pop("view") is columns.pop("view")
    assert_same(unpacked, columns)


@pytest.mark.parametrize("vocab_size", [1, 256, 151_936, 2**32])
def test_more_ids_than_a_block(vocab_size):
    rng = np.random.default_rng(0)
    ids = (vocab_size * rng.random(3 * BLOCK + 5) ** 4).astype(np.uint32)
    ids[[0, -1]] = vocab_size - 1
    high, wide, low = split_ids(ids)
    assert np.array_equal(join_ids(high, escapes(high), wide, low), ids)
    assert len(wide) == (ids >> 8 >= ESCAPE).sum()


@pytest.mark.parametrize("value", [0.0, -0.0, -6e-8, -65504.0, 9.9e-5])
def test_equal_and_extreme_logprobs(value):
    logprobs = np.full(7, value).astype(np.float16).astype(np.float32)
    counts = np.array([3, 0, 1, 3], np.int32)
    steps = steps_by_rank(logprobs, counts)
    assert not steps[3:].any()
    assert logprobs_of_steps(steps, counts).tobytes() == logprobs.tobytes()


def test_what_a_float16_cannot_hold_is_never_packed():
    with pytest.raises(AssertionError, match="a float16 cannot hold"):
        steps_by_rank(np.array([-1 / 3], np.float32), np.array([1], np.int32))


def by_the_page(packed: dict[str, Ragged], num_blocks: int) -> tuple[list[int], list[float]]:
    """Ids and log-probs, one by one, in the words of docs/format.md."""
    high, wide, low = (packed[f"topk_ids_{name}"].values.tolist() for name in ("high", "wide", "low"))
    classes = [value.bit_length() for value in high]
    order = sorted(range(len(high)), key=lambda i: (classes[i], i // BLOCK, high[i], i))
    low_of = dict(zip(order, low, strict=True))
    rest = iter(wide)
    ids = [(next(rest) if value == 255 else value) * 256 + low_of[i] for i, value in enumerate(high)]
    assert num_blocks == (len(high) - 1) // BLOCK + 1

    counts = packed["topk_counts"].values.tolist()
    lists = [(n, r) for n, count in enumerate(counts) for r in range(count)]
    order = sorted(range(len(lists)), key=lambda i: (lists[i][1], -counts[lists[i][0]], i))
    step_bytes = (packed[f"topk_logprobs_{name}"].values.tolist() for name in ("high", "low"))
    step_of = {place: 256 * one + two for place, one, two in zip(order, *step_bytes, strict=True)}
    bits, values = 0, []
    for i, (_, rank) in enumerate(lists):
        bits = (step_of[i] + (bits if rank else 0)) % 65536
        values.append(float(np.array(bits, np.uint16).view(np.float16)))
    return ids, values


def test_a_reader_written_from_the_page_agrees():
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 40, 900).astype(np.int32)
    total, half = int(counts.sum()), int(counts[:450].sum())
    ids = (2.0 ** (18 * rng.random(total))).astype(np.uint32)
    logprobs = (-8 * rng.random(total)).astype(np.float16).astype(np.float32)
    columns = {
        "topk_counts": Ragged.of([counts[:450], counts[450:]], np.int32),
        "topk_ids": Ragged.of([ids[:half], ids[half:]], np.uint32),
        "topk_logprobs": Ragged.of([logprobs[:half], logprobs[half:]], np.float32),
    }
    assert by_the_page(pack(columns), 2) == (ids.tolist(), logprobs.tolist())


PACKED = pack(
    {
        "topk_counts": Ragged.of([np.array([2], np.int32), np.array([1, 2], np.int32)], np.int32),
        "topk_ids": Ragged.of([np.array([7, 70_000], np.uint32), np.array([1, 2, 99_999], np.uint32)], np.uint32),
        "topk_logprobs": Ragged.of([np.zeros(2, np.float32), np.zeros(3, np.float32)], np.float32),
    }
)
LIES = {
    "short low bytes": ("topk_ids_low", 1, lambda v: v[:-1], "the length differs from topk_ids_high"),
    "wide value missing": ("topk_ids_wide", 1, lambda v: v[:-1], "differs from the number of 255 in topk_ids_high"),
    "wide value too small": ("topk_ids_wide", 0, lambda v: v * 0, "outside 255 to 2.24 - 1"),
    "wide value too large": ("topk_ids_wide", 0, lambda v: v + 2**24, "outside 255 to 2.24 - 1"),
    "short low steps": ("topk_logprobs_low", 1, lambda v: v[:-1], "the length differs from topk_logprobs_high"),
    "negative count": ("topk_counts", 1, lambda v: v - np.array([0, 2, 0], np.int32), "a count is negative"),
    "larger count": ("topk_counts", 1, lambda v: v + np.array([0, 2, 0], np.int32), "differs from the sum of"),
}


@pytest.mark.parametrize("name", LIES)
def test_columns_that_contradict_each_other_are_refused(name):
    column, row, change, problem = LIES[name]
    values = change(PACKED[column].values)
    offsets = np.minimum(PACKED[column].offsets, len(values))
    with pytest.raises(ValueFault, match=problem) as fault:
        unpack({**PACKED, column: Ragged(offsets, values)})
    assert fault.value.row == row
    assert fault.value.column == ("topk_logprobs_high" if name == "larger count" else column)


def reader_of(shard, rules) -> ShardReader:
    return ShardReader(Path("s.parquet"), shard, rules, MemoryFiles(shard.data))


def test_a_lie_in_a_shard_names_column_and_sample(monkeypatch):
    indexes, pairs, records = make_shard(4, 5)

    def lie(columns):
        packed = pack(columns)
        high = packed["topk_ids_high"]
        wide = Ragged(np.minimum(high.offsets, 1), np.array([300], np.uint32))
        return {**packed, "topk_ids_wide": wide}

    monkeypatch.setitem(CODECS, "compact", replace(CODECS["compact"], pack=lie))
    shard = encode_views(replace(HEADER, table="plain"), indexes, records, COMPACT, "float16")
    with pytest.raises(ShardCorruptError, match=r"row group 1 .*, column topk_ids_wide, sample '.*differs from the n"):
        reader_of(shard, COMPACT).read_signals(1, 0, pairs)


def test_a_compact_shard_holds_the_same_in_fewer_bytes():
    indexes, pairs, records = make_shard(3, 64, WHOLE, max_chunks=30)
    header = replace(HEADER, table="plain")
    plain, packed = (
        encode_views(header, indexes, records, rules, "float16") for rules in (replace(WHOLE, codec="plain"), WHOLE)
    )
    assert len(packed.data) < len(plain.data)
    read = [
        reader_of(shard, rules).read_signals(1, 0, pairs, thorough=True)
        for shard, rules in ((plain, replace(WHOLE, codec="plain")), (packed, WHOLE))
    ]
    assert_records_equal(read[1], read[0], "float16")
    stored = pq.read_metadata(pa.BufferReader(packed.data)).metadata
    assert stored[b"tide_cache.codec"] == b"compact"


def test_a_shard_in_another_codec_is_refused():
    for written, read in ((RULES, COMPACT), (COMPACT, RULES)):
        _, shard = encode_both(5, 3, written)
        with pytest.raises(
            ShardCorruptError, match=f"codec is '{written.codec}' in the file, '{read.codec}' in the cache's documents"
        ):
            reader_of(shard, read).check_footer()


def test_the_writer_checks_before_it_packs():
    indexes, _, records = make_shard(4, 5)
    at = next(i for i, record in enumerate(records[1]) if len(record.signal.topk.logprobs_E))
    topk = records[1][at].signal.topk
    broken = replace(topk, logprobs_E=np.full_like(topk.logprobs_E, -1e6))
    records[1][at] = replace(records[1][at], signal=replace(records[1][at].signal, topk=broken))
    with pytest.raises(TeacherOutputError, match="topk_logprobs: a log-prob is not finite"):
        encode_views(replace(HEADER, table="plain"), indexes, records, COMPACT, "float16")
