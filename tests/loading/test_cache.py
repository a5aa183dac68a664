"""A cache is read from the pass that is asked for, by default from its first."""

from collections import Counter

import pytest

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.order import LaneOrder
from tide_cache.manifest import Manifest
from tide_cache.shards import ShardReader


@pytest.fixture(scope="module")
def cache(tmp_path_factory, build_values):
    folder = tmp_path_factory.mktemp("loading") / "cache"
    build_cache(BuildRun.model_validate(build_values(folder, build__passes=("plain", "compdemo"))))
    return folder, Manifest.load(folder)


def test_the_pass_decides_what_the_teacher_says_and_nothing_else(cache):
    sources = {name: CacheSource(*cache, signal_pass=name) for name in ("plain", "compdemo", None)}
    assert len({source.groups.sizes() for source in sources.values()}) == 1
    plain, compdemo, default = (source.records([3, 0, 39], epoch=5) for source in sources.values())
    for one, other, by_default in zip(plain, compdemo, default, strict=True):
        assert one.pair.sample_id == other.pair.sample_id
        assert one.view.is_student_masked_L.tolist() == other.view.is_student_masked_L.tolist()
        assert (one.signal.is_shown_first_N is None, other.signal.is_shown_first_N is None) == (True, False)
        assert by_default.signal.truth_logprobs_N.tolist() == one.signal.truth_logprobs_N.tolist()
    said, demonstrated = (sum(r.signal.truth_logprobs_N.sum() for r in records) for records in (plain, compdemo))
    assert said != demonstrated


def test_only_the_signals_that_are_asked_for_are_decoded(cache):
    every, truth = CacheSource(*cache), CacheSource(*cache, signals=())
    for whole, part in zip(every.records([3, 0, 39], 1), truth.records([3, 0, 39], 1), strict=True):
        assert part.signal.truth_logprobs_N.tolist() == whole.signal.truth_logprobs_N.tolist()
        assert (whole.signal.topk is None, part.signal.topk is None) == (False, True)


def test_footers_are_read_once_however_often_the_order_comes_back_to_a_shard(cache, monkeypatch):
    footers, groups = Counter(), Counter()
    read_footer, read = ShardReader._read_footer, ShardReader._read
    monkeypatch.setattr(ShardReader, "_read_footer", lambda self: footers.update([self.path]) or read_footer(self))
    monkeypatch.setattr(ShardReader, "_read", lambda self, *what: groups.update([self.path]) or read(self, *what))
    folder, manifest = cache
    source = CacheSource(folder, manifest, held_groups=1)
    order = LaneOrder(source.groups, "key", 0, lanes=2)
    for turn in range(2 * order.num_samples):
        (visit,) = order.visits([turn])
        source.ready([visit.sample], visit.epoch, BatchLayout(98, 99, 8, temperatures=(1.0,)))
    assert len(footers) == 2 * manifest.plan.num_shards > 2, "those of the samples and those of the pass"
    assert set(footers.values()) == {1}
    assert max(groups.values()) > 2
