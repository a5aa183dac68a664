"""Damage to a shard is never silent, and the error says where it is."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.shard_examples import HEADER, RULES, MemoryFiles, encode_both, encode_compdemo
from tide_cache.errors import CacheMismatchError, ShardCorruptError
from tide_cache.shards import EncodedShard, LocalFiles, ShardHeader, ShardLayout, ShardReader
from tide_cache.shards.columns import Ragged

PATH = Path("signals/plain/shard-000007.parquet")


@dataclass(frozen=True)
class Facts:
    """A record that can lie."""

    header: ShardHeader
    size: int
    footer_sha256: str
    num_samples: int


@pytest.fixture(scope="module")
def shards() -> tuple[EncodedShard, EncodedShard, EncodedShard]:
    return (*encode_both(11, 66, max_chunks=4), encode_compdemo(11, 66, max_chunks=4))


def read_all(shard: EncodedShard, data: bytes, shards: tuple[EncodedShard, ...], facts=None) -> None:
    pairs_reader = ShardReader(PATH, shards[0], RULES, MemoryFiles(shards[0].data))
    reader = ShardReader(PATH, facts or shard, RULES, MemoryFiles(data))
    layout = ShardLayout(shard.num_samples, RULES.num_views)
    for group in range(layout.num_groups):
        if shard.header.table == "pairs":
            reader.read_pairs(group)
        else:
            pairs = pairs_reader.read_pairs(group)
            for view in range(RULES.num_views):
                reader.read_signals(view, group, pairs)


@pytest.mark.parametrize("table", [0, 1, 2], ids=["pairs", "plain", "compdemo"])
def test_no_bit_flip_is_silent(shards, table):
    shard = shards[table]
    read_all(shard, shard.data, shards)
    rng = np.random.default_rng(table)
    for _ in range(200):
        damaged = bytearray(shard.data)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        with pytest.raises(ShardCorruptError):
            read_all(shard, bytes(damaged), shards)


def test_no_flip_in_the_footer_is_silent(shards):
    shard = shards[0]
    footer_size = int.from_bytes(shard.data[-8:-4], "little") + 8
    for position in [*range(len(shard.data) - footer_size, len(shard.data), 5), *range(4)]:
        damaged = bytearray(shard.data)
        damaged[position] ^= 0x10
        with pytest.raises(ShardCorruptError, match=r"footer|start of the file"):
            ShardReader(PATH, shard, RULES, MemoryFiles(bytes(damaged))).check_footer()


def test_no_truncation_or_growth_is_silent(shards):
    shard = shards[1]
    sizes = np.random.default_rng(0).integers(0, len(shard.data), 100).tolist()
    for data in [*(shard.data[:size] for size in sizes), shard.data + b"\0"]:
        with pytest.raises(ShardCorruptError, match=f"the commit record says {len(shard.data)}"):
            read_all(shard, data, shards)
        with pytest.raises(ShardCorruptError, match=r"footer|start of the file"):  # even when the record agrees
            read_all(shard, data, shards, _facts(shard, size=len(data)))


def test_zeroed_block_is_not_silent(shards):
    shard = shards[1]
    for start in range(0, len(shard.data), 4096):
        data = shard.data[:start] + bytes(min(4096, len(shard.data) - start)) + shard.data[start + 4096 :]
        with pytest.raises(ShardCorruptError):
            read_all(shard, data, shards)


def test_damage_is_named_by_row_group_and_column(shards):
    shard = shards[1]
    metadata = pq.read_metadata(pa.BufferReader(shard.data))
    row_group = ShardLayout(shard.num_samples, RULES.num_views).row_group(view=1, group=1)
    columns = {metadata.schema.column(i).path.split(".")[0]: i for i in range(metadata.num_columns)}
    chunk = metadata.row_group(row_group).column(columns["topk_logprobs"])
    damaged = bytearray(shard.data)
    damaged[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    with pytest.raises(ShardCorruptError) as error:
        read_all(shard, bytes(damaged), shards)
    message = str(error.value)
    assert f"{PATH}: row group {row_group} (view 1, samples 64 to 65 of the shard), column topk_logprobs" in message
    assert "`tide-cache repair CACHE`" in message
    damaged = bytearray(shard.data)
    damaged[chunk.data_page_offset] ^= 1
    with pytest.raises(ShardCorruptError, match=rf"row group {row_group} .*(column topk_logprobs|a page header)"):
        read_all(shard, bytes(damaged), shards)


def test_other_row_groups_stay_readable(shards):
    shard = shards[0]
    damaged = bytearray(shard.data)
    damaged[40] ^= 1
    reader = ShardReader(PATH, shard, RULES, MemoryFiles(bytes(damaged)))
    assert len(reader.read_pairs(1)) == 2
    with pytest.raises(ShardCorruptError, match="row group 0"):
        reader.read_pairs(0)


def test_missing_file(tmp_path, shards):
    with pytest.raises(ShardCorruptError, match=r"gone\.parquet: cannot be read: No such file"):
        ShardReader(tmp_path / "gone.parquet", shards[0], RULES, LocalFiles()).check_footer()


@pytest.mark.parametrize(
    ("name", "value"), [("cache_id", "f" * 16), ("plan_hash", "f" * 16), ("shard", 8), ("table", "plain")]
)
def test_a_shard_of_another_place_is_refused(shards, name, value):
    """Swapped files have good bytes; what they say of themselves gives them away."""
    shard = shards[0]
    facts = _facts(shard, header=replace(shard.header, **{name: value}))
    with pytest.raises(ShardCorruptError, match=f"belongs elsewhere: {name} is '{getattr(shard.header, name)}'"):
        ShardReader(PATH, facts, RULES, MemoryFiles(shard.data)).check_footer()


def test_a_newer_version_is_refused_with_the_version_needed():
    newer, _ = encode_both(1, 2, header=replace(HEADER, format_version=2))
    with pytest.raises(CacheMismatchError, match="Install a release of tide-cache that reads format version 2"):
        ShardReader(PATH, newer, RULES, MemoryFiles(newer.data)).check_footer()


def test_other_columns_than_declared_are_refused(shards):
    rules = replace(RULES, parts=frozenset())
    with pytest.raises(ShardCorruptError, match=r"found columns .*topk_ids .*, expected sample_index int64"):
        ShardReader(PATH, shards[1], rules, MemoryFiles(shards[1].data)).check_footer()


def test_other_row_counts_than_recorded_are_refused(shards):
    with pytest.raises(ShardCorruptError, match=r"found row groups of \(64, 2\) rows, expected \(64, 3\)"):
        ShardReader(PATH, _facts(shards[0], num_samples=67), RULES, MemoryFiles(shards[0].data)).check_footer()


def test_row_groups_must_cover_the_file(shards):
    """A footer that points elsewhere is refused even when its hash is the recorded one."""
    moved = shards[0].data.replace(b"[[4, ", b"[[5, ")
    assert moved != shards[0].data
    with pytest.raises(ShardCorruptError, match="do not lie end to end"):
        ShardReader(PATH, _facts(shards[0], data=moved), RULES, MemoryFiles(moved)).check_footer()


def test_a_broken_footer_with_a_matching_hash_is_refused(shards):
    start = len(shards[0].data) - int.from_bytes(shards[0].data[-8:-4], "little") - 8
    broken = shards[0].data[:start] + b"\xff" * 64 + shards[0].data[start + 64 :]
    with pytest.raises(ShardCorruptError, match="footer cannot be decoded"):
        ShardReader(PATH, _facts(shards[0], data=broken), RULES, MemoryFiles(broken)).check_footer()


def test_pages_that_cannot_be_decoded_are_refused(shards):
    """Even when the hash of the row group is right: a writer's bug, or a forged file."""
    data = shards[0].data
    first = data[data.index(b"[[4, ") :].split(b"]", 1)[0]
    size = int(first.split(b", ")[1])
    garbled = data[: 3 + size] + bytes([data[3 + size] ^ 1]) + data[4 + size :]  # the last byte of the last page
    good, bad = (hashlib.sha256(one[4 : 4 + size]).hexdigest().encode() for one in (data, garbled))
    forged = garbled.replace(good, bad)
    with pytest.raises(ShardCorruptError, match=r"row group 0 \(samples 0 to 63 of the shard\) cannot be decoded"):
        ShardReader(PATH, _facts(shards[0], data=forged), RULES, MemoryFiles(forged)).read_pairs(0)


def test_columns_refuse_another_dtype():
    with pytest.raises(TypeError, match="expected flat arrays of int32"):
        Ragged.of([np.zeros(2, np.int64)], np.int32)


def _facts(shard: EncodedShard, data: bytes | None = None, **changes) -> Facts:
    footer_sha256 = shard.footer_sha256
    if data is not None:
        footer_sha256 = hashlib.sha256(data[-8 - int.from_bytes(data[-8:-4], "little") :]).hexdigest()
    return replace(Facts(shard.header, len(shard.data), footer_sha256, shard.num_samples), **changes)
