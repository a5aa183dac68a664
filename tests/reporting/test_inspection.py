"""Figures of a cache agree with each other, and a view can be read back from its description."""

import json
from dataclasses import asdict

import pytest

from tide_cache.errors import CacheIncompleteError, CacheMismatchError, RunFileError
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.reporting import inspection
from tide_cache.reporting.inspection import describe_view, inspect


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
    monkeypatch.setattr(inspection, "GROUPS_READ", 3)
    found = inspect(built.cache)
    assert found.sampled.num_views < found.num_views
    assert found.sampled.num_views == 8 + 8 + 4, "first, middle and last row group"


def test_a_view_as_text_is_the_clean_text_with_brackets(built):
    tokenizer = TextTokenizer.load(str(built.tokenizer))
    manifest = Manifest.load(built.cache)
    pairs = manifest.reader(built.cache, "pairs", 1).read_pairs(0)
    shown = describe_view(built.cache, 9 * 3 + 2, str(built.tokenizer))
    assert (shown.sample_id, shown.view) == (pairs[1].sample_id, 2)
    assert shown.text.replace("⟦", "").replace("⟧", "") == tokenizer.decode(pairs[1].student_ids_L)
    in_brackets = "".join(part.split("⟧")[0] for part in shown.text.split("⟦")[1:])
    assert in_brackets == "".join(chunk.text for chunk in shown.chunks), "here every masked token is a chunk"
    assert shown.num_masked == sum(chunk.student_end - chunk.student_start for chunk in shown.chunks)
    assert all(chunk.teacher_logprob < 0 for chunk in shown.chunks)


def test_a_view_without_a_tokenizer_shows_ids(built):
    manifest = Manifest.load(built.cache)
    pair = manifest.reader(built.cache, "pairs", 0).read_pairs(0)[0]
    shown = describe_view(built.cache, 0)
    assert shown.text.replace("⟦", "").replace("⟧", "").split() == [str(i) for i in pair.student_ids_L]


def test_a_view_that_is_not_there_is_refused(built):
    with pytest.raises(RunFileError, match="found no view 60; expected 0 to 59"):
        describe_view(built.cache, 60)


def test_another_tokenizer_is_refused(built):
    with pytest.raises(CacheMismatchError, match="found a tokenizer with hash"):
        describe_view(built.cache, 0, str(built.other_tokenizer))


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(CacheIncompleteError, match="no cache here"):
        inspect(tmp_path)
