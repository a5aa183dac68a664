"""One rank against two on this machine, each with one thread, and whether both see the samples in the same order.

Runs `tide-cache train --num-gpus N`: torchrun, DeepSpeed and gloo, as a user's run does. Speed is that of the steps
after the first third, as the run's own metrics tell it. Order is compared by losses: a step's loss depends on its
samples, not on who took which; and a run that is stopped on two ranks goes on there from the same place.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.options import Options
from tide_cache.config.train import TrainRun
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.demo.vocabularies import train_vocabularies
from tide_cache_cli.run_toml import run_toml

STEPS, GLOBAL_BATCH, MICRO_BATCH = 12, 16, 4
SHAPE = {
    "hidden_size": 192, "intermediate_size": 576, "num_layers": 4, "num_heads": 6, "num_kv_heads": 3, "head_dim": 32
}  # fmt: skip


def run(options: Options) -> dict[str, float]:
    """Train in turns on one and on two ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_vocabularies(folder, seed=0).first
        write_tasks(folder / "tasks.jsonl", make_tasks(64, seed=1))
        rates: dict[int, list[float]] = {1: [], 2: []}
        losses: dict[int, list[float]] = {}
        for repeat in range(options.repeats):
            for ranks, found in rates.items():
                out = folder / f"run-{repeat}-{ranks}"
                _train(_run_values(folder, tokenizer, out), ranks)
                lines = read_metrics(out)
                losses[ranks] = [line["loss"] for line in lines]
                found.append(median(line["tokens_per_s"] for line in lines[STEPS // 3 :]))
        resumed = folder / "resumed"
        _train(_run_values(folder, tokenizer, resumed), 2, stop_at=STEPS // 2)
        _train(_run_values(folder, tokenizer, resumed), 2, "--resume")
        again = [line["loss"] for line in read_metrics(resumed)]
    speed_up = median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    return {
        "tokens_per_s_1": median(rates[1]),
        "tokens_per_s_2": median(rates[2]),
        "speed_up": speed_up,
        "cores": float(os.cpu_count() or 1),
        "load_before": os.getloadavg()[0],
        "largest_loss_difference_1_2": difference(losses[1], losses[2]),
        "largest_loss_difference_resumed": difference(losses[2], again),
    }


def difference(first: list[float], second: list[float]) -> float:
    """Give the largest relative difference of two equally long lists."""
    return max(abs(a - b) / abs(a) for a, b in zip(first, second, strict=True))


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Read the lines of a run."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _run_values(folder: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    return {
        "student": {"shape": SHAPE, "tokenizer": {"path": str(tokenizer)}, "block_size": 32, "max_length": 256},
        "data": {"corpus": {"spec": str(folder / "tasks.jsonl")}},
        "optimizer": {"lr": 1e-4},
        "train": {
            "out": str(out), "steps": STEPS, "global_batch": GLOBAL_BATCH, "micro_batch": MICRO_BATCH,
            "precision": "float32", "device": "cpu", "log_every": 1, "checkpoint_every": STEPS // 2,
        },
    }  # fmt: skip


def _train(values: dict[str, Any], ranks: int, *flags: str, stop_at: int | None = None) -> None:
    """Run the command; with `stop_at`, kill it once that step is committed."""
    out = Path(values["train"]["out"])
    file = out.with_suffix(".toml")
    file.write_text(run_toml(TrainRun.model_validate(values)), encoding="utf-8")
    command = [sys.executable, "-m", "tide_cache_cli.main", "train", str(file), "--num-gpus", str(ranks), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if stop_at is None:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("checkpoints/*/committed.json")):
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    process.terminate()
    process.wait()
