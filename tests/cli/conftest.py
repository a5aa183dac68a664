"""A tiny corpus, two tokenizers, a teacher and a cache, made once by the installed commands."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, CompletedProcess

import pytest
from typer.testing import CliRunner

from helpers import fresh
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.demo.vocabularies import train_vocabularies
from tide_cache_cli.main import app

COMMAND = Path(sys.executable).with_name("tide-cache")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
LIMIT_S = 300

TRAIN = """
[student]
block_size = 16
max_length = 64
shape = { hidden_size = 32, intermediate_size = 64, num_layers = 1, num_heads = 1, num_kv_heads = 1 }
tokenizer = { path = "vocab/second" }

[optimizer]
lr = 2e-3

[train]
steps = 4
global_batch = 8
micro_batch = 4
precision = "float32"
log_every = 1
"""
BUILD = """
[teacher]
model = "teacher/model"
block_size = 16
max_length = 64
dtype = "float32"

[student]
max_length = 64
block_size = 16
tokenizer = { path = "vocab/first" }

[corpus]
spec = "tasks.jsonl"

[views]
num_views = 2

[build]
samples_per_shard = 12
"""


@dataclass(frozen=True)
class Workshop:
    """Where things lie."""

    root: Path

    @property
    def cache(self):
        return self.root / "cache"

    @property
    def teacher(self):
        return self.root / "teacher" / "model"


def run_command(*arguments, cwd, stdin=None, **environment):
    """Run the command to its end in a process of its own, with a text on stdin or none."""
    return fresh.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def succeed(*arguments, cwd, **environment):
    """Run the installed command, which must succeed; gives its stdout."""
    done = run_command(*arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """The files of the whole path up to the cache; tests only read them."""
    root = tmp_path_factory.mktemp("workshop")
    write_tasks(root / "tasks.jsonl", make_tasks(24, seed=1))
    write_tasks(root / "held-out.jsonl", make_tasks(6, seed=2))
    train_vocabularies(root / "vocab", 0)
    (root / "train.toml").write_text(TRAIN)
    (root / "build.toml").write_text(BUILD)
    succeed("train", "train.toml", "--dataset", "tasks.jsonl", "--out", "teacher", cwd=root)
    succeed("build-teacher-shards", "build.toml", "--out", "cache", cwd=root)
    return Workshop(root)


@pytest.fixture
def call_anywhere(monkeypatch):
    """Call the command line in this process."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def call(workshop, call_anywhere, monkeypatch):
    """Call it in the workshop's folder."""
    monkeypatch.chdir(workshop.root)
    return call_anywhere


@pytest.fixture
def installed():
    return run_command


@dataclass(frozen=True)
class StoppedRun:
    """A run that got Ctrl-C and was then run again."""

    out: Path
    code: int
    err: str
    lines_when_stopped: int
    again: CompletedProcess[str]


def stop_and_run_again(workshop, command, out, is_reached, again=()):
    """Start the installed command, send SIGINT once `is_reached`, wait, and run it again with the options `again`."""
    process = fresh.Process(
        [COMMAND, *map(str, command)],
        cwd=workshop.root,
        env=ENVIRONMENT,
        stdout=PIPE,
        stderr=PIPE,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + LIMIT_S
        while not is_reached():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert stdout == "", "an interrupted run has no result"
    assert "Traceback" not in err
    lines = num_lines(out / "metrics.jsonl")
    return StoppedRun(out, process.returncode, err, lines, run_command(*command, *again, cwd=workshop.root))


def num_lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="session")
def student_run(workshop):
    """A student that two processes trained from the cache, stopped and resumed on the way."""
    out = workshop.root / "student"
    command = [
        *("train", "train.toml", "--cache", "cache", "--out", out, "--num-gpus", "2", "--json"),
        *("--set", "student.tokenizer.path=vocab/first", "--objective", "ce", "--objective", "calm:0.5"),
        *("--set", "train.steps=100", "--set", "train.checkpoint_every=0"),
    ]
    return stop_and_run_again(workshop, command, out, lambda: num_lines(out / "metrics.jsonl") >= 2, ["--resume"])


@pytest.fixture
def stopped_run():
    return stop_and_run_again
