"""The compdemo pass, added later or built at once: the bytes are the same, and nothing else moves."""

import hashlib

import numpy as np
import pytest

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheMismatchError
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest, verify
from tide_cache.views import draw_shown_first, partial_views

BOTH = ("plain", "compdemo")


def tree(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def without_manifest(files):
    return {name: digest for name, digest in files.items() if name != "manifest.json"}


def without_record(files):
    """`build.json` tells how a cache was begun, and nothing replaces it."""
    return {name: digest for name, digest in files.items() if name != "build.json"}


@pytest.fixture
def run_of(tmp_path, build_values):
    def make(passes=BOTH, name="cache", pipeline="cross", **changes):
        values = build_values(tmp_path / name, pipeline, build__passes=passes, **changes)
        return BuildRun.model_validate(values)

    return make


@pytest.fixture(scope="module")
def at_once(tmp_path_factory, build_values):
    folder = tmp_path_factory.mktemp("at-once") / "cache"
    return folder, build_cache(BuildRun.model_validate(build_values(folder, "cross", build__passes=BOTH)))


def records(folder, name, epoch):
    return CacheSource(folder, Manifest.load(folder), signal_pass=name).records(range(40), epoch)


def test_both_passes_are_whole_and_counted(at_once):
    folder, summary = at_once
    assert summary.passes == Manifest.load(folder).passes == BOTH
    assert verify(folder, deep=True).shards == 9
    totals = Manifest.load(folder).totals
    for name in ("views", "masked_student_positions", "masked_teacher_positions", "topk_rows"):
        assert totals["compdemo"][name] == totals["plain"][name]
    seen = [(record, split) for epoch in range(4) for record, split in splits(folder, epoch)]
    assert totals["compdemo"]["teacher_views"] == sum(len(partial_views(r.view, split)) for r, split in seen)
    assert totals["compdemo"]["shown_first_positions"] == sum(int(split.sum()) for _, split in seen)
    assert summary.masked_positions == totals["plain"]["masked_student_positions"]
    assert summary.cache_bytes == sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def splits(folder, epoch):
    seed = Manifest.load(folder).identity.views.seed
    for record in records(folder, "compdemo", epoch):
        yield record, draw_shown_first(record.pair, record.view, seed, 0.5)


def test_every_split_follows_from_the_manifest_and_is_stored(at_once):
    for epoch in range(4):
        for (record, is_first_M), plain in zip(
            splits(at_once[0], epoch), records(at_once[0], "plain", epoch), strict=True
        ):
            assert np.array_equal(record.signal.is_shown_first_N, is_first_M[record.view.is_teacher_masked_M])
            assert np.array_equal(record.view.is_teacher_masked_M, plain.view.is_teacher_masked_M)
            assert np.array_equal(record.view.is_student_masked_L, plain.view.is_student_masked_L)
            assert plain.signal.is_shown_first_N is None


def test_a_pass_is_added_to_a_finished_cache_and_nothing_there_is_touched(run_of, at_once):
    build_cache(run_of(["plain"]))
    folder = run_of().build.out
    before = tree(folder)
    stamps = {name: (folder / name).stat().st_mtime_ns for name in without_manifest(before)}
    summary = build_cache(run_of())
    after = tree(folder)
    assert without_manifest(before).items() <= after.items()
    assert {name: (folder / name).stat().st_mtime_ns for name in stamps} == stamps
    assert without_record(after) == without_record(tree(at_once[0]))
    assert summary.passes == BOTH
    assert summary.cache_id == at_once[1].cache_id
    build_cache(run_of(["plain"]), lambda _: pytest.fail("nothing is missing"))
    assert tree(folder) == after


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", [2, 5, 9])
def test_a_killed_addition_leaves_a_cache_that_loads_and_resumes_byte_identical(run_of, at_once, calls):
    build_cache(run_of(["plain"]))
    folder = run_of().build.out
    before, seen = tree(folder), []

    def kill_at_call(progress):
        seen.append(progress)
        assert Manifest.load(folder).passes == ("plain",)
        if len(seen) == calls:
            raise Killed

    with pytest.raises(Killed):
        build_cache(run_of(), kill_at_call)
    assert before.items() <= tree(folder).items()
    assert Manifest.load(folder).passes == ("plain",)
    assert verify(folder, deep=True).ok
    assert len(records(folder, "plain", 0)) == 40
    build_cache(run_of())
    assert without_record(tree(folder)) == without_record(tree(at_once[0]))


def test_progress_counts_twice_what_is_shown_twice(run_of):
    build_cache(run_of(["plain"]))
    seen = []
    build_cache(run_of(), seen.append)
    assert {progress.num_views for progress in seen} == {40 * 4 * 2}
    assert 40 * 4 < seen[-1].views_done <= 40 * 4 * 2
    assert (seen[0].shards_done, seen[-1].shards_done) == (0, 3)


def test_the_order_in_which_passes_are_named_does_not_matter(run_of, at_once):
    build_cache(run_of(["compdemo", "plain"]))
    assert without_record(tree(run_of().build.out)) == without_record(tree(at_once[0]))


def test_the_compdemo_pass_may_stand_alone_and_brings_the_pairs(run_of, at_once):
    summary = build_cache(run_of(["compdemo"]))
    folder = run_of().build.out
    assert summary.passes == ("compdemo",)
    assert summary.masked_positions == at_once[1].masked_positions
    assert verify(folder, deep=True).shards == 6
    assert without_record(without_manifest(tree(folder))).items() <= tree(at_once[0]).items()
    assert len(CacheSource(folder, Manifest.load(folder)).records(range(40), 0)) == 40


@pytest.mark.parametrize("demo_ratio", [0.0, 1.0])
@pytest.mark.parametrize("context", ["full", "block"])
def test_without_a_demonstration_the_pass_holds_what_the_plain_one_does(run_of, demo_ratio, context):
    run = run_of(views__demo_ratio=demo_ratio, teacher__context=context)
    build_cache(run)
    for epoch in range(4):
        plain, demonstrated = (records(run.build.out, name, epoch) for name in BOTH)
        for one, other in zip(plain, demonstrated, strict=True):
            assert np.array_equal(one.signal.truth_logprobs_N, other.signal.truth_logprobs_N)
            assert np.array_equal(one.signal.topk.logprobs_E, other.signal.topk.logprobs_E)
            assert (other.signal.is_shown_first_N == bool(demo_ratio)).all()


def test_another_demo_ratio_is_another_cache_and_is_refused_with_both_values(run_of):
    build_cache(run_of(["plain"]))
    with pytest.raises(CacheMismatchError, match=r"views\.demo_ratio: cache has 0\.5, run declares 0\.25"):
        build_cache(run_of(views__demo_ratio=0.25))
