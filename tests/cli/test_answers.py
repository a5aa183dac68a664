"""`answers` as a user meets it: a killed run that goes on, what is refused, and what is printed."""

import json
import os
import signal
import time

import pytest

from helpers import fresh

from .conftest import COMMAND, ENVIRONMENT, LIMIT_S

FAST = ("--teacher", "teacher/model", "--dataset", "tasks.jsonl", "--dtype", "float32", "--device", "cpu",
        "--max-new-tokens", "8", "--steps-per-block", "4", "--temperature", "2", "--set", "answers.samples_per_shard=4",
        "--batch-size", "2")  # fmt: skip


def test_a_killed_run_goes_on_and_its_workers_die_with_it(call, workshop, tmp_path):
    whole = call("answers", *FAST, "--out", tmp_path / "whole.jsonl", "--json")
    assert whole.exit_code == 0, whole.stderr
    assert json.loads(whole.stdout)["prompts"] == 24
    out = tmp_path / "answers.jsonl"
    command = [COMMAND, "answers", *FAST, "--workers", "2", "--out", str(out)]
    process = fresh.Process(command, cwd=workshop.root, env=ENVIRONMENT)
    deadline_s = time.monotonic() + LIMIT_S
    while not list(tmp_path.glob("answers.jsonl.parts/part-*.jsonl")) and time.monotonic() < deadline_s:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = json.loads(call("answers", *FAST, "--out", out, "--json").stdout)
    assert again["parts_reused"] >= 1
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    other = call("answers", *FAST, "--out", out, "--seed", "3")
    assert other.exit_code == 3
    assert "decoding.seed: the file has 0, this run 3" in other.stderr
    text = call("answers", *FAST, "--out", out)
    assert "already existed" in text.stdout
    assert "data.corpus.spec" in text.stderr


def test_a_dry_run_prints_what_the_checkpoint_decides(call, tmp_path):
    result = call("answers", *FAST, "--out", tmp_path / "a.jsonl", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "# 24 prompts in 6 parts" in result.stdout
    assert 'context = "block"\nblock_size = 16' in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "found"),
    [
        (["--out", "a.json"], 2, "expected a name that ends in .jsonl"),
        (["--out", "a.jsonl", "--top-k", "3", "--temperature", "0"], 2, "temperature 0 draws nothing"),
        (["--out", "a.jsonl", "--context", "causal"], 2, "can be shown block or full"),
        (["--out", "a.jsonl", "--dataset", "none.jsonl"], 3, "no such file"),
        (["--out", "a.jsonl", "--teacher", "none/at/all"], 3, "none/at/all"),
        ([], 2, "answers.out: missing"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(call, monkeypatch, options, code, found):
    monkeypatch.setattr(
        "tide_cache.answering.worker.load_backbone", lambda *_, **__: pytest.fail("weights were loaded")
    )
    result = call("answers", *FAST, *options)
    assert result.exit_code == code, result.stderr
    assert found in result.stderr
