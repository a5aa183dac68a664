"""Training as a user starts it: by the command line, in processes that trained nothing before, one or several.

Tests that share processes hide faults of the first run in a process. The riskiest ways run by default, in processes
that have only imported; every documented one with `TIDE_CACHE_FAULTS=full`, in processes that import too.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest

from helpers import fresh

COMMAND = str(Path(sys.executable).with_name("tide-cache"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1"}
IS_FULL = os.environ.get("TIDE_CACHE_FAULTS") == "full"
LIMIT_S = 600
"""A busy machine takes minutes to import torch; nothing waits so long when all goes well."""
RUN = """
[student]
block_size = 8
max_length = 64

[optimizer]
lr = 2e-3
weight_decay = 0.01

[train]
steps = 3
global_batch = 8
micro_batch = 2
precision = "float32"
log_every = 1
checkpoint_every = 2
device = "cpu"
"""
SHAPE = "{ hidden_size = 33, intermediate_size = 47, num_layers = 1, num_heads = 1, num_kv_heads = 1, head_dim = 16 }"
WAYS = {
    "plain": [],
    "lora": ["student.lora.rank=2"],
    "offload": ["train.offload=optimizer"],
    "offload all": ["train.offload=optimizer+parameters"],
    "bfloat16": ["train.precision=bfloat16"],
    "own shape": [],
    "resume": [],
}
LOWEST_STAGE = {"offload": 1, "offload all": 3}
RISKY = [(3, 2, "plain")]
EVERY = [
    (stage, processes, way)
    for stage, processes, way in product(range(4), (1, 2), WAYS)
    if stage >= LOWEST_STAGE.get(way, 0) and (way != "lora" or find_spec("peft"))
]


full = pytest.mark.skipif(not IS_FULL, reason="takes half a minute: TIDE_CACHE_FAULTS=full")


@pytest.fixture
def command(tmp_path, tiny_teacher, tiny_cache, vocabularies):
    """Return a command that trains into a folder, and write its run file next to it."""

    def make(out, *options, own_shape=False, values=()):
        student = f"shape = {SHAPE}" if own_shape else f'model = "{tiny_teacher}"'
        text = RUN.replace("[student]", f'[student]\n{student}\ntokenizer = {{ path = "{vocabularies.second}" }}')
        (tmp_path / "run.toml").write_text(text)
        words = [COMMAND, "train", "run.toml", "--cache", str(tiny_cache), "--objective", "ce", "--objective", "kl"]
        for value in values:
            words += ["--set", value]
        return [*words, "--out", str(out), *options]

    return make


def run(command, cwd):
    start_and_wait = subprocess.run if IS_FULL else fresh.run
    return start_and_wait(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT_S)


@pytest.mark.parametrize(("stage", "processes", "way"), EVERY if IS_FULL else RISKY)
def test_a_run_starts_in_fresh_processes(command, tmp_path, stage, processes, way):
    out = tmp_path / "out"
    values = [f"train.zero_stage={stage}", *WAYS[way]]
    words = command(out, "--num-gpus", str(processes), own_shape=way == "own shape", values=values)
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    if way == "resume":  # the last step again, from the checkpoint before it
        (out / "model" / "model.safetensors").unlink()
        done = run([*words, "--resume"], tmp_path)
        assert done.returncode == 0, done.stderr
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert (out / "model" / "model.safetensors").exists()
    assert "Traceback" not in done.stderr


start = subprocess.Popen if IS_FULL else fresh.Process


class Tasks:
    """Processes as `srun` starts them: each on its own, told by variables which one it is."""

    def __init__(self, commands, folders):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_STEP_NUM_TASKS": str(len(commands))}
        self.processes = [
            start(
                words, cwd=folder, env=ENVIRONMENT | both | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for rank, (words, folder) in enumerate(zip(commands, folders, strict=True))
        ]  # fmt: skip

    def end(self):
        """Return exit codes and what was said, without progress."""
        try:
            said = [process.communicate(timeout=LIMIT_S)[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        lines = [[line for line in text.splitlines() if not line.startswith("20")] for text in said]
        return [process.returncode for process in self.processes], lines


def test_a_rank_that_fails_at_the_start_ends_the_others_with_its_message(command, tmp_path):
    good = command("out")
    codes, said = Tasks([good, [*good, "--cache", "missing"]], [tmp_path, tmp_path]).end()
    assert codes[0] == codes[1] == 3
    assert said[0][0].startswith("error: in process 1 of 2: ")
    assert "missing" in said[0][0]
    assert said[1][0].startswith("error in process 1 of 2: ")
    assert not (tmp_path / "out").exists()


@full
def test_a_folder_that_ranks_do_not_share_is_found_before_the_first_step(command, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    good = [word.replace("run.toml", "../run.toml") for word in command("out")]
    codes, said = Tasks([good, good], [tmp_path / "one", tmp_path / "two"]).end()
    assert codes == [2, 2]
    assert "give a folder that all machines share" in said[0][0]
    assert not (tmp_path / "one" / "out").exists(), "it is left as it was found"


@full
def test_a_rank_that_is_killed_ends_the_others_with_one_line(command, tmp_path):
    tasks = Tasks([command("out", values=["train.steps=5000", "train.checkpoint_every=0"])] * 2, [tmp_path] * 2)
    metrics, until_s = tmp_path / "out" / "metrics.jsonl", time.monotonic() + LIMIT_S
    while not metrics.exists() or not metrics.read_text():
        assert time.monotonic() < until_s
        time.sleep(0.05)
    tasks.processes[1].send_signal(signal.SIGKILL)
    codes, said = tasks.end()
    assert codes == [1, -signal.SIGKILL]
    assert len(said[0]) == 1
    assert said[0][0].startswith("error: in process 1 of 2: it has gone: killed, out of memory")
