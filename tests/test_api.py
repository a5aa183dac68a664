"""The stable names, and the cache as Python programs see it."""

import ast
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tide_cache
from tide_cache.building.repair import find_damage
from tide_cache.inspecting.export import export_view
from tide_cache.inspecting.inspection import inspect
from tide_cache.manifest import CacheFolder, Manifest, verify

HEAVY = {"torch", "transformers", "deepspeed", "datasets", "pyarrow", "numpy", "pydantic"}
OBJECTIVES = [tide_cache.CrossEntropy(), tide_cache.Calm()]


@pytest.fixture(scope="module")
def cache(tiny_cache):
    return tide_cache.open_cache(tiny_cache)


def test_importing_the_package_loads_no_heavy_library():
    code = f"import sys, tide_cache\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_stable_name_is_there_and_comes_from_where_type_checkers_see_it():
    """A name that is only under TYPE_CHECKING, or only in `__all__`, would break one of the two."""
    tree = ast.parse(Path(tide_cache.__file__).read_text())
    typed = {n.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for n in node.names}
    typed = {name: module for name, module in typed.items() if module.startswith("tide_cache.")}
    assert typed.pop("__version__") == "tide_cache.version"
    assert typed == tide_cache._MODULE_OF
    assert {*typed, "__version__"} == set(tide_cache.__all__)
    for name in tide_cache.__all__:
        assert getattr(tide_cache, name) is not None
    assert set(tide_cache.__all__) <= set(dir(tide_cache))
    with pytest.raises(AttributeError, match="has no attribute 'open_cahce'"):
        _ = tide_cache.open_cahce


def test_records_are_numbered_by_sample_and_then_by_view(cache):
    assert len(cache) == cache.num_samples * cache.num_views == len(list(cache))
    assert [record.view.view for record in cache][: cache.num_views + 1] == [*range(cache.num_views), 0]
    for number, record in enumerate(cache):
        again = cache[number]
        assert (again.pair.sample_id, again.view.view) == (record.pair.sample_id, number % cache.num_views)
        np.testing.assert_array_equal(again.signal.truth_logprobs_N, record.signal.truth_logprobs_N)
    assert cache[-1].pair.sample_id == cache.view(cache.num_samples - 1, 0).pair.sample_id


def test_records_that_are_not_there_are_refused(cache):
    with pytest.raises(IndexError, match=f"found no view {len(cache)}; expected {-len(cache)} to {len(cache) - 1}"):
        cache[len(cache)]
    with pytest.raises(IndexError, match="found no view 4 of sample 0; expected views 0 to 3 of samples"):
        cache.view(0, 4)


def test_identity_and_statistics_are_the_manifests(cache, tiny_cache):
    manifest = Manifest.load(tiny_cache)
    assert cache.cache_id == manifest.identity.cache_id
    assert cache.identity == manifest.identity
    assert cache.statistics == manifest.totals
    assert cache.block_size == 8
    assert cache.cache_id in repr(cache)


def test_a_pickled_cache_reads_anew(cache):
    cache.view(0, 0)
    again = pickle.loads(pickle.dumps(cache))
    assert again.view(1, 2).pair.sample_id == cache.view(1, 2).pair.sample_id


def test_what_is_no_cache_or_no_pass_is_refused(tmp_path, tiny_cache):
    with pytest.raises(tide_cache.CacheIncompleteError, match="no cache here"):
        tide_cache.open_cache(tmp_path)
    with pytest.raises(tide_cache.RunFileError, match="found no pass 'compdemo'; expected one of plain"):
        tide_cache.open_cache(tiny_cache, signal_pass="compdemo")


def test_a_damaged_shard_is_refused_when_it_is_read(tmp_path, tiny_cache):
    shutil.copytree(tiny_cache, tmp_path / "cache")
    path = tmp_path / "cache" / "signals" / "plain" / "shard-000000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(tide_cache.ShardCorruptError):
        list(tide_cache.open_cache(tmp_path / "cache"))


def test_a_view_as_a_dataset_is_what_export_writes(cache, tiny_cache, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    export_view(tiny_cache, tmp_path / "view.parquet", 1)
    dataset = cache.to_datasets(1)
    written = pq.read_table(tmp_path / "view.parquet")
    assert dataset.column_names == written.column_names
    assert json.dumps(list(dataset)) == json.dumps(written.to_pylist())


def test_paths_are_the_tables_files(cache):
    assert [pq.read_metadata(path).num_row_groups > 0 for path in cache.paths("plain")] == [True] * 3
    with pytest.raises(tide_cache.RunFileError, match="found no table 'signals'; expected one of pairs, plain"):
        cache.paths("signals")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 6}, r"global_batch: found 6, expected a multiple of micro_batch x world = 4 x 1"),
        ({"world": 3, "global_batch": 12}, r"world: found 3, expected a divisor of lanes = 64, .*lanes = 66"),
        ({"world": 2, "rank": 2}, r"rank: found 2, expected 0 to 1"),
        ({"views_per_step": 5}, r"views_per_step: found 5, expected 1 to 4"),
    ],
)
def test_batches_that_cannot_be_cut_are_refused(cache, tiny_teacher, changes, message):
    options = {"steps": 1, "global_batch": 8, "micro_batch": 4} | changes
    with pytest.raises(tide_cache.RunFileError, match=message):
        cache.torch_dataset(tiny_teacher, OBJECTIVES, **options)


def test_another_tokenizer_or_a_missing_signal_is_refused(cache, tiny_teacher, vocabularies):
    sizes = {"steps": 1, "global_batch": 8, "micro_batch": 4}
    with pytest.raises(tide_cache.CacheMismatchError, match="student tokenizer, tokenizer: cache has"):
        cache.torch_dataset(vocabularies.first, OBJECTIVES, **sizes)
    with pytest.raises(tide_cache.CacheMismatchError, match=r"signals.tail_samples: cache has 0"):
        cache.torch_dataset(tiny_teacher, [tide_cache.ForwardKL(temperature=1.0, tail="sampled")], **sizes)


def test_a_preset_gives_its_objectives():
    cross_entropy, reverse = tide_cache.preset_objectives("cross/tide-cross", "paper")
    assert cross_entropy == tide_cache.CrossEntropy(time_weight="scheduler")
    assert reverse == tide_cache.ReverseCalm(temperature=5.0, clamp_student=True)
    with pytest.raises(tide_cache.RunFileError, match="did you mean 'cross/tide-cross'"):
        tide_cache.preset_objectives("cross/tide-crss")


def test_a_manifest_in_parts_is_the_same_to_every_reader(tiny_cache, tiny_teacher, cache, tmp_path, monkeypatch):
    root = tmp_path / "cache"
    shutil.copytree(tiny_cache, root)
    (root / "manifest.json").unlink()
    monkeypatch.setattr("tide_cache.manifest.finishing.MOST_SHARDS_IN_ONE_FILE", 1)
    CacheFolder(root).finish(cache.manifest.passes)
    assert json.loads((root / "manifest.json").read_bytes())["format_version"] == 4
    parted = tide_cache.open_cache(root)
    assert (len(parted), parted.statistics) == (len(cache), cache.statistics)
    np.testing.assert_array_equal(parted[-1].signal.truth_logprobs_N, cache[-1].signal.truth_logprobs_N)
    assert verify(root, deep=True).ok
    assert find_damage(root).is_repaired
    one, other = (asdict(inspect(folder)) for folder in (tiny_cache, root))
    assert {**one, "cache": root} == other
    found, expected = (
        next(iter(one.torch_dataset(tiny_teacher, OBJECTIVES, steps=1, global_batch=8, micro_batch=4)))[0]
        for one in (parted, cache)
    )
    np.testing.assert_array_equal(found.x_t_BL, expected.x_t_BL)
