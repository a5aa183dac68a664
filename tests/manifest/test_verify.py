"""A good cache is accepted; any flipped byte is named by shard; all problems come at once."""

import json

import numpy as np
import pytest

from helpers.shard_examples import encode_both
from tide_cache.errors import CacheIncompleteError
from tide_cache.manifest import CommitRecord, verify


def test_a_good_cache_is_accepted(cache):
    for deep in (False, True):
        seen = []
        report = verify(cache, deep=deep, progress=lambda done, total: seen.append((done, total)))  # noqa: B023
        assert report.ok
        assert report.problems == ()
        assert report.shards == 6
        assert report.bytes == sum(path.stat().st_size for path in cache.rglob("*.parquet"))
        assert len(seen) == 6
        assert seen[-1] == (report.bytes, report.bytes)
        assert json.loads(report.model_dump_json())["ok"] is True


@pytest.mark.parametrize("deep", [False, True])
def test_any_flipped_byte_is_named_by_shard(cache, flip, deep):
    rng = np.random.default_rng(0)
    paths = sorted(cache.rglob("*.parquet"))
    for _ in range(25):
        path = paths[rng.integers(len(paths))]
        position = int(rng.integers(path.stat().st_size))
        flip(path, position)
        report = verify(cache, deep=deep)
        assert not report.ok
        assert {problem.shard for problem in report.problems} == {path.relative_to(cache).as_posix()}
        flip(path, position)
    assert verify(cache, deep=deep).ok


def test_all_problems_come_at_once(cache, flip):
    flip(cache / "pairs/shard-000000.parquet", 30)
    flip(cache / "signals/plain/shard-000001.parquet", -20)
    (cache / "signals/plain/shard-000002.parquet").unlink()
    (cache / "pairs/shard-000001.json").unlink()
    (cache / "pairs/shard-000002.json").write_text("{")
    record = json.loads((cache / "signals/plain/shard-000000.json").read_bytes())
    record["statistics"]["samples"] = 99
    del record["checksum"]
    (cache / "signals/plain/shard-000000.json").write_text(json.dumps(record))
    (cache / "plan.json").unlink()
    report = verify(cache, deep=True)
    text = {problem.shard: "" for problem in report.problems}
    for problem in report.problems:
        text[problem.shard] += problem.problem
    shards = [f"{folder}/shard-00000{i}.parquet" for folder in ("pairs", "signals/plain") for i in range(3)]
    assert sorted(text) == sorted(["plan.json", *shards])
    assert "no cache here" in text["plan.json"]
    assert "row group 0 (samples 0 to 3 of the shard)" in text["pairs/shard-000000.parquet"]
    assert "shard-000001.json is missing" in text["pairs/shard-000001.parquet"]
    assert "not a document of a cache" in text["pairs/shard-000002.parquet"]
    assert "shard-000000.json differs from its entry" in text["signals/plain/shard-000000.parquet"]
    assert "the footer is not the committed one" in text["signals/plain/shard-000001.parquet"]
    assert "No such file" in text["signals/plain/shard-000002.parquet"]


def test_deep_finds_what_hashes_cannot(builder):
    """A shard that was written wrong has good hashes; only its values give it away."""
    folder = builder.build([0, 2])
    rules = folder.plan_document.identity.shard_rules
    pairs, _ = builder.shards(1)
    _, strangers = encode_both(99, 4, rules, folder.header("pairs", 1))
    folder.commit(pairs, {})
    folder.commit(strangers, {})
    folder.finish(["plain"])
    assert verify(builder.root).ok
    report = verify(builder.root, deep=True)
    assert {problem.shard for problem in report.problems} == {"signals/plain/shard-000001.parquet"}
    assert len(report.problems) == 2
    assert "row group 0 (view 0" in report.problems[0].problem
    assert "row group 1 (view 1" in report.problems[1].problem


def test_another_plan_beside_the_manifest_is_a_problem(cache):
    document = json.loads((cache / "plan.json").read_bytes())
    document["plan"]["head_rows"] = 5
    (cache / "plan.json").write_text(json.dumps(document))
    (problem,) = verify(cache).problems
    assert (problem.shard, problem.problem) == ("plan.json", "plan.head_rows: found 5, the manifest says 1024")


def test_a_damaged_manifest_is_a_problem_not_a_crash(cache):
    (cache / "manifest.json").write_text('{"format_version": 1}')
    report = verify(cache)
    assert not report.ok
    assert [problem.shard for problem in report.problems] == ["manifest.json"]


def test_an_unfinished_cache_is_refused(builder):
    builder.build(range(1))
    with pytest.raises(CacheIncompleteError, match="pairs 1 of 3"):
        verify(builder.root)


def test_a_record_is_strict():
    with pytest.raises(ValueError, match="String should match pattern"):
        CommitRecord.model_validate_json('{"cache_id": "../../etc"}')


@pytest.mark.usefixtures("forking")
def test_processes_find_what_one_process_finds(cache, flip, monkeypatch):
    monkeypatch.setattr("tide_cache.manifest.checkers.LEAST_BYTES_TO_SHARE", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    flip(cache / "pairs/shard-000000.parquet", 30)
    flip(cache / "signals/plain/shard-000001.parquet", -20)
    (cache / "pairs/shard-000001.json").unlink()
    found = verify(cache, deep=True)
    monkeypatch.setattr("tide_cache.manifest.checkers.LEAST_BYTES_TO_SHARE", 1 << 40)
    assert found == verify(cache, deep=True)
    assert len(found.problems) == 4


@pytest.mark.usefixtures("forking")
def test_a_process_that_dies_takes_no_shard_with_it(cache, flip, monkeypatch):
    monkeypatch.setattr("tide_cache.manifest.checkers.LEAST_BYTES_TO_SHARE", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("tide_cache.manifest.checkers.CHECKER", "tide_cache.no_such_module")
    flip(cache / "signals/plain/shard-000001.parquet", -20)
    assert [problem.shard for problem in verify(cache, deep=True).problems] == ["signals/plain/shard-000001.parquet"]
