"""One rank against two on this machine, each with one thread, and whether both see the samples in the same order.

Runs `tide-cache train --num-gpus N`: torchrun, DeepSpeed and gloo, as a user's run does. Speed is that of the steps
after the first third, as the run's own metrics tell it. Two runs apart, at the same time and without a word between
them, say what the machine itself has to give to a second process.

Order is compared by what is masked in each step on one to four ranks, and by losses: a step's loss depends on its
samples, not on who took which; and a run that is stopped on two ranks goes on there from the same place. Memory is that
of loading whole epochs from a cache, and from one ten times as large.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from benchmarks.material import VIEWS, Loading, Shape, write_cache
from benchmarks.options import Options
from benchmarks.processes import in_own_process, peak_rss
from tide_cache.config.sections import BatchConfig
from tide_cache.config.settings import Batching
from tide_cache.config.train import TrainRun
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.demo.vocabularies import train_vocabularies
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.micro_batches import step_micro_batches
from tide_cache.loading.order import LaneOrder
from tide_cache.loading.source import PlainSource
from tide_cache.manifest import Manifest
from tide_cache.records import SampleId, SamplePair
from tide_cache_cli.run_toml import run_toml

STEPS, GLOBAL_BATCH, MICRO_BATCH = 12, 16, 4
RSS_SAMPLES, HELD_GROUPS = 1024, 8
"""Memory: samples of the smaller cache, 16 row groups, of which half are held at a time; training holds 32."""
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
        apart: list[float] = []
        for repeat in range(options.repeats):
            for ranks, found in rates.items():
                out = folder / f"run-{repeat}-{ranks}"
                _train(_run_values(folder, tokenizer, out), ranks)
                lines = read_metrics(out)
                losses[ranks] = [line["loss"] for line in lines]
                found.append(_rate(lines))
            apart.append(sum(_train_apart(folder, tokenizer, repeat)))
        resumed = folder / "resumed"
        _train(_run_values(folder, tokenizer, resumed), 2, stop_at=STEPS // 2)
        _train(_run_values(folder, tokenizer, resumed), 2, "--resume")
        again = [line["loss"] for line in read_metrics(resumed)]
        figures = memory_figures(folder)
    return figures | {
        "tokens_per_s_1": median(rates[1]),
        "tokens_per_s_2": median(rates[2]),
        "tokens_per_s_two_apart": median(apart),
        "speed_up": median(two / one for one, two in zip(rates[1], rates[2], strict=True)),
        "speed_up_two_apart": median(two / one for one, two in zip(rates[1], apart, strict=True)),
        "speed_up_by_two_apart": median(two / both for two, both in zip(rates[2], apart, strict=True)),
        "order_identical": float(is_order_identical()),
        "cores": float(os.cpu_count() or 1),
        "load_before": os.getloadavg()[0],
        "largest_loss_difference_1_2": difference(losses[1], losses[2]),
        "largest_loss_difference_resumed": difference(losses[2], again),
    }


def is_order_identical() -> bool:
    """Tell whether each step masks the same tokens on one to four ranks, however samples share forwards."""
    samples = make_pairs(60)
    source, layout = PlainSource(samples, VIEWS), BatchLayout(mask_id=1, pad_id=0, block_size=8)
    order = LaneOrder(source.groups, "scale", seed=0, lanes=48)
    for batching in get_args(Batching):
        config = BatchConfig(global_batch=24, micro_batch=2, batching=batching, row_tokens=128)
        for step in range(6):  # more than two epochs
            found = [
                sorted(
                    row
                    for rank in range(world)
                    for _, targets in step_micro_batches(source, order, layout, config, step, rank, world)
                    for row in zip(targets.t_N.tolist(), targets.true_id_N.tolist(), strict=True)
                )
                for world in (1, 2, 3, 4)
            ]
            if any(one != found[0] for one in found):
                return False
    return True


def make_pairs(count: int) -> list[SamplePair]:
    """Make samples of 16 to 95 tokens, all their own."""
    random = np.random.default_rng(0)
    pairs = []
    for number, length in enumerate(random.integers(16, 96, count).tolist()):
        ids_L, spots = random.integers(2, 1 << 20, length).astype(np.int32), np.arange(length, dtype=np.int32)
        chunks_C4 = np.stack([spots, spots + 1, spots, spots + 1], axis=1)
        pairs.append(SamplePair(SampleId(str(number)), ids_L, np.ones(length, np.bool_), ids_L, chunks_C4))
    return pairs


def memory_figures(folder: Path) -> dict[str, float]:
    """Return peaks of loading two epochs of a cache, and of one ten times as large.

    Args:
        folder: Where the caches go.
    """
    peaks = {}
    for name, times in (("1x", 1), ("10x", 10)):
        write_cache(folder / name, Shape("shared", RSS_SAMPLES * times, student_length=64, prompt_length=8, top_k=16))
        peaks[name] = in_own_process(peak_of_loading, folder / name)
    return {f"rss_mib_{name}": peak / 2**20 for name, peak in peaks.items()} | {
        "rss_ratio_10x": peaks["10x"] / peaks["1x"]
    }


def peak_of_loading(root: Path) -> int:
    """Bytes at the peak of a process that loads two epochs."""
    loading = Loading(root, Manifest.load(root))
    source, layout = CacheSource(root, loading.manifest, held_groups=HELD_GROUPS), loading.layout()
    order = LaneOrder(source.groups, "scale", 0, HELD_GROUPS)
    config = BatchConfig(global_batch=64, micro_batch=8)
    for step in range(2 * order.num_samples // config.global_batch):
        for _ in step_micro_batches(source, order, layout, config, step, 0, 1):
            continue
    return peak_rss()


def _rate(lines: list[dict[str, Any]]) -> float:
    """Tokens per second of the median step after the first third."""
    return median(line["tokens_per_s"] for line in lines[STEPS // 3 :])


def _train_apart(folder: Path, tokenizer: Path, repeat: int) -> list[float]:
    """Rates of two runs of one rank each, at the same time."""
    outs = [folder / f"run-{repeat}-apart-{number}" for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda out: _train(_run_values(folder, tokenizer, out), 1), outs))
    return [_rate(read_metrics(out)) for out in outs]


def difference(first: list[float], second: list[float]) -> float:
    """Return the largest relative difference of two equally long lists."""
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
