"""A sweep: one student for each arm and seed, kept, resumed or refused by what lies in its folder, in one table."""

import json
import os
import signal

import pytest
from typer.testing import CliRunner

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.sweep import ArmConfig
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.errors import Interrupted, RunFileError
from tide_cache.sweep.arms import Job, make_jobs
from tide_cache.sweep.job import check_job, run_job
from tide_cache.sweep.run import JobEnd, devices_of, run_jobs
from tide_cache.sweep.table import summarise
from tide_cache_cli.main import app

RUN = """
[student]
shape = {{ hidden_size = 32, intermediate_size = 48, num_layers = 1, num_heads = 2, num_kv_heads = 1, head_dim = 16 }}
tokenizer = {{ path = "{tokenizer}" }}

[data]
cache = "cache"

[optimizer]
lr = 1e-3

[train]
out = "students"
steps = 2
global_batch = 8
micro_batch = 8
precision = "float32"
device = "cpu"
checkpoint_every = 1
"""
ARMS = """
[[sweep.arm]]
name = "two views"
preset = "cross/calm"
set = { "data.num_views" = 2 }

[[sweep.arm]]
name = "breaks"
objective = [{ kind = "ce", weight = 2.0 }]
set = { "optimizer.lr" = 1e30, "optimizer.max_grad_norm" = 1e30, "optimizer.warmup_ratio" = 0.0 }
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, build_values, vocabularies):
    folder = tmp_path_factory.mktemp("sweep")
    build_cache(BuildRun.model_validate(build_values(folder / "cache", "cross", signals__kinds=("truth",))))
    write_tasks(folder / "held-out.jsonl", make_tasks(4, seed=2))
    (folder / "run.toml").write_text(RUN.format(tokenizer=vocabularies.first))
    (folder / "arms.toml").write_text(RUN.format(tokenizer=vocabularies.first) + ARMS)
    return folder


@pytest.fixture
def call(root, monkeypatch):
    monkeypatch.chdir(root)

    def run(*arguments):
        result = CliRunner().invoke(app, ["sweep", *(str(argument) for argument in arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def jobs_of(root, arms, num_seeds=1, **overrides):
    return make_jobs(root / "run.toml", overrides, arms, num_seeds, None)


CE = ArmConfig(name="ce", objective=({"kind": "ce"},))


def test_every_arm_and_seed_is_a_run_of_its_own(root):
    arms = [ArmConfig(name="cross/calm", preset="cross/calm"), CE]
    out, jobs = jobs_of(root, arms, 2, **{"data.seed": 5, "train.seed": 7})
    assert out == root / "students"
    assert [(job.arm, job.seed) for job in jobs] == [("cross/calm", 0), ("cross/calm", 1), ("ce", 0), ("ce", 1)]
    assert [str(job.run.train.out.relative_to(out)) for job in jobs[1:3]] == ["cross-calm/seed-1", "ce/seed-0"]
    assert [[entry.kind for entry in job.run.objective] for job in jobs[1:3]] == [["ce", "calm"], ["ce"]]
    second = jobs[1].run
    assert (second.data.seed, second.train.seed, second.student.shape.init_seed) == (6, 8, 1)
    assert Job.model_validate(json.loads(jobs[1].model_dump_json())) == jobs[1], "as a worker gets it"


def test_what_the_run_file_or_an_arm_says_wrongly_is_refused_with_the_arms_name(root):
    with pytest.raises(RunFileError, match="has no arm; give --preset or --objective"):
        jobs_of(root, [])
    with pytest.raises(RunFileError, match=r"two arms of one name or folder: a b, a/b; name each once"):
        jobs_of(root, [CE.model_copy(update={"name": name}) for name in ("a b", "a/b")])
    with pytest.raises(RunFileError, match=r"cannot start:\n  - wrong: .*\n.*preset: found 'cross/cal'; did you mean"):
        jobs_of(root, [CE, ArmConfig(name="wrong", preset="cross/cal")])
    with pytest.raises(ValueError, match="give one of them"):
        ArmConfig(name="both", preset="cross/kl", objective=({"kind": "ce"},))


def test_all_faults_are_found_before_the_first_student_is_trained(root, call, tmp_path):
    out = tmp_path / "out"
    result = call(
        *("run.toml", "--objective", "ce", "--objective", "ce+kl", "--objective", "chunk_kl", "--out", out),
        *("--held-out", "nowhere.jsonl"),
    )
    assert result.exit_code == 2
    for part in ("ce+kl, seed 0: ", "chunk_kl, seed 0: ", "held-out corpus: ", "nowhere.jsonl", "Nothing was trained"):
        assert part in result.stderr
    assert "  - ce, seed 0" not in result.stderr
    assert not out.exists()


def test_an_arm_that_fails_costs_no_other_and_finished_students_are_kept(root, call, tmp_path):
    out = tmp_path / "out"
    command = ("arms.toml", "--preset", "cross/bd3lm", "--held-out", "held-out.jsonl", "--out", out, "--seeds", 2)
    plan = json.loads(call(*command, "--dry-run", "--json").stdout)["students"]
    assert [(entry["arm"], entry["state"], entry["steps"]) for entry in plan[::2]] == [
        ("cross/bd3lm", "new", 2), ("two views", "new", 2), ("breaks", "new", 2),
    ]  # fmt: skip
    assert not out.exists()
    result = call(*command)
    assert result.exit_code == 1
    assert "error: breaks, seed 1: the model's output is not finite" in result.stderr
    assert "2 of 2" in result.stdout
    assert "0 of 2" in result.stdout
    document = json.loads((out / "sweep.json").read_text())
    assert (document["baseline"], document["held_out"]) == ("cross/bd3lm", "held-out.jsonl")
    first, second, broken = document["arms"]
    values = [[student["nll"]["mean_nll"] for student in arm["students"]] for arm in (first, second)]
    assert len({*values[0], *values[1]}) == 4
    differences = [b - a for a, b in zip(*values, strict=True)]
    assert second["nll"]["difference"]["mean"] == pytest.approx(sum(differences) / 2)
    assert second["nll"]["num_better"] == sum(difference < 0 for difference in differences)
    assert broken["nll"] is None
    written = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert json.loads(call(*command, "--json").stdout)["arms"] == document["arms"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == written


def test_what_a_sweep_cannot_be(call, monkeypatch):
    refused = call("run.toml", "--objective", "ce", "--limit", 3)
    assert refused.exit_code == 2
    assert "--limit 3: found no --held-out" in refused.stderr
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "found 2 processes that a launcher has started" in call("run.toml", "--objective", "ce").stderr


def test_another_run_in_the_same_folder_is_refused(root, tmp_path):
    (job,) = jobs_of(root, [CE], **{"train.out": str(tmp_path)})[1]
    assert run_job(job) == "new"
    assert run_job(job) == "trained"
    (other,) = jobs_of(root, [CE], **{"train.out": str(tmp_path), "optimizer.lr": 1e-2})[1]
    with pytest.raises(Exception, match=r"was trained by another run:\n  - optimizer: found .*'lr': 0.001.* expected"):
        check_job(other)
    strange = jobs_of(root, [ArmConfig(name="x", preset="cross/calm")], **{"train.out": str(tmp_path)})[1][0]
    (tmp_path / "x" / "seed-0").mkdir(parents=True)
    (tmp_path / "x" / "seed-0" / "thesis.tex").write_text("mine")
    with pytest.raises(RunFileError, match="found files that no training run wrote"):
        run_job(strange)
    assert (tmp_path / "x" / "seed-0" / "thesis.tex").exists()


def test_an_interrupted_student_goes_on_from_its_checkpoint(root, tmp_path, monkeypatch):
    (job,) = jobs_of(root, [CE], **{"train.out": str(tmp_path), "train.log_every": 1, "train.steps": 3})[1]

    def stop(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="Run the same command again") as caught:
        list(run_jobs([job], 1, stop))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert check_job(job).state == "unfinished"
    steps = []
    (end,) = run_jobs([job], 1, lambda _, step, __: steps.append(step))
    assert end.error is None
    assert steps == [2, 3]


def test_side_by_side_gives_what_one_after_the_other_gives(root, call, tmp_path, forking):
    command = ("arms.toml", "--held-out", "held-out.jsonl", "--json")
    alone = json.loads(call(*command, "--out", tmp_path / "alone").stdout)["arms"]
    result = call(*command, "--out", tmp_path / "together", "--jobs", 2)
    assert result.exit_code == 1
    together = json.loads(result.stdout)["arms"]
    assert together[0]["nll"]["value"]["mean"] == pytest.approx(alone[0]["nll"]["value"]["mean"], rel=1e-5)
    assert together[1]["students"][0]["error"] == alone[1]["students"][0]["error"]


NOTE = """
import os, types
from tide_cache.errors import RunFileError

def note(job, on_step):
    on_step(types.SimpleNamespace(step=1), 2)
    print("note", job.seed)
    job.log.with_suffix(".pid").write_text(str(os.getpid()))
    if job.seed == 1:
        raise RunFileError("no room\\nat all")
    if job.seed == 2:
        os.kill(os.getpid(), 9)
"""


def test_a_process_takes_job_after_job_and_one_that_fails_costs_only_its_own(root, tmp_path, monkeypatch, forking):
    (tmp_path / "noting.py").write_text(NOTE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    jobs = jobs_of(root, [CE], 6, **{"train.out": str(tmp_path)})[1]
    seen = []
    ends = list(run_jobs(jobs, 2, lambda job, *steps: seen.append((job.seed, *steps)), work="noting:note"))
    errors = {end.job.seed: end.error for end in ends}
    assert sorted(seen) == [(seed, 1, 2) for seed in range(6)]
    assert errors.pop(1) == "no room\nat all"
    assert errors.pop(2) == f"killed by SIGKILL; its output is in {jobs[2].log}"
    assert errors == dict.fromkeys((0, 3, 4, 5))
    assert [job.log.read_text() for job in (jobs[0], jobs[5])] == ["note 0\n", "note 5\n"]
    assert len({job.log.with_suffix(".pid").read_text() for job in jobs}) < 6


def test_cpus_need_no_device_and_gpus_are_counted(root, monkeypatch):
    jobs = jobs_of(root, [CE])[1]
    assert devices_of(jobs, 3) == [None] * 3
    monkeypatch.setattr("tide_cache.sweep.run.resolve_device", lambda _: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert devices_of(jobs, 2) == ["4", "6"]
    with pytest.raises(RunFileError, match="--jobs 3: found 2 GPUs"):
        devices_of(jobs, 3)


def test_a_failed_baseline_leaves_the_others_without_a_difference(root):
    job = jobs_of(root, [CE])[1][0]
    (row,) = summarise([JobEnd(job, "it broke")])
    assert (row.nll, row.accuracy, row.students[0].error) == (None, None, "it broke")
