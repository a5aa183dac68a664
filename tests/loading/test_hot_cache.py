"""Decoded row groups on a local disk: the same batches, read once, and never a reason to fail."""

import errno
import json

import numpy as np
import pytest
import torch

from helpers.target_examples import leaves
from tide_cache.errors import RunFileError
from tide_cache.loading import hot_cache
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.collate import BatchLayout, batch_of
from tide_cache.loading.hot_cache import MARKER, HotCache, halved, hot_cache_faults, is_same, load, open_hot_cache, pack
from tide_cache.manifest import Manifest
from tide_cache.shards import Ragged, ShardReader

GIB = 1 << 30


LAYOUT = BatchLayout(2, 1, 8, shared_vocab_size=1 << 20, temperatures=(1.0, 2.0))


def said(source, epoch=0):
    """The batch of all samples, as bytes."""
    ready = source.ready(range(source.groups.num_samples), epoch, LAYOUT)
    batch, targets = batch_of([[(view,)] for view in ready], LAYOUT)
    arrays = {name: value for part in (batch, targets) for name, value in leaves(part).items()}
    return {name: v.numpy().tobytes() if isinstance(v, torch.Tensor) else v for name, v in arrays.items()}


@pytest.fixture
def told(monkeypatch):
    """What is told the user."""
    messages = []
    monkeypatch.setattr(hot_cache, "tell", messages.append)
    return messages


@pytest.fixture
def source(tiny_cache, tmp_path):
    manifest = Manifest.load(tiny_cache)
    return lambda hot=None, folder=tmp_path / "hot": CacheSource(
        tiny_cache, manifest, hot=hot or HotCache(folder, GIB), signals=("truth", "topk")
    )


def test_the_same_batches_come_without_the_shards(source, tiny_cache, tmp_path, monkeypatch):
    expected = said(CacheSource(tiny_cache, Manifest.load(tiny_cache), signals=("truth", "topk")))
    assert said(source()) == expected
    monkeypatch.setattr(ShardReader, "_read", lambda *_: pytest.fail("a shard was read again"))
    assert said(source()) == expected
    assert hot_cache_faults(tmp_path / "hot") == []


def test_columns_come_back_to_the_last_bit(tmp_path):
    ragged = Ragged(np.array([0, 2, 2, 3], np.int32), np.array([-0.0, -1.5, -np.inf], np.float32))
    exact = Ragged(ragged.offsets, np.array([-0.1, -0.2, 7e9], np.float32))
    columns = {"a": ragged, "b": exact, "t": np.array([0.25, 1.0, 0.5]),
               "flags": Ragged(ragged.offsets, np.array([True, False, True]))}  # fmt: skip
    path = tmp_path / "file"
    kept = halved(columns)
    path.write_bytes(b"".join(pack(kept)))
    found = load(path)
    assert is_same(found, kept)
    assert not is_same(found, kept | {"t": np.array([0.25, 1.0, 0.75])})
    assert [found[name].values.dtype for name in "ab"] == [np.float16, np.float32], "one is exact in float16"
    for name in "ab":
        assert found[name].values.astype(np.float32).tobytes() == columns[name].values.tobytes()


@pytest.mark.parametrize("damage", ["cut", "head", "empty", "longer"])
def test_a_file_that_is_not_whole_is_written_again(source, tmp_path, damage):
    expected = said(source())
    path = next((tmp_path / "hot").glob("??/*.hot"))
    data = path.read_bytes()
    changed = {
        "cut": data[:-64],
        "head": data[:60] + bytes([data[60] ^ 1]) + data[61:],
        "empty": b"",
        "longer": data * 2,
    }
    path.write_bytes(changed[damage])
    assert load(path) is None
    assert said(source()) == expected
    assert path.read_bytes() == data


def test_a_full_disk_costs_the_hot_cache_not_the_run(source, tiny_cache, tmp_path, monkeypatch, told):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hot_cache.os, "fsync", full)
    hot = HotCache(tmp_path / "hot", GIB)
    found = said(source(hot))
    assert found == said(CacheSource(tiny_cache, Manifest.load(tiny_cache), signals=("truth", "topk")))
    assert len(told) == 1
    assert "nothing more is kept there, and the run goes on without: No space left on device" in told[0]
    assert not list((tmp_path / "hot").glob("??/*")), "nothing half-written stays"


def test_it_grows_to_its_size_and_what_no_run_uses_makes_room(source, tmp_path, told):
    expected = said(source())
    most = sum(path.stat().st_size for path in (tmp_path / "hot").glob("??/*.hot"))
    old = tmp_path / "other" / "00" / "old.hot"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(most))
    hot_cache.os.utime(old, (0, 0))
    hot = HotCache(tmp_path / "other", most)
    assert said(source(hot)) == expected
    assert not old.exists()
    assert not told
    assert said(source(hot), epoch=1) != expected, "another view, for which there is no room"
    assert sum(path.stat().st_size for path in (tmp_path / "other").glob("??/*.hot")) == most
    assert len(told) == 1
    assert "full at 0 GiB (data.hot_cache_gib); what is in it is used" in told[0]
    assert said(source(hot)) == expected


def test_another_version_and_other_folders_are_refused(tmp_path):
    folder = tmp_path / "hot"
    assert hot_cache_faults(folder) == []
    folder.mkdir()
    (folder / MARKER).write_text(json.dumps({"version": 1}))
    with pytest.raises(RunFileError, match="has version 1, this release reads version 2; remove the folder"):
        open_hot_cache(folder, 1.0)
    (folder / MARKER).write_text("{")
    assert "cannot be read" in hot_cache_faults(folder)[0]
    (folder / MARKER).rename(folder / "thesis.tex")
    assert "holds other files; give an empty folder" in hot_cache_faults(folder)[0]
    assert "is a file" in hot_cache_faults(folder / "thesis.tex")[0]
