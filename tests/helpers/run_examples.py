"""Runs as `tide-cache train` and `eval` leave them, written by hand."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tide_cache.training.metrics import StepMetrics


def metrics(step: int, loss: float, **changes: Any) -> dict[str, Any]:
    line = StepMetrics(
        step=step, epoch=step / 10, loss=loss, losses={"ce": loss - 0.5, "kl": 0.5},
        nll_by_t=[None, *[loss] * 9], learning_rate=1e-3, gradient_norm=None, trust=None, tokens_per_s=100.0,
        stall_share=0.01, peak_memory_bytes=1000, elapsed_s=step / 2,
    )  # fmt: skip
    return {**asdict(line), **changes}


def evaluation(nll: float, **changes: Any) -> dict[str, Any]:
    times = [{"t": t, "num_masked": 5, "nll": nll, "accuracy": 0.5} for t in (0.25, 0.75)]
    of_nll = {
        "context": "block", "seed": 0, "num_samples": 4, "num_supervised": 40, "times": times, "mean_nll": nll,
        "mean_accuracy": 0.5, "nats_per_byte": nll / 4,
    }  # fmt: skip
    of_nll |= {name: value for name, value in changes.items() if name in of_nll}
    document = {"dataset": "/home/somebody/data/held-out.jsonl", "max_length": 64, "block_size": 8, "agreement": None}
    return {**document, "remarks": [], "nll": of_nll, **{k: v for k, v in changes.items() if k not in of_nll}}


def task_results(checkpoint: str, **curves: list[tuple[float, float, float]]) -> dict[str, Any]:
    """Results of `eval-tasks --thresholds` on one task: threshold, tokens per forward and score by role."""
    results = {
        role: {
            f"sums@{threshold:g}": {
                "task": "sums", "score": score, "identity": {"threshold": threshold},
                "decoding": {"tokens_per_forward": parallel},
            }
            for threshold, parallel, score in points
        }
        for role, points in curves.items()
    }  # fmt: skip
    return {"checkpoint": checkpoint, "results": results}


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    kinds: tuple[str, ...] = ("ce", "kl"),
    lines: list[dict[str, Any]] | None = None,
    nll: float | None = None,
    finished: bool = True,
    **train: Any,
) -> Path:
    """Write a run folder; with `nll`, an evaluation too."""
    (folder / "model").mkdir(parents=True)
    objective = [{"kind": kind, "weight": 0.5 if kind == "kl" else 1.0} for kind in kinds]
    settings = {
        "data": {"cache": "/home/somebody/caches/shared", "seed": seed},
        "objective": objective,
        "train": {"out": str(folder), "seed": seed, **train},
    }
    (folder / "run.json").write_text(json.dumps(settings))
    lines = lines or [metrics(step, 10 - step / 10) for step in range(10, 60, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if nll is not None:
        (folder / "eval.json").write_text(json.dumps(evaluation(nll)))
    if finished:
        provenance = {"tide_cache_version": "0.1.0", "data": {"kind": "cache", "id": "abc"}, "cache_identity": {"x": 1}}
        (folder / "model" / "tide_cache.json").write_text(json.dumps(provenance | {"started_from": "random weights"}))
        (folder / "model" / "config.json").write_text("{}")
    return folder
