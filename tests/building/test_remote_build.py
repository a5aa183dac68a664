"""A cache in an object store: built, resumed, verified and trained from, with the bytes of one in a folder."""

import json

import fsspec
import pytest

from tide_cache.building.driver import build_cache
from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import CacheMismatchError, RunFileError
from tide_cache.inspecting.inspection import inspect
from tide_cache.locations import RemotePath
from tide_cache.manifest import verify
from tide_cache.training.run import train

URL = "memory://bucket/cache"


@pytest.fixture(scope="module")
def store():
    store = fsspec.filesystem("memory").store
    store.clear()
    yield store
    store.clear()


@pytest.fixture(scope="module")
def remote(store, build_values):
    run = BuildRun.model_validate(build_values(URL))
    summary = build_cache(run)
    assert summary.cache == RemotePath(URL)
    return run


def objects(store):
    return {name.removeprefix("/bucket/cache/"): file.getvalue() for name, file in store.items()}


def test_the_objects_are_the_files_of_a_local_build(remote, store, build_values, tmp_path):
    build_cache(BuildRun.model_validate(build_values(f"file://{tmp_path}/cache")))
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert objects(store) == {path.relative_to(tmp_path / "cache").as_posix(): path.read_bytes() for path in files}
    assert verify(remote.build.out, deep=True).ok
    assert inspect(remote.build.out).num_samples == 40


def test_a_build_in_a_store_is_resumed_or_refused(remote, store, build_values):
    before = objects(store)
    for name in ("manifest.json", "pairs/shard-000001.json", "signals/plain/shard-000001.json"):
        del store[f"/bucket/cache/{name}"]
    assert build_cache(remote).shards_reused == 2
    assert objects(store) == before
    with pytest.raises(CacheMismatchError, match=r"memory://bucket/cache/plan\.json was built from other inputs:\n"):
        build_cache(BuildRun.model_validate(build_values(URL, views__seed=5)))


def test_training_reads_from_a_store(remote, vocabularies, tmp_path):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1}
    sizes = {"out": str(tmp_path / "run"), "steps": 3, "global_batch": 8, "precision": "float32", "device": "cpu"}
    student = {"shape": shape, "tokenizer": {"path": str(vocabularies.second)}}
    train(
        TrainRun.model_validate(
            {
                "student": student,
                "data": {"cache": URL},
                "objective": [{"kind": "kl"}],
                "train": {**sizes, "log_every": 1},
            }
        )
    )
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_urls_survive_a_run_file_and_other_folders_take_none(tmp_path, build_values):
    (tmp_path / "build.toml").write_text('[build]\nout = "s3://bucket/cache/"\n')
    values = {
        f"{section}.{key}": value
        for section in ("corpus", "teacher")
        for key, value in build_values("x")[section].items()
    }
    path = build_values("x")["student"]["tokenizer"]["path"]
    run = load_run_file(BuildRun, tmp_path / "build.toml", {**values, "student.tokenizer.path": path})
    assert run.build.out == RemotePath("s3://bucket/cache")
    assert json.loads(run.model_dump_json())["build"]["out"] == "s3://bucket/cache"
    assert BuildRun.model_validate_json(run.model_dump_json()) == run
    with pytest.raises(RunFileError, match="out: found the URL s3://b/run; only a cache may lie in an object store"):
        load_run_file(TrainRun, None, {"train.out": "s3://b/run"})
