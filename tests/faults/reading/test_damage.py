"""Damage is never silent: a read gives the right records or a TideCacheError, whatever happened to the bytes.

Quick by default; `TIDE_CACHE_FAULTS=full` runs every trial. Each trial damages a cache in memory and reads the row
group, or loads the document, that was hit; any other exception than a TideCacheError fails the test.
"""

import json
import time
from collections import Counter

import numpy as np
import pytest

from helpers.memory_cache import IS_FULL, RECORDS, ROOT, SHARDS, MemoryCache, alike
from tide_cache.errors import CacheMismatchError, ShardCorruptError, TideCacheError
from tide_cache.manifest import CacheFolder, CommitRecord, Manifest
from tide_cache.manifest.commit import MAX_RECORD_BYTES
from tide_cache.manifest.documents import read_document
from tide_cache.shards import ShardReader
from tide_cache.shards.writer import TRAILER_BYTES

BIT_FLIPS = 20_000 if IS_FULL else 8_000
TRUNCATIONS = 3_000 if IS_FULL else 300
LONGEST_TRIAL_S = 5.0
"""On a busy machine; a trial takes about a millisecond."""

TARGETS = {"shards": SHARDS, "records": RECORDS, "manifest": ("manifest.json",), "plan": ("plan.json",)}
SHARE = {"shards": 0.7, "records": 0.1, "manifest": 0.1, "plan": 0.1}


class Tally:
    """What became of each trial."""

    def __init__(self, cache):
        self.cache, self.counts, self.silent, self.longest_message = cache, Counter(), [], 0

    def try_out(self, name, data, note):
        """Read what lies at the damage; `note` tells how to repeat the trial."""
        started_s = time.process_time()
        damaged = self.cache.changed(**{name: data})
        try:
            is_right = read_what_was_hit(self.cache, damaged, name)
        except TideCacheError as error:
            self.counts[type(error).__name__] += 1
            self.longest_message = max(self.longest_message, len(str(error)))
        else:
            self.counts["right"] += 1
            if not is_right:
                self.silent.append(note)
        assert time.process_time() - started_s < LONGEST_TRIAL_S, note

    def check(self, num_trials, capsys):
        with capsys.disabled():
            if IS_FULL:
                print(f"\n  {num_trials} trials, {len(self.silent)} silent: {dict(self.counts)}")
        assert self.silent == []
        assert self.longest_message < 20_000
        assert sum(self.counts.values()) == num_trials


def read_what_was_hit(cache, damaged, name):
    """Read with damaged bytes; gives whether everything read is right."""
    if name in SHARDS:
        return all(alike(damaged.read_group(*key, found=cache.records, manifest=cache.manifest), cache.records[key])
                   for key in keys_hit(cache, damaged, name))  # fmt: skip
    if name == "plan.json":
        # The plan decides what a resumed build may add: it is the declared one, or refused.
        CacheFolder(ROOT, damaged).require_fits(cache.manifest.identity, cache.manifest.plan)
        return True
    if name == "manifest.json":
        manifest = Manifest.load(ROOT, damaged)
        return all(alike(damaged.read_group(*key, found=cache.records, manifest=manifest), cache.records[key])
                   for key in cache.records)  # fmt: skip
    record = read_document(ROOT / name, CommitRecord, MAX_RECORD_BYTES, damaged)
    shard = name.replace(".json", ".parquet")
    reader = ShardReader(ROOT / shard, record, cache.manifest.identity.shard_rules, damaged)
    found = []
    for _, view, group in (key for key in cache.records if key[0] == shard):
        if shard.startswith("pairs"):
            found.append(alike(reader.read_pairs(group), cache.records[shard, view, group]))
        else:
            pairs = cache.records[shard.replace("signals/plain", "pairs"), 0, group]
            found.append(alike(reader.read_signals(view, group, pairs), cache.records[shard, view, group]))
    return all(found)


def keys_hit(cache, damaged, name):
    """The row groups whose bytes differ; all of them when the damage is elsewhere."""
    keys = [key for key in cache.records if key[0] == name]
    old, new = cache.content[name], damaged.content[name]
    if len(old) != len(new):
        return keys
    layout = cache.reader(name).layout
    ranges = row_group_ranges(cache, name)
    hit = [
        (name, view, group)
        for _, view, group in keys
        for start, size, _ in [ranges[layout.row_group(view, group)]]
        if old[start : start + size] != new[start : start + size]
    ]
    return hit or keys[:1]


def row_group_ranges(cache, name):
    data = cache.content[name]
    start = data.rindex(b"[[4, ")
    return json.JSONDecoder().raw_decode(data[start : data.index(b"]]", start) + 2].decode())[0]


def test_bit_flips_are_never_silent(cache, capsys):
    tally, rng = Tally(cache), np.random.default_rng(20_261_122)
    for trial in range(BIT_FLIPS):
        kind = rng.choice(list(SHARE), p=list(SHARE.values()))
        name = str(rng.choice(TARGETS[kind]))
        data = bytearray(cache.content[name])
        position, bit = int(rng.integers(len(data))), int(rng.integers(8))
        data[position] ^= 1 << bit
        tally.try_out(name, bytes(data), f"trial {trial}: {name}, byte {position}, bit {bit}")
    tally.check(BIT_FLIPS, capsys)
    assert tally.counts["ShardCorruptError"] > BIT_FLIPS * 0.8


def test_no_byte_of_a_footer_can_change_unseen(cache, capsys):
    tally, num_trials = Tally(cache), 0
    rng = np.random.default_rng(1)
    for name in SHARDS:
        pristine = cache.content[name]
        footer_bytes = int.from_bytes(pristine[-8:-4], "little") + TRAILER_BYTES
        positions = [*range(len(pristine) - footer_bytes, len(pristine)), *range(4)]
        for position in positions if IS_FULL else positions[::7] + positions[-12:]:
            data = bytearray(pristine)
            data[position] ^= int(rng.integers(1, 256))
            tally.try_out(name, bytes(data), f"{name}, byte {position}")
            num_trials += 1
    tally.check(num_trials, capsys)
    assert tally.counts == {"ShardCorruptError": num_trials}


def test_truncations_are_never_silent(cache, capsys):
    tally, rng = Tally(cache), np.random.default_rng(2)
    for _ in range(TRUNCATIONS):
        name = str(rng.choice([*SHARDS, *RECORDS, "manifest.json", "plan.json"]))
        size = int(rng.integers(len(cache.content[name])))
        if cache.content[name][size:] == b"\n":
            size -= 1  # the newline at the end of a document is no part of it
        tally.try_out(name, cache.content[name][:size], f"{name} cut to {size} bytes")
    tally.check(TRUNCATIONS, capsys)
    assert tally.counts["right"] == 0


def test_zeroed_blocks_are_never_silent(cache, capsys):
    tally, num_trials = Tally(cache), 0
    for name in cache.content:
        data = cache.content[name]
        for start in range(0, len(data), 4096 if not IS_FULL else 512):
            block = data[start : start + 4096]
            tally.try_out(name, data[:start] + bytes(len(block)) + data[start + 4096 :], f"{name}, block at {start}")
            num_trials += 1
    tally.check(num_trials, capsys)
    assert tally.counts["right"] == 0


@pytest.mark.parametrize("table", [0, 1], ids=["pairs", "signals"])
def test_shards_that_changed_places_are_refused(cache, table):
    """Their bytes are good, and they are the bytes of other samples; records may have moved with them."""
    one, other = SHARDS[2 * table : 2 * table + 2]
    swap = {one: cache.content[other], other: cache.content[one]}
    records = {name.replace(".parquet", ".json"): cache.content[name.replace(".parquet", ".json")] for name in swap}
    others = dict(zip(records, reversed(records.values()), strict=True))
    for swapped in (cache.changed(**swap), cache.changed(**swap, **others)):
        for name in swap:
            with pytest.raises(ShardCorruptError):
                swapped.read_group(name, 0, 0, found=cache.records, manifest=cache.manifest)
    with pytest.raises(ShardCorruptError, match="found the record of"):
        CacheFolder(ROOT, cache.changed(**others)).is_committed(("pairs", "plain")[table], 0)


def test_row_groups_that_changed_places_are_refused(cache):
    """Inside a file as between files: each group has its own hash, in its own place."""
    name = SHARDS[2]
    (start, size, _), (_, other_size, _) = row_group_ranges(cache, name)[:2]
    data = cache.content[name]
    one, other = data[start : start + size], data[start + size : start + size + other_size]
    swapped = cache.changed(**{name: data[:start] + other + one + data[start + size + other_size :]})
    with pytest.raises(ShardCorruptError, match="row group 0"):
        swapped.read_group(name, 0, 0, found=cache.records, manifest=cache.manifest)


def test_a_pristine_cache_is_read_right(cache):
    """The trials can tell: the same reads of undamaged bytes are right, and a changed record is noticed."""
    assert all(read_what_was_hit(cache, cache, name) for name in cache.content)
    records = cache.records[SHARDS[0], 0, 0]
    assert not alike(records, [*records[1:], records[0]])
    assert isinstance(cache, MemoryCache)
    assert not issubclass(CacheMismatchError, ShardCorruptError)
