"""Figures of a cache agree with each other."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheIncompleteError, CacheMismatchError
from tide_cache.inspecting import sampling
from tide_cache.inspecting.inspection import inspect
from tide_cache.manifest import Manifest


def test_figures_by_time_add_up_to_the_manifests_totals(built):
    """The cache is small enough that every view is read."""
    found = inspect(built.cache)
    by_time = found.sampled.by_time
    assert found.sampled.num_views == found.num_views == 20 * 3
    assert sum(entry.num_positions for entry in by_time) == found.masked_teacher_positions
    correct = sum(entry.num_positions * (entry.top1_accuracy or 0) for entry in by_time)
    assert correct / found.masked_teacher_positions == pytest.approx(found.top1_accuracy)
    assert found.kept_ids_per_row == 8, "a random teacher never reaches top_p with 8 ids"
    assert 0 < found.sampled.kept_mass_p5 <= found.sampled.kept_mass < 1


def test_bytes_by_column_are_a_part_of_all_bytes(built):
    found = inspect(built.cache)
    of_columns = sum(sum(columns.values()) for columns in found.column_bytes.values())
    files = sum(path.stat().st_size for path in built.cache.rglob("*.parquet"))
    assert 0 < of_columns < found.cache_bytes == files
    assert found.bytes_per_position == pytest.approx(files / found.masked_student_positions)


def test_it_is_ready_for_json(built):
    found = inspect(built.cache)
    document = json.loads(json.dumps(asdict(found), default=str))
    assert document["cache_id"] == Manifest.load(built.cache).identity.cache_id
    assert document["plan"]["num_shards"] == 3


def test_large_caches_are_read_in_part(built, monkeypatch):
    monkeypatch.setattr(sampling, "GROUPS_READ", 3)
    found = inspect(built.cache)
    assert found.sampled.num_views < found.num_views
    assert found.sampled.num_views == 8 + 8 + 4, "first, middle and last row group"


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(CacheIncompleteError, match="no cache here"):
        inspect(tmp_path)


def test_a_cache_whose_records_count_nothing_is_refused():
    with pytest.raises(CacheMismatchError, match="its commit records do not say covered_tokens, supervised_tokens"):
        inspect(Path(__file__).parents[1] / "golden" / "cache-v1")


def test_chunk_lengths_and_coverage_are_those_of_the_manifest(built):
    """All samples are read, and with one tokenizer on both sides every chunk is of one token."""
    found = inspect(built.cache)
    shapes = found.chunk_shapes
    assert shapes.num_samples == found.num_samples
    assert shapes.one_to_one_tokens == found.pairing["covered_tokens"] == shapes.student_lengths[0]
    assert (
        shapes.one_to_one_tokens + shapes.longer_tokens + shapes.uncovered_tokens == found.pairing["supervised_tokens"]
    )
    assert shapes.longer_tokens == sum(shapes.student_lengths[1:]) == 0


def test_both_passes_are_described_and_chunks_of_several_tokens_counted(tmp_path, build_values):
    values = build_values(
        tmp_path / "cache", "cross", build__passes=("plain", "compdemo"), signals__kinds=("truth", "chunks")
    )
    build_cache(BuildRun.model_validate(values))
    progress = []
    found = inspect(tmp_path / "cache", lambda done, total: progress.append((done, total)))
    assert list(found.by_pass) == ["plain", "compdemo"]
    assert progress == [(done, 3 * 4) for done in range(1, 13)]
    for signals in found.by_pass.values():
        assert sum(entry.num_positions for entry in signals.by_time) == found.masked_teacher_positions
        assert all(entry.confidence is None and entry.kept_mass is None for entry in signals.by_time)
        assert all(0 < entry.candidate_mass < 1 for entry in signals.by_time if entry.num_positions)
    shapes = found.chunk_shapes
    assert sum(shapes.student_lengths[1:]) > 0
    assert shapes.one_to_one_tokens + shapes.longer_tokens == found.pairing["covered_tokens"]


def test_accuracy_where_ids_are_kept_is_all_accuracy_when_all_tokens_are_shared(built):
    for entry in inspect(built.cache).sampled.by_time:
        assert entry.kept_accuracy == pytest.approx(entry.top1_accuracy)
        if entry.num_positions:
            assert 0 < entry.truth_probability < 1
            assert 0 < entry.confidence <= entry.kept_mass
