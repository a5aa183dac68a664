"""Where metrics of a run go besides metrics.jsonl: TensorBoard or Weights & Biases, both optional extras."""

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tide_cache.config.train import TrainRun
from tide_cache.training.metrics import MetricsFile, StepMetrics

RUN_ID = "wandb-run-id"
"""File in the run's folder, by which a resumed run goes on in the same chart."""


class Reporter(Protocol):
    """Takes the figures of logged steps."""

    def write(self, metrics: StepMetrics) -> None:
        """Take one line."""

    def close(self) -> None:
        """Send what is still held back; nothing may be written afterwards."""


def reporter_faults(report_to: str) -> list[str]:
    """List what is not installed for `train.report_to`; nothing is loaded."""
    if report_to == "none" or find_spec(report_to) is not None:
        return []
    return [
        f"train.report_to = {report_to!r}: {report_to} is not installed; pip install 'tide-cache[{report_to}]', or use "
        "'none': metrics.jsonl is written anyway"
    ]


def open_reporters(run: TrainRun, resumed_at: int) -> list[Reporter]:
    """Open metrics.jsonl and what `train.report_to` names.

    Args:
        run: The run file.
        resumed_at: Steps taken before; figures of later ones are dropped.
    """
    out = run.train.out
    reporters: list[Reporter] = [MetricsFile(out / "metrics.jsonl", resumed_at)]
    if run.train.report_to == "tensorboard":
        reporters.append(TensorBoard(out / "tensorboard", resumed_at))
    if run.train.report_to == "wandb":
        reporters.append(WeightsAndBiases(run, resumed_at))
    return reporters


class TensorBoard:
    """Writes event files for TensorBoard."""

    def __init__(self, folder: Path, resumed_at: int):
        from torch.utils.tensorboard import SummaryWriter

        options = {"purge_step": resumed_at + 1} if resumed_at else {}
        self._writer: Any = SummaryWriter(str(folder), **options)

    def write(self, metrics: StepMetrics) -> None:
        """Write one point for every figure."""
        for name, value in scalars(metrics):
            self._writer.add_scalar(name, value, metrics.step)

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


class WeightsAndBiases:
    """Logs to wandb, in its online or offline mode as WANDB_MODE says."""

    def __init__(self, run: TrainRun, resumed_at: int):
        wandb: Any = importlib.import_module("wandb")
        out = run.train.out
        known = out / RUN_ID
        same = {"id": known.read_text(), "resume": "allow"} if resumed_at and known.exists() else {}
        self._run: Any = wandb.init(
            project="tide-cache", name=out.name, dir=str(out), config=run.model_dump(mode="json"), **same
        )
        known.write_text(self._run.id)

    def write(self, metrics: StepMetrics) -> None:
        """Log all figures of a step at once."""
        self._run.log(dict(scalars(metrics)), step=metrics.step)

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


def scalars(metrics: StepMetrics) -> Iterator[tuple[str, float]]:
    """Yield every figure of a line by a flat name; unknown ones are left out."""
    for name in ("loss", "learning_rate", "gradient_norm", "trust", "tokens_per_s", "stall_share", "peak_memory_bytes"):
        value = getattr(metrics, name)
        if value is not None:
            yield name, float(value)
    for name, mean in metrics.losses.items():
        yield f"losses/{name}", mean
    for bucket, nll in enumerate(metrics.nll_by_t):
        if nll is not None:
            yield f"nll_by_t/{bucket / len(metrics.nll_by_t):.1f}", nll
