"""The guess before a build, held against the build."""

from tide_cache.building.prepare import prepare_build
from tide_cache.manifest import Manifest
from tide_cache.reporting import estimate
from tide_cache.reporting.estimate import estimate_build


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


def test_a_larger_corpus_is_scaled_from_its_first_rows(built, monkeypatch):
    build = prepare_build(built.run)
    whole = estimate_build(build)
    monkeypatch.setattr(estimate, "ROWS_SAMPLED", 10)
    part = estimate_build(build)
    assert part.rows_sampled == 10
    assert part.num_rows == 20
    assert 0.5 < part.masked_positions / whole.masked_positions < 2
