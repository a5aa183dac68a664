"""A repaired cache is the undamaged one, byte for byte; what was bad lies aside; nothing else was computed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tide_cache.building import repair
from tide_cache.building.driver import build_cache
from tide_cache.building.repair import find_damage, repair_cache
from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheIncompleteError, CacheMismatchError, RunFileError
from tide_cache.manifest import verify
from tide_cache.manifest.quarantine import Quarantine
from tide_cache.shards import LOCAL_FILES

PAIRS = "pairs/shard-000001.parquet"
PLAIN = "signals/plain/shard-000002.parquet"


def tree(root):
    files = (path for path in root.rglob("*") if path.is_file() and "quarantine" not in path.relative_to(root).parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def flip(path, at=100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, build_values):
    folder = tmp_path_factory.mktemp("pristine") / "cache"
    build_cache(BuildRun.model_validate(build_values(folder)))
    return folder


@pytest.fixture
def cache(tmp_path, pristine):
    shutil.copytree(pristine, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def run(cache, build_values):
    return BuildRun.model_validate(build_values(cache))


@pytest.fixture
def encoded(monkeypatch):
    """Which tables of which shards are computed."""
    seen = []

    def spy(build, teacher, paired, header, on_views):
        seen.append((header.table, header.shard))
        return real(build, teacher, paired, header, on_views)

    real = repair.encode_table
    monkeypatch.setattr(repair, "encode_table", spy)
    return seen


def test_a_healthy_cache_is_left_alone(cache, run):
    found = find_damage(cache)
    assert found.is_repaired
    assert found.bad_files == ()
    assert repair_cache(found, run) is found
    assert not (cache / "quarantine").exists()


def test_bad_and_missing_shards_come_back_and_only_they_are_computed(cache, run, pristine, encoded):
    flip(cache / PAIRS)
    bad = (cache / PAIRS).read_bytes()
    (cache / PLAIN).unlink()
    found = find_damage(cache)
    assert found.bad_files == (PAIRS, PLAIN)
    assert not found.is_repaired
    report = repair_cache(found, run)
    assert report.is_repaired
    assert encoded == [("pairs", 1), ("plain", 2)]
    assert report.recomputed == (PAIRS, PLAIN)
    assert report.moved == (PAIRS,)
    assert (cache / "quarantine/0001" / PAIRS).read_bytes() == bad
    assert tree(cache) == tree(pristine)
    assert verify(cache, deep=True).ok


def test_pairs_alone_need_no_teacher(cache, run, pristine, monkeypatch):
    monkeypatch.setattr(repair, "load_teacher", lambda *_: pytest.fail("the teacher was loaded"))
    flip(cache / PAIRS)
    assert repair_cache(find_damage(cache), run).is_repaired
    assert tree(cache) == tree(pristine)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("also", [None, "manifest.json"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read_or_moved(cache, run, monkeypatch, also):
    on_gpu = run.model_copy(update={"teacher": run.teacher.model_copy(update={"device": "cuda"})})
    if also is None:
        monkeypatch.setattr(repair, "prepare_build", lambda *_: pytest.fail("the corpus was read"))
    else:
        (cache / also).write_text("{")
    flip(cache / PLAIN)
    before = tree(cache)
    with pytest.raises(RunFileError, match="device 'cuda': found no CUDA devices"):
        repair_cache(find_damage(cache), on_gpu)
    assert tree(cache) == before


def test_plan_and_records_need_no_run_file(cache, pristine):
    (cache / "plan.json").unlink()
    (cache / PAIRS).with_suffix(".json").write_text("{")
    shutil.rmtree(cache / "signals/plain", ignore_errors=False)
    shutil.copytree(pristine / "signals/plain", cache / "signals/plain", ignore=shutil.ignore_patterns("*.json"))
    report = repair_cache(find_damage(cache))
    assert report.is_repaired
    assert report.recomputed == ()
    assert report.moved == ("pairs/shard-000001.json",)
    assert tree(cache) == tree(pristine)


def test_every_repair_has_its_own_folder(cache, run):
    for number in (1, 2):
        flip(cache / PAIRS)
        assert repair_cache(find_damage(cache), run).quarantine == cache / f"quarantine/000{number}"
    assert len(list((cache / "quarantine").rglob("*.parquet"))) == 2


def test_a_link_or_a_folder_in_a_shards_place_is_moved_not_followed(cache, run, tmp_path, pristine):
    (cache / PAIRS).rename(tmp_path / "elsewhere")
    (cache / PAIRS).symlink_to(tmp_path / "elsewhere")
    (cache / PLAIN).unlink()
    (cache / PLAIN).mkdir()
    assert repair_cache(find_damage(cache), run).is_repaired
    assert tree(cache) == tree(pristine)
    assert (cache / "quarantine/0001" / PAIRS).is_symlink()
    assert (tmp_path / "elsewhere").exists()


def test_without_a_run_file_nothing_is_changed_and_the_shards_are_named(cache):
    flip(cache / PAIRS)
    (cache / "plan.json").unlink()
    before = tree(cache)
    with pytest.raises(RunFileError, match=rf"needs the run file.*\n  - {PAIRS}\n.*repair RUN\.toml; .*Nothing was"):
        repair_cache(find_damage(cache))
    assert tree(cache) == before


def test_another_run_is_refused_with_the_field(cache, build_values):
    flip(cache / PAIRS)
    before = tree(cache)
    other = BuildRun.model_validate(build_values(cache, views__seed=5))
    with pytest.raises(CacheMismatchError, match=r"manifest\.json was .*\n.*views\.seed: cache has 0, run declares 5"):
        repair_cache(find_damage(cache), other)
    assert tree(cache) == before


def test_other_bytes_than_the_manifests_are_not_published(cache, run, monkeypatch):
    """Another machine may compute other last bits; a cache never holds a mixture of two."""
    flip(cache / PLAIN)
    before = tree(cache)
    real = repair.encode_table

    def drifted(build, teacher, paired, header, on_views):
        teacher._backbone.model.model.norm.weight.data.mul_(1.001)
        return real(build, teacher, paired, header, on_views)

    monkeypatch.setattr(repair, "encode_table", drifted)
    with pytest.raises(CacheMismatchError, match=r"000002\.parquet: computed again, it has sha256 .*\n.*same inputs"):
        repair_cache(find_damage(cache), run)
    assert tree(cache) == before


def test_a_repair_that_was_killed_is_finished_by_the_next(cache, run, pristine, monkeypatch):
    flip(cache / PAIRS)
    flip(cache / PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(repair, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            repair_cache(find_damage(cache), run)
    assert not (cache / PAIRS).exists()
    assert repair_cache(find_damage(cache), run).is_repaired
    assert tree(cache) == tree(pristine)


class TestLostManifest:
    def test_it_is_made_from_the_records_without_a_run_file(self, cache, pristine):
        (cache / "manifest.json").write_text("{")
        report = repair_cache(find_damage(cache))
        assert report.is_repaired
        assert report.moved == ("manifest.json",)
        assert tree(cache) == tree(pristine)

    def test_what_the_records_do_not_vouch_for_is_computed_again(self, cache, run, pristine):
        (cache / "manifest.json").write_text("{")
        (cache / "plan.json").write_text("{")
        flip(cache / PLAIN)
        (cache / PAIRS).with_suffix(".json").write_text("{")
        before = tree(cache)
        with pytest.raises(RunFileError, match=r"plan\.json\n"):
            repair_cache(find_damage(cache))
        assert tree(cache) == before
        report = repair_cache(find_damage(cache), run)
        assert report.is_repaired
        assert report.recomputed == (PAIRS, PLAIN)
        assert tree(cache) == tree(pristine)

    def test_another_run_is_refused(self, cache, build_values):
        (cache / "manifest.json").write_text("{")
        other = BuildRun.model_validate(build_values(cache, views__seed=5))
        with pytest.raises(CacheMismatchError, match=r"views\.seed: cache has 0, run declares 5"):
            repair_cache(find_damage(cache), other)

    def test_an_unfinished_build_is_for_the_build_command(self, cache):
        (cache / "manifest.json").unlink()
        with pytest.raises(CacheIncompleteError, match="build-teacher-shards"):
            find_damage(cache)


def test_a_missing_file_needs_no_quarantine(tmp_path):
    quarantine = Quarantine(tmp_path, LOCAL_FILES)
    quarantine.take("nothing.parquet")
    assert (quarantine.folder, quarantine.moved, list(tmp_path.iterdir())) == (None, [], [])


def test_the_document_of_a_damage_says_which_file(cache):
    (cache / PAIRS).with_suffix(".json").unlink()
    (problem,) = find_damage(cache).problems
    assert json.loads(problem.model_dump_json()) == {
        "shard": PAIRS,
        "file": str(Path(PAIRS).with_suffix(".json")),
        "problem": "shard-000001.json is missing",
    }


def test_a_damaged_part_of_a_manifest_comes_back_with_what_else_was_bad(cache, run, monkeypatch):
    monkeypatch.setattr("tide_cache.manifest.finishing.MOST_SHARDS_IN_ONE_FILE", 1)
    (cache / "manifest.json").unlink()
    build_cache(run)
    good = tree(cache)
    (part,) = (cache / "manifest").glob("plain-*")
    flip(part)
    flip(cache / PAIRS)
    found = repair_cache(find_damage(cache), run)
    assert found.is_repaired
    assert found.moved == ("manifest.json", f"manifest/{part.name}", PAIRS, "pairs/shard-000001.json")
    assert found.recomputed == (PAIRS,)
    assert tree(cache) == good
