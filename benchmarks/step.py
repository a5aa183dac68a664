"""What a distillation step costs compared with a step of cross-entropy alone: same student, same batches.

Time: every preset takes its turn in each round, and is compared within the round. Memory: each preset steps in a
separate process, whose peak is read; on a GPU the allocator's peak.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.material import Loading, Shape, write_cache
from benchmarks.options import Options
from benchmarks.processes import in_own_process, peak_rss
from benchmarks.students import PROXY, PROXY_VOCAB, Trainee, objectives_of, qwen3_config, shape_of, signals_of
from benchmarks.timing import Timings
from tide_cache.config.presets import PRESETS
from tide_cache.manifest import Manifest
from tide_cache.records import StudentBatch, Targets

NO_CACHE_FOR = {"shared/tide-chunk", "cross/kl"}
"""The made-up caches hold equal tokens where tokenizers are shared, and chunks where they are not."""
NAMES = tuple(name for name in PRESETS if name not in NO_CACHE_FOR)
LENGTH, MICRO_BATCH, MEMORY_STEPS = 256, 4, 3
Batch = tuple[StudentBatch, Targets]


@dataclass(frozen=True)
class StepSize:
    """What is stepped, and where.

    Attributes:
        model: Fields of the student's configuration.
        vocab_size: Of the student.
        length: Tokens of a sample.
        micro_batch: Samples of a step.
        precision: Of the run.
        device: Where it runs.
        activation_checkpointing: As in a run file.
    """

    model: dict[str, Any]
    vocab_size: int = PROXY_VOCAB
    length: int = LENGTH
    micro_batch: int = MICRO_BATCH
    precision: str = "float32"
    device: str = "cpu"
    activation_checkpointing: bool = False

    def shape(self, pipeline: str) -> Shape:
        """Of the cache of a pipeline: two batches."""
        return shape_of(pipeline, 2 * self.micro_batch, self.length, self.vocab_size)

    def trainee(self) -> Trainee:
        """Build the student."""
        config = qwen3_config(self.vocab_size, **self.model)
        how = (self.shape("shared").block_size, self.micro_batch, self.precision, self.device)
        return Trainee(config, *how, activation_checkpointing=self.activation_checkpointing)

    def batch(self, root: Path, preset: str) -> Batch:
        """Load a batch as a run with the preset does: only what it needs is decoded."""
        objectives = objectives_of(PRESETS[preset].objectives)
        return Loading(root, Manifest.load(root), signals_of(objectives)).batches(1, self.micro_batch)[0]


def run(options: Options) -> dict[str, float]:
    """Compare on two CPU cores, with a student whose head has the published student's share of the weights."""
    torch.set_num_threads(1)
    return measure(StepSize(PROXY), options.repeats, NAMES)


def measure(size: StepSize, repeats: int, names: tuple[str, ...]) -> dict[str, float]:
    """Return ratios of time and memory to the cross-entropy alone, for each preset.

    Args:
        size: What is stepped.
        repeats: Timed rounds.
        names: Presets; the pipelines' `bd3lm` is what they are compared with.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipelines = {pipeline: Path(folder, pipeline) for pipeline in ("shared", "cross")}
        for pipeline, root in pipelines.items():
            write_cache(root, size.shape(pipeline))
        roots = {name: pipelines[name.partition("/")[0]] for name in names}
        figures = _time_ratios(size, repeats, roots)
        return figures | _memory_ratios(size, roots)


def _time_ratios(size: StepSize, repeats: int, roots: dict[str, Path]) -> dict[str, float]:
    trainee = size.trainee()
    work = {}
    for name, root in roots.items():
        batch, objectives = size.batch(root, name), objectives_of(PRESETS[name].objectives)
        work[name] = partial(trainee.step, batch, objectives)
    for pipeline in {
        name.partition("/")[0] for name in roots
    }:  # once more: how far two times of the same thing are apart
        work[f"{pipeline}/again"] = work[f"{pipeline}/bd3lm"]
    timings = Timings(work, repeats, of_cpu=size.device == "cpu")
    compared = [name for name in work if not name.endswith("/bd3lm")]
    figures = {f"{name}_time_ratio": timings.ratio(name, _baseline(name)) for name in compared}
    return figures | {f"{name}_step_s": 1 / timings.rate(name, 1) for name in work if name.endswith("/bd3lm")}


def _memory_ratios(size: StepSize, roots: dict[str, Path]) -> dict[str, float]:
    peaks = {name: in_own_process(peak_memory, size, root, name) for name, root in roots.items()}
    figures = {f"{name}_peak_mib": peak / 2**20 for name, peak in peaks.items()}
    compared = [name for name in roots if not name.endswith("/bd3lm")]
    return figures | {f"{name}_memory_ratio": peaks[name] / peaks[_baseline(name)] for name in compared}


def _baseline(name: str) -> str:
    return f"{name.partition('/')[0]}/bd3lm"


def peak_memory(size: StepSize, root: Path, preset: str) -> int:
    """Bytes at the peak of some steps: of this whole process, or of its GPU."""
    torch.set_num_threads(1)
    batch, objectives = size.batch(root, preset), objectives_of(PRESETS[preset].objectives)
    trainee = size.trainee()
    if size.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(MEMORY_STEPS):
        trainee.step(batch, objectives)
    if size.device != "cpu":
        return torch.cuda.max_memory_allocated()
    return peak_rss()
