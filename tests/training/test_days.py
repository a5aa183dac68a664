"""A template that writes the date: one day for all ranks, for a run that is resumed later, and for its evaluation."""

import datetime
import json
import threading

import pytest
from torch.distributed import HashStore

from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError
from tide_cache.pairing import TextTokenizer
from tide_cache.sweep.arms import Job
from tide_cache.sweep.job import check_jobs, with_days
from tide_cache.training import company, prepare
from tide_cache.training.checkpoints import MARKER, Marker
from tide_cache.training.distributed import World
from tide_cache_cli.checkpoints import open_model
from tide_cache_cli.evaluate_tasks import _day_begun

DATED = (
    "<|system|>Today: {{ strftime_now('%A %d %b %Y') }}<|im_end|>\n"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>\n{% endfor %}"
)
FIRST, SECOND = datetime.date(2026, 1, 31), datetime.date(2026, 2, 1)
ALONE = World(0, 1, 0)


@pytest.fixture
def run(tmp_path, tiny_teacher, corpus_file, vocabularies):
    (tmp_path / "dated.jinja").write_text(DATED)

    def make(template="dated.jinja", **data):
        tokenizer = {"path": str(vocabularies.first)}
        tokenizer |= {"chat_template": str(tmp_path / template)} if template else {}
        return TrainRun.model_validate({
            "student": {"model": str(tiny_teacher), "max_length": 64, "block_size": 8, "tokenizer": tokenizer},
            "data": {"corpus": {"spec": f"{corpus_file}[train:4]"}, **data},
            "objective": [{"kind": "ce"}],
            "train": {"out": str(tmp_path / "run"), "steps": 2, "global_batch": 4, "micro_batch": 4, "device": "cpu"},
        })  # fmt: skip

    return make


def on(monkeypatch, day):
    """Have the clock stand on a day."""
    monkeypatch.setattr(prepare, "today", lambda: day)


def test_the_day_is_the_run_files_or_that_of_the_clock_and_is_kept(run, monkeypatch):
    on(monkeypatch, FIRST)
    prepared = prepare.prepare(run(), ALONE, resume=False)
    assert prepared.continuity["data.date"] == prepared.provenance["template_date"] == "2026-01-31"
    stated = prepare.prepare(run(date="2026-02-01"), ALONE, resume=False)
    assert stated.continuity["data.date"] == "2026-02-01"
    records = [one.source.records([0], epoch=0)[0] for one in (prepared, stated)]
    texts = [prepared.tokenizer.decode(record.pair.student_ids_L) for record in records]
    assert ["31 Jan" in texts[0], "01 Feb" in texts[1]] == [True, True]
    with pytest.raises(RunFileError, match=r"data\.date: found 2026-02-01, but this run renders no template"):
        prepare.prepare(run(template=None, date="2026-02-01"), ALONE, resume=False)


def test_a_run_that_is_resumed_on_another_day_has_the_day_on_which_it_began(run, monkeypatch):
    on(monkeypatch, FIRST)
    began = run()
    continuity = prepare.prepare(began, ALONE, resume=False).continuity
    folder = began.train.out / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    marker = Marker(version=1, step=1, world_size=1, run=continuity, files={})
    (folder / MARKER).write_text(marker.model_dump_json())
    on(monkeypatch, SECOND)
    resumed = prepare.prepare(began, ALONE, resume=True)
    assert resumed.resumed.step == 1
    assert resumed.continuity == continuity
    assert resumed.tokenizer.today == FIRST


def test_ranks_on_both_sides_of_midnight_take_the_first_ones_day(run, monkeypatch):
    """Two ranks in threads, with a store but without the connection by which they watch each other."""
    monkeypatch.setattr(company, "FirstRank", lambda *_: None)
    monkeypatch.setattr(company, "OtherRank", lambda *_: None)
    store, found = HashStore(), {}

    def ask(rank, day):
        found[rank] = company.Company(World(rank, 2, rank), store).from_first("today", day.isoformat())

    late = threading.Thread(target=ask, args=(1, SECOND))
    late.start()
    ask(0, FIRST)
    late.join()
    assert found == {0: "2026-01-31", 1: "2026-01-31"}
    assert company.Company(ALONE, None).from_first("today", "2026-02-01") == "2026-02-01"
    on(monkeypatch, SECOND)
    days = [datetime.date.fromisoformat(day) for day in found.values()]
    runs = [prepare.prepare(run(), ALONE, False, day).continuity for day in days]
    assert runs[0] == runs[1]
    assert runs[0]["data.date"] == "2026-01-31"


def test_the_arms_of_a_sweep_have_one_day_and_a_second_run_of_it_has_the_same(run, monkeypatch):
    monkeypatch.setattr("tide_cache.sweep.job.today", lambda: FIRST)
    jobs = [Job(arm="one", seed=seed, run=_out(run(), f"seed-{seed}"), held_out=None) for seed in (0, 1)]
    dated = with_days(jobs, check_jobs(jobs))
    assert [job.run.data.date for job in dated] == [FIRST, FIRST]
    (continuity,) = {json.dumps(one.prepared.continuity) for one in check_jobs(jobs)}
    model = jobs[1].run.train.out / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "tide_cache.json").write_text(json.dumps({"run": json.loads(continuity)}))
    monkeypatch.setattr("tide_cache.sweep.job.today", lambda: SECOND)
    again = check_jobs(jobs)
    assert [one.state for one in again] == ["new", "trained"]
    assert [job.run.data.date for job in with_days(jobs, again)] == [FIRST, FIRST]


def _out(run, name):
    return run.model_copy(update={"train": run.train.model_copy(update={"out": run.train.out / name})})


def test_a_student_is_evaluated_on_the_day_of_its_training_and_others_on_one_day(
    run, tiny_teacher, vocabularies, tmp_path, monkeypatch
):
    TextTokenizer.load(str(vocabularies.first), chat_template=tmp_path / "dated.jinja").save(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes((tiny_teacher / "config.json").read_bytes())
    monkeypatch.setattr("tide_cache.pairing.dates.today", lambda: datetime.date(2026, 3, 1))

    def day(**options):
        return open_model(str(tmp_path / "model"), 8, **options).tokenizer.today

    assert day(as_trained=True, day=SECOND) == SECOND
    assert day(as_trained=True) == datetime.date(2026, 3, 1)
    provenance = tmp_path / "model" / "tide_cache.json"
    provenance.write_text('{"template_date": "2026-01-31"}')
    assert day(as_trained=True, day=SECOND) == FIRST
    assert day(as_trained=False) == datetime.date(2026, 3, 1), "generate shows the day of the clock"
    provenance.write_text('{"cache_identity": {"pairing": {"date": "2026-01-31"}}}')
    assert day(as_trained=True) == FIRST


def test_a_second_run_of_an_evaluation_goes_on_with_the_first_ones_day(tmp_path, monkeypatch):
    monkeypatch.setattr("tide_cache.pairing.dates.today", lambda: SECOND)
    assert _day_begun(tmp_path) == SECOND
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "one.json").write_text('{"identity": {}}')
    assert _day_begun(tmp_path) == SECOND
    (tmp_path / "baseline" / "two.json").write_text('{"identity": {"template_date": "2026-01-31"}}')
    assert _day_begun(tmp_path) == FIRST
