"""Small files that would unpack to gigabytes are refused before they do, though every hash matches."""

import hashlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.memory_cache import IS_FULL
from helpers.shard_examples import HEADER, RULES, MemoryFiles, encode_both
from tide_cache.errors import ShardCorruptError, TideCacheError
from tide_cache.shards import ShardHeader, ShardReader
from tide_cache.shards.pages import PageFault, _varint, check_pages
from tide_cache.shards.schema import PAIRS_SCHEMA
from tide_cache.shards.writer import MAGIC, ROW_GROUPS_KEY

PATH = Path("pairs/shard-000007.parquet")
LONGEST_S, MOST_BYTES = 0.1, 64 << 20


@dataclass(frozen=True)
class Facts:
    """A commit record that fits whatever file it is made for."""

    header: ShardHeader
    size: int
    footer_sha256: str
    num_samples: int

    @classmethod
    def of(cls, data: bytes, num_samples: int) -> "Facts":
        footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
        return cls(HEADER, len(data), hashlib.sha256(footer).hexdigest(), num_samples)


def read(data: bytes, num_samples: int) -> None:
    reader = ShardReader(PATH, Facts.of(data, num_samples), RULES, MemoryFiles(data))
    for group in range(reader.layout.num_groups):
        reader.read_pairs(group)


def shard_of(**columns: list) -> bytes:
    """A pairs shard of one sample with some columns replaced, as a hostile writer would make it."""
    row = {
        "sample_index": [0], "sample_id": ["a"], "student_ids": [[1]], "is_supervised": [[True]],
        "teacher_ids": [[1]], "chunks": [[0, 1, 0, 1]],
    }  # fmt: skip
    arrays = [
        one if isinstance(one := {**row, **columns}[field.name], pa.Array) else pa.array(one, field.type)
        for field in PAIRS_SCHEMA
    ]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink, PAIRS_SCHEMA, compression="zstd", use_dictionary=False, write_page_checksum=True, store_schema=False
    ) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=PAIRS_SCHEMA))
        size = sink.tell() - len(MAGIC)
        ranges = [(len(MAGIC), size, hashlib.sha256(sink.getvalue()[len(MAGIC) :]).hexdigest())]
        writer.add_key_value_metadata({**HEADER.to_metadata(), ROW_GROUPS_KEY: json.dumps(ranges)})
    return sink.getvalue()


def one_list(name: str, values: pa.Array) -> pa.Array:
    offsets = pa.array([0, len(values)], pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=PAIRS_SCHEMA.field(name).type)


def flags() -> bytes:
    """Sixty-four million flags fit into eight megabytes, and into 240 bytes of zstd; numpy wants 64 MB, levels 256."""
    bits = pa.py_buffer(bytes(8 << 20))
    return shard_of(is_supervised=one_list("is_supervised", pa.Array.from_buffers(pa.bool_(), 64 << 20, [None, bits])))


def zeros() -> bytes:
    return shard_of(student_ids=one_list("student_ids", pa.array(np.zeros(24 << 20, np.int32))))


def text() -> bytes:
    return shard_of(sample_id=["a" * (192 << 20)])


def lying_page() -> bytes:
    """A page that says it unpacks to two gigabytes: pyarrow would allocate them before it finds that it does not."""
    data = shard_of(student_ids=[[1] * 4096])
    metadata = pq.read_metadata(pa.BufferReader(data))
    chunk = metadata.row_group(0).column(2)
    at = chunk.data_page_offset
    assert data[at : at + 3] == b"\x15\x00\x15"
    _, after = _varint(data, at + 3, len(data))
    assert data[after] == 0x15
    packed, end = _varint(data, after + 1, len(data))
    grown = varint(2 * (2**31 - 1))
    longer = len(grown) - (after - at - 3)
    header = b"\x15\x00\x15" + grown + b"\x15" + varint(packed - 2 * longer)
    assert len(header) == end - at + longer, "the size of the page became a shorter number"
    rest = data[end : at + chunk.total_compressed_size]
    return with_hashes(data, data[:at] + header + rest[:-longer] + data[at + chunk.total_compressed_size :])


def varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def with_hashes(old: bytes, forged: bytes) -> bytes:
    """Put the hashes of a forged file's row groups in the place of the old ones."""
    assert len(forged) == len(old)
    start = old.rindex(b"[[4, ")
    for at, size, digest in json.loads(old[start : old.index(b"]]", start) + 2]):
        forged = forged.replace(digest.encode(), hashlib.sha256(forged[at : at + size]).hexdigest().encode())
    return forged


BOMBS = {"flags": cache(flags), "zeros": cache(zeros), "text": cache(text), "lying page": cache(lying_page)}

CHILD = """
import json, sys, time
from pathlib import Path
from test_bombs import read, shard_of

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

read(shard_of(), 1)
for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is in use now
    before_bytes = peak_bytes()
    started_s = time.process_time()
    try:
        read(data, 1)
        problem = ""
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    took_s = time.process_time() - started_s
    more_bytes = peak_bytes() - before_bytes
    print(json.dumps([Path(path).name, len(data), took_s, more_bytes, problem]))
"""


def test_bombs_are_refused_fast_and_without_memory(tmp_path, capsys):
    """Measured in a process of its own, which has read a good shard before."""
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    paths = [str(Path(__file__).resolve().parent), *sys.path]
    child = f"import sys; sys.path[:0] = {paths!r}\n{CHILD}"
    arguments = [sys.executable, "-c", child, *(str(tmp_path / name) for name in BOMBS)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result[0] for result in results] == list(BOMBS)
    for name, num_bytes, took_s, more_bytes, problem in results:
        if IS_FULL:
            with capsys.disabled():
                print(f"\n  {name}: {num_bytes} bytes, refused in {took_s * 1e3:.1f} ms, {more_bytes >> 10} KiB more")
        assert problem.startswith("ShardCorruptError"), (name, problem)
        assert took_s < LONGEST_S, (name, took_s)
        assert more_bytes < MOST_BYTES, (name, more_bytes)
        assert num_bytes < 1 << 20, name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("flags", r"column is_supervised: declares \d+ flags for at most 4 numbers"),
        ("zeros", r"column student_ids: unpacks to \d+ bytes or more, \d+ bytes may unpack to 16777216"),
        ("text", r"column sample_id: unpacks to"),
        ("lying page", r"column student_ids: its pages say \(4096, \d+, 2147\d+\) .*, the footer says"),
    ],
)
def test_a_bomb_is_named(name, problem):
    with pytest.raises(ShardCorruptError, match=problem):
        read(BOMBS[name](), 1)


def test_degenerate_samples_are_no_bombs():
    """Long texts of one token pack very well; they are read as long as they stay small."""
    read(shard_of(student_ids=[[1] * 100_000], is_supervised=[[True] * 100_000], chunks=[[]]), 1)


def test_a_name_that_is_no_text_is_refused():
    offsets, letters = pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")
    with pytest.raises(ShardCorruptError, match=r"row group 0 .*, column sample_id: not UTF-8"):
        read(shard_of(sample_id=pa.Array.from_buffers(pa.string(), 1, [None, offsets, letters])), 1)


@pytest.fixture(scope="module")
def good():
    return encode_both(3, 5, max_chunks=3)[0]


def test_a_footer_longer_than_the_layout_allows_is_refused_unread(good):
    data = good.data[:-8] + bytes(200_000) + (200_000 + len(good.data)).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(ShardCorruptError, match=r"found a footer of \d+ bytes, expected at most 81920"):
        read(data, 5)


@pytest.mark.parametrize("junk", [b"[[4, null", b'[["4",1,', b"[[4.5, 12", b"{{{{{{{{{"])
def test_row_group_places_that_are_none_are_refused(good, junk):
    at = good.data.rindex(b"[[4, ")
    with pytest.raises(ShardCorruptError, match="footer cannot be decoded"):
        read(good.data[:at] + junk + good.data[at + len(junk) :], 5)


def test_forged_page_headers_and_pages_raise_nothing_else(good):
    """Every byte of the row group, changed with hashes that match: refused, or other lawful values.

    Not so for the footer: pyarrow 26 ends the process on some forged ones (docs/reliability.md).
    """
    data, rng = good.data, np.random.default_rng(5)
    num_refused = num_trials = 0
    for position in range(4, len(data) - 8 - int.from_bytes(data[-8:-4], "little")):
        for value in rng.integers(1, 256, 32 if IS_FULL else 4).tolist():
            forged = bytearray(data)
            forged[position] ^= value
            num_trials += 1
            try:
                read(with_hashes(data, bytes(forged)), 5)
            except TideCacheError:
                num_refused += 1
    assert num_refused > 0.9 * num_trials


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d, s: (d[:-1], s), "reaches beyond|end at byte|lies at bytes"),
        (lambda d, s: (d + b"\0", s), "the columns end at byte"),
        (lambda d, s: (d, s + 1), "do not follow"),
        (lambda d, s: (b"\xff" * len(d), s), "a page header cannot be read"),
        (lambda d, s: (bytes(len(d)), s), "a page header cannot be read"),
        (lambda d, s: (b"\x15\x04" + d[2:], s), "not of a kind"),
    ],
)
def test_pages_that_contradict_the_footer_are_refused(good, change, problem):
    metadata = pq.read_metadata(pa.BufferReader(good.data))
    size = sum(metadata.row_group(0).column(i).total_compressed_size for i in range(metadata.num_columns))
    data, start = change(good.data[4 : 4 + size], 4)
    with pytest.raises(PageFault, match=problem):
        check_pages(metadata, 0, data, start)


def test_a_shard_of_more_row_groups_than_declared_is_refused(good):
    with pytest.raises(ShardCorruptError, match="found row groups of"):
        ShardReader(PATH, replace(Facts.of(good.data, 5), num_samples=6), RULES, MemoryFiles(good.data)).check_footer()
