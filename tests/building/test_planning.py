"""What a plan says about a build, compared with the build."""

import json
import shutil
from collections import namedtuple
from itertools import count

import pytest

from tide_cache.building.budget import Budget
from tide_cache.building.driver import build_prepared
from tide_cache.building.planning import plan_build, rows
from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.errors import PairingError
from tide_cache.manifest import Manifest
from tide_cache.progress import listen


class _Hears:
    """Hears of phases, and of what is told."""

    def __init__(self):
        self.titles, self.told = [], []

    def begin(self, phase):
        self.titles.append(phase.title)

    def end(self, phase):
        pass

    def hear(self, text):
        self.told.append(text)


@pytest.fixture
def hears():
    listener = _Hears()
    listen(listener)
    yield listener
    listen(None)


@pytest.fixture(scope="module", params=["plain", "both"])
def planned(request, tmp_path_factory, build_values):
    """A plan from a part of the rows, and the cache."""
    passes = ("plain",) if request.param == "plain" else ("plain", "compdemo")
    out = tmp_path_factory.mktemp("planned") / "cache"
    run = BuildRun.model_validate(build_values(out, build__passes=passes))
    build = prepare_build(run)
    plan = plan_build(run, build, sample_rows=16, workers=2, budget=Budget(1000))
    assert not out.exists(), "a plan writes nothing"
    build_prepared(run, build)
    return plan, Manifest.load(out), out


def test_bytes_are_within_15_percent_of_the_build(planned):
    plan, manifest, out = planned
    found = sum(record.size for table in manifest.shards.values() for record in table)
    assert plan.cache_bytes == pytest.approx(found, rel=0.15)
    on_disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert plan.disk_bytes == pytest.approx(on_disk, rel=0.15)
    assert plan.masked_positions == pytest.approx(manifest.totals["plain"]["masked_student_positions"], rel=0.15)


def test_every_column_is_predicted_and_large_ones_within_a_quarter(planned):
    plan, manifest, _ = planned
    for table, totals in manifest.totals.items():
        columns = {name.removeprefix("column_bytes."): n for name, n in totals.items() if "column_bytes." in name}
        predicted = dict(plan.bytes_by_column[table])
        footer = sum(record.size for record in manifest.shards[table]) - sum(columns.values())
        assert predicted.pop("footer") == pytest.approx(footer, rel=0.15)
        assert set(predicted) == set(columns)
        for name, found in columns.items():
            if found > 0.1 * sum(columns.values()):
                assert predicted[name] == pytest.approx(found, rel=0.25), name


def test_counts_are_those_of_the_build(planned):
    plan, manifest, _ = planned
    assert (plan.num_rows, plan.rows_counted, plan.rows_sampled, plan.num_shards) == (40, 40, 16, 3)
    assert plan.num_samples == manifest.totals["pairs"]["samples"]
    assert plan.passes == manifest.passes
    assert plan.num_views == 4
    assert plan.dropped == 0


def test_time_is_shared_among_workers_by_whole_shards(planned):
    plan, _, _ = planned
    work_hours = plan.teacher_hours + plan.other_hours
    assert plan.hours == pytest.approx(plan.load_s / 3600 + work_hours)
    assert plan.hours_on_workers == pytest.approx(plan.load_s / 3600 + work_hours * 2 / 3), "two shards of three"
    assert plan.batches_timed > 1
    assert plan.spread >= 0
    assert plan.device in ("cpu", "cuda")


def test_break_even_is_the_capture_over_the_forwards_of_one_student(planned):
    plan, _, _ = planned
    online = plan.online
    assert online.forwards_per_step == len(plan.passes)
    num_forwards = online.epochs * plan.num_samples * online.forwards_per_step
    seconds = num_forwards * online.tokens_per_forward / plan.tokens_per_second
    assert online.hours_per_run * 3600 == pytest.approx(seconds)
    assert online.break_even_runs == pytest.approx(plan.teacher_hours / online.hours_per_run)


def test_whether_it_fits_is_told(built, monkeypatch):
    build = prepare_build(built.run)
    usage = namedtuple("usage", "total free")
    found = []
    for free in (10**12, 100):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: usage(10**12, free))
        found.append(plan_build(built.run, build, sample_rows=2))
    assert [(plan.free_bytes, plan.fits) for plan in found] == [(10**12, True), (100, False)]


def test_a_sample_without_samples_is_refused_with_the_reasons(tmp_path, build_values):
    run = BuildRun.model_validate(build_values(tmp_path / "cache", student__max_length=2))
    with pytest.raises(PairingError, match=r"none of 40 rows became a sample:\n  - no supervised .*: 40"):
        plan_build(run, prepare_build(run, "unread", pairs_all=False), sample_rows=8)


def test_rows_to_be_measured_that_give_none_are_refused(tmp_path, build_values, corpus_file):
    """The first row is too long, the others are not."""
    long = {"messages": [{"role": "user", "content": "long " * 99}, {"role": "assistant", "content": "yes"}]}
    others = corpus_file.read_text().splitlines()[1:]
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(long), *others]))
    run = BuildRun.model_validate(build_values(tmp_path / "cache", corpus__spec=str(tmp_path / "rows.jsonl")))
    with pytest.raises(PairingError, match=r"None of 1 rows became a sample, though 39 of 40 did; raise --sample-rows"):
        plan_build(run, prepare_build(run, "unread", pairs_all=False), sample_rows=1)


def test_of_a_large_corpus_some_rows_are_paired_and_no_weights_are_hashed(tmp_path, build_values, monkeypatch, hears):
    monkeypatch.setattr(rows, "ROWS_COUNTED", 10)
    run = BuildRun.model_validate(build_values(tmp_path / "cache", student__max_length=24))
    plan = plan_build(run, prepare_build(run, "unread", pairs_all=False), sample_rows=4, budget=Budget(1000))
    assert (plan.num_rows, plan.rows_sampled) == (40, 4)
    assert 10 <= plan.rows_counted <= 14
    assert not plan.is_cut
    assert plan.num_samples == round(40 * (1 - plan.dropped))
    assert plan.remarks[0].startswith(f"{plan.rows_counted} of 40 rows are counted here, spread over the corpus")
    assert plan.remarks[1].startswith(f"{plan.rows_counted} rows: ")
    assert plan.remarks[-1].startswith("warning: ")
    assert "student.max_length = " in plan.remarks[-1]
    assert hears.told == list(plan.remarks), "before the teacher is loaded, not only at the end"
    assert not [title for title in hears.titles if "Hashing" in title]
    cut = plan_build(run, prepare_build(run, "unread", pairs_all=False), sample_rows=4, budget=Budget(0))
    assert cut.is_cut
    assert cut.rows_counted == 5


@pytest.mark.parametrize("passes", [("plain",), ("plain", "compdemo")])
def test_no_budget_leaves_one_forward_and_one_sample_of_each_pass(tmp_path, build_values, passes):
    run = BuildRun.model_validate(build_values(tmp_path / "cache", build__passes=passes))
    plan = plan_build(run, prepare_build(run), sample_rows=16, budget=Budget(0))
    assert plan.is_cut
    assert (plan.batches_timed, plan.views_captured) == (len(passes), len(passes) * plan.num_views)
    assert plan.cache_bytes > 0
    assert plan.teacher_hours > 0


def test_a_budget_is_shared_by_forwards_and_capture(tmp_path, build_values):
    """A clock that goes on by a second whenever it is read: the sample ends in the middle."""
    run = BuildRun.model_validate(build_values(tmp_path / "cache"))
    build, seconds = prepare_build(run), count()
    plan = plan_build(run, build, sample_rows=16, budget=Budget(16, lambda: float(next(seconds))))
    assert plan.is_cut
    assert plan.num_views < plan.views_captured < 10 * plan.num_views


def test_a_small_build_is_measured_in_part(planned):
    """Ten of 40 samples, though 16 are paired and 256 views would allow for more."""
    plan, _, _ = planned
    assert not plan.is_cut
    assert plan.views_captured == 10 * plan.num_views * len(plan.passes)
