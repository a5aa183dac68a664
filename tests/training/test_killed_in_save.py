"""A run that is killed while it saves a checkpoint goes on from the one before, and ends in the same bits."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import DEVNULL

import pytest
from safetensors.torch import load_file

from helpers import fresh
from tide_cache.config.train import TrainRun
from tide_cache.training.checkpoints import MARKER, committed_checkpoints
from tide_cache.training.run import train

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}


@pytest.fixture
def make_run(tmp_path, vocabularies, corpus_file):
    def make(name, checkpoint_every=0):
        return TrainRun.model_validate(
            {
                "student": {"shape": SHAPE, "tokenizer": {"path": str(vocabularies.second)}, "max_length": 64},
                "data": {"corpus": {"spec": str(corpus_file)}},
                "train": {
                    "out": str(tmp_path / name), "steps": 15, "global_batch": 2, "micro_batch": 1, "device": "cpu",
                    "checkpoint_every": checkpoint_every, "log_every": 1, "ema_decay": 0.9,
                },
            }
        )  # fmt: skip

    return make


def kill_in_save(run, job_file):
    """Train in another process and kill it while a checkpoint lies there without its marker."""
    job_file.write_text(json.dumps([{"run": run.model_dump(mode="json"), "resume": False, "stop_at": 0}]))
    worker = Path(__file__).with_name("worker.py")
    process = fresh.Process([sys.executable, "-W", "ignore", str(worker), str(job_file)], stderr=DEVNULL)
    folder = run.train.out / "checkpoints"
    try:
        while process.poll() is None:
            if len(committed_checkpoints(folder)) >= 2 and unfinished(folder):
                os.kill(process.pid, signal.SIGSTOP)  # so that it cannot finish between the look and the kill
                if found := unfinished(folder):
                    process.kill()
                    return found
                os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.0005)
    finally:
        process.kill()
        process.wait()
    pytest.fail("the run ended before it was caught while saving")


def unfinished(folder):
    """The newest checkpoint, if it is on its way; older ones may be on their way out."""
    newest = max(folder.glob("step-*"), default=None)
    return newest if newest is not None and not (newest / MARKER).exists() else None


def lines(run):
    texts = (run.train.out / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["losses"], line["gradient_norm"]) for line in map(json.loads, texts)]


def test_a_run_killed_while_it_saves_ends_in_the_same_bits(make_run, tmp_path):
    undisturbed, killed = make_run("undisturbed"), make_run("killed", checkpoint_every=1)
    train(undisturbed)
    torn = kill_in_save(killed, tmp_path / "job.json")
    assert torn.is_dir()
    assert torn not in committed_checkpoints(torn.parent)
    train(killed, resume=True)
    assert lines(killed) == lines(undisturbed)
    for model in ("model", "model-ema"):
        weights = [load_file(run.train.out / model / "model.safetensors") for run in (killed, undisturbed)]
        assert weights[0].keys() == weights[1].keys()
        assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
