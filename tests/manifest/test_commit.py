"""A commit record notices a change of any of its fields, its free counts included; one without a checksum is read."""

import json

import pytest

from tide_cache.errors import CacheMismatchError, ShardCorruptError
from tide_cache.manifest import CacheFolder, CommitRecord, Manifest, record_path, verify


def test_every_bit_of_a_record_that_flips_before_the_manifest_is_written_is_noticed(builder):
    """Free counts go into the manifest, and nothing that is read depends on them: only the checksum sees them."""
    folder = builder.build(range(3))
    path = record_path(builder.root, "plain", 1)
    good = path.read_bytes()
    committed = folder._record("plain", 1)
    for position in range(len(good)):
        for bit in range(8):
            data = bytearray(good)
            data[position] ^= 1 << bit
            path.write_bytes(data)
            try:
                found = CacheFolder(builder.root)._record("plain", 1)
            except (ShardCorruptError, CacheMismatchError):
                continue
            assert found == committed, f"bit {bit} of byte {position}: {bytes(data[position - 9 : position + 9])!r}"
    path.write_bytes(good)
    assert folder.finish(["plain"]).passes == ("plain",)


def test_a_changed_count_stops_the_build_before_its_manifest(builder):
    folder = builder.build(range(3))
    path = record_path(builder.root, "plain", 1)
    record = json.loads(path.read_bytes())
    record["statistics"]["samples"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(ShardCorruptError, match=r"shard-000001\.json.*checksum [0-9a-f]{16}, it says [0-9a-f]{16}"):
        folder.finish(["plain"])
    assert not (builder.root / "manifest.json").exists()


def test_a_cache_from_before_the_checksum_is_read_and_stays_as_it_is(builder):
    builder.build(range(3))
    for path in builder.root.rglob("shard-*.json"):
        record = json.loads(path.read_bytes())
        del record["checksum"]
        path.write_text(json.dumps(record))
    manifest = CacheFolder(builder.root).finish(["plain"])
    assert {record.checksum for records in manifest.shards.values() for record in records} == {None}
    assert "checksum" not in (builder.root / "manifest.json").read_text()
    assert Manifest.load(builder.root) == manifest
    assert verify(builder.root, deep=True).ok


def test_sealing_twice_changes_nothing(builder):
    folder = builder.build(range(1))
    record = folder._record("pairs", 0)
    assert record.checksum is not None
    assert record.sealed() == record
    assert CommitRecord.model_validate_json(record.model_dump_json(), strict=True) == record
