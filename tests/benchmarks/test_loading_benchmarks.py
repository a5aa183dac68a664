"""Benchmarks of what ranks read and compute, on caches of a few samples: they use the loader as training does."""

import numpy as np
import pytest

from benchmarks import packing, traffic
from benchmarks.options import Options
from tide_cache.config.sections import BatchConfig, ViewsConfig
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.groups import Groups
from tide_cache.loading.order import LaneOrder
from tide_cache.loading.source import PlainSource
from tide_cache.records import SampleId, SamplePair


def test_each_rank_reads_and_decodes_only_what_it_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(traffic, "WORLDS", (1, 2))
    monkeypatch.setattr(traffic, "LENGTH", 48)
    figures = traffic.run(Options(rows=32))
    assert {name: figures[f"decoded_by_own_measured_{name}"] for name in ("w1", "w2")} == {"w1": 1.0, "w2": 1.0}
    assert all(figures[f"store_bytes_by_cache_w{world}"] > 0.9 for world in (1, 2))


def test_the_busiest_rank_computes_its_padding_too():
    """One rank of equal samples computes nothing in vain; of two ranks one may get the long ones."""
    views = ViewsConfig(1, seed=0, time_sampling="stratified", schedule="linear", complementary=False)
    order = LaneOrder(Groups.of_sizes([8]), "packing", 0, 4)
    layout, config = BatchLayout(0, 0, packing.BLOCK_SIZE), BatchConfig(8, 2)
    for lengths, worlds in (([64] * 8, {1: 1.0, 2: 1.0}), ([64, 32] * 4, {1: 1.0})):
        source = PlainSource([pair_of(str(k), length) for k, length in enumerate(lengths)], views)
        for world, expected in worlds.items():
            assert packing.busiest(source, order, layout, config, world) == expected
    assert packing.busiest(source, order, layout, config, 2) >= 1.0


def pair_of(name: str, length: int) -> SamplePair:
    ids, nothing = np.arange(length, dtype=np.int32), np.zeros((0, 4), np.int32)
    return SamplePair(SampleId(name), ids, np.ones(length, bool), ids, nothing)
