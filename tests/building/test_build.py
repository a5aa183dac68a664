"""A build is a pure function of its run file: resumed, repeated or cut differently in time, the bytes are the same."""

import hashlib
import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tide_cache.building.driver import build_cache
from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.config.sections import BuildViewsConfig
from tide_cache.errors import CacheIncompleteError, CacheMismatchError, PairingError, RunFileError
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest, verify
from tide_cache.views import draw_view


def tree(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, build_values):
    folder = tmp_path_factory.mktemp("undisturbed") / "cache"
    summary = build_cache(BuildRun.model_validate(build_values(folder)))
    return folder, summary


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", [2, 6, 9])
def test_a_killed_build_resumes_byte_identical(tmp_path, build_values, undisturbed, calls):
    run = BuildRun.model_validate(build_values(tmp_path / "cache"))
    seen = []

    def kill_at_call(progress):
        seen.append(progress)
        if len(seen) == calls:
            raise Killed

    with pytest.raises(Killed):
        build_cache(run, kill_at_call)
    assert not (tmp_path / "cache/manifest.json").exists()
    build_cache(run)
    assert tree(tmp_path / "cache") == tree(undisturbed[0])


def test_the_summary_tells_what_lies_on_disk(undisturbed):
    folder, summary = undisturbed
    assert (summary.num_samples, summary.num_views, summary.num_shards) == (40, 4, 3)
    assert summary.coverage == 1.0
    assert summary.cache_bytes == sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    assert verify(folder, deep=True).ok


def test_a_second_build_computes_nothing(undisturbed, build_values):
    folder, summary = undisturbed
    again = build_cache(BuildRun.model_validate(build_values(folder)), lambda _: pytest.fail("nothing is missing"))
    assert again.shards_reused == summary.num_shards


def test_another_build_in_the_same_folder_is_refused_with_the_field(undisturbed, build_values):
    run = BuildRun.model_validate(build_values(undisturbed[0], views__seed=5))
    with pytest.raises(CacheMismatchError, match=r"views.seed: cache has 0, run declares 5"):
        build_cache(run)


def test_every_mask_follows_from_the_manifest(undisturbed):
    manifest = Manifest.load(undisturbed[0])
    source = CacheSource(undisturbed[0], manifest)
    views = BuildViewsConfig(**dict(manifest.identity.views))
    for epoch in range(4):
        for record in source.records(range(40), epoch):
            again = draw_view(record.pair, epoch, views)
            assert again.t == record.view.t
            assert np.array_equal(again.is_student_masked_L, record.view.is_student_masked_L)
            assert np.array_equal(again.is_teacher_masked_M, record.view.is_teacher_masked_M)


@pytest.mark.parametrize(("pipeline", "context"), [("shared", "full"), ("cross", "full"), ("cross", "block")])
def test_every_context_and_pipeline_builds_and_verifies(tmp_path, build_values, pipeline, context):
    run = BuildRun.model_validate(build_values(tmp_path / "cache", pipeline, teacher__context=context))
    summary = build_cache(run)
    assert verify(tmp_path / "cache", deep=True).ok
    assert summary.masked_positions > 0
    assert (summary.coverage == 1.0) == (pipeline == "shared")


def test_the_identity_names_contents_not_places(tmp_path, build_values, corpus_file, tiny_teacher):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / corpus_file.name).write_bytes(corpus_file.read_bytes())
    here = prepare_build(BuildRun.model_validate(build_values(tmp_path / "a"))).identity
    there = prepare_build(
        BuildRun.model_validate(build_values(tmp_path / "b", corpus__spec=str(moved / corpus_file.name)))
    ).identity
    assert here.cache_id == there.cache_id
    config = json.loads((tiny_teacher / "config.json").read_text())
    assert here.teacher["model_type"] == config["model_type"] == "a2d-qwen3"


def test_all_faults_are_told_at_once_before_anything_is_loaded(tmp_path, build_values):
    values = build_values(tmp_path / "cache", teacher__max_length=50_000, signals__top_k=10_000)
    run = BuildRun.model_validate(values | {"pairing": {"shared_vocab_size": 10_000}})
    with pytest.raises(RunFileError) as caught:
        build_cache(run)
    message = str(caught.value)
    for part in ("max_length: found 50000", "top_k: found 10000", "shared_vocab_size: found 10000"):
        assert part in message
    assert not (tmp_path / "cache").exists()


def test_a_corpus_that_gives_no_sample_is_refused_with_the_reasons_and_leaves_no_manifest(tmp_path, build_values):
    run = BuildRun.model_validate(build_values(tmp_path / "cache", student__max_length=2))
    with pytest.raises(PairingError, match=r"none of 40 rows became a sample:\n  - no supervised .*: 40"):
        build_cache(run)
    assert not (tmp_path / "cache/manifest.json").exists()
    with pytest.raises(CacheIncompleteError):
        verify(tmp_path / "cache")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path, build_values):
    with pytest.raises(RunFileError, match="no CUDA device"):
        build_cache(BuildRun.model_validate(build_values(tmp_path / "cache", teacher__device="cuda")))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValidationError, match="should match pattern"):
        BuildRun.model_validate(build_values(tmp_path / "cache", teacher__device="gpu"))
