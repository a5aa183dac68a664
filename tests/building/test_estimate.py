"""The estimate before a build, compared with the build."""

import shutil
from collections import namedtuple

import pytest

from tide_cache.building import estimate
from tide_cache.building.driver import build_shards
from tide_cache.building.estimate import estimate_build, free_bytes, require_disk, spread_rows
from tide_cache.building.prepare import prepare_build
from tide_cache.errors import TideCacheError
from tide_cache.locations import RemotePath
from tide_cache.manifest import Manifest
from tide_cache.wording import size


def test_a_corpus_within_the_sample_is_counted_exactly(built):
    guess = estimate_build(prepare_build(built.run))
    totals = Manifest.load(built.cache).totals
    assert guess.num_shards == 3
    assert guess.num_rows == guess.rows_sampled == 20
    assert guess.masked_positions == totals["plain"]["masked_student_positions"]
    assert guess.coverage == totals["pairs"]["covered_tokens"] / totals["pairs"]["supervised_tokens"]


def test_columns_take_at_most_the_guessed_bytes_and_at_least_a_third(built):
    guess = estimate_build(prepare_build(built.run))
    totals = Manifest.load(built.cache).totals
    columns = sum(n for table in totals.values() for name, n in table.items() if name.startswith("column_bytes."))
    assert guess.cache_bytes / 3 < columns < guess.cache_bytes


def test_a_larger_corpus_is_scaled_from_rows_spread_over_it(built, monkeypatch):
    build = prepare_build(built.run)
    whole = estimate_build(build)
    monkeypatch.setattr(estimate, "ROWS_SAMPLED", 10)
    part = estimate_build(build)
    assert part.rows_sampled == 10
    assert part.num_rows == 20
    assert 0.5 < part.masked_positions / whole.masked_positions < 2


def test_sampled_rows_reach_from_the_first_to_the_last(built):
    corpus = prepare_build(built.run).corpus
    assert [row.sample_id for row in spread_rows(corpus, 3)] == [corpus[index].sample_id for index in (0, 10, 19)]
    assert len(spread_rows(corpus, 100)) == 20


def test_a_build_that_the_disk_may_not_hold_is_refused_before_anything_is_written(built, tmp_path, monkeypatch):
    build = prepare_build(built.run)
    needed = estimate_build(build).cache_bytes
    usage = namedtuple("usage", "total free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed, needed - 1))
    run = built.run.model_copy(update={"build": built.run.build.model_copy(update={"out": tmp_path / "new" / "cache"})})
    message = f"found {size(needed - 1)} free, and 3 shards are still .*, at most about {size(needed)}"
    with pytest.raises(TideCacheError, match=message) as caught:
        build_shards(run, build, range(3))
    assert "--no-disk-check" in str(caught.value)
    assert not (tmp_path / "new").exists()
    require_disk(build, tmp_path, 2)
    assert build_shards(run, build, range(3), check_disk=False).num_shards == 3
    assert build_shards(built.run, build, range(3)).shards_reused == 3, "what is there needs no space"


def test_an_object_store_has_no_end():
    assert free_bytes(RemotePath("s3://bucket/cache")) is None
