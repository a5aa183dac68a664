"""Figures of a cache agree with each other."""

import json
from dataclasses import asdict

import pytest

from tide_cache.errors import CacheIncompleteError
from tide_cache.manifest import Manifest
from tide_cache.reporting import sampling
from tide_cache.reporting.inspection import inspect


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
