"""The second call, at most five minutes: published shapes on one GPU, with random weights, in bfloat16.

A step is timed by rounds, then profiled once. A capture is timed by how many masked positions it answers a second, and
profiled: `busy_share` is the share of the time in which the GPU computed, `launches` count kernels and copies.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks import loader
from benchmarks.gpu import heads
from benchmarks.gpu.growing import GrowingFile
from benchmarks.gpu.material import TINY, SameIds, capture_settings, samples
from benchmarks.gpu.watching import counted_waits, profiled
from benchmarks.material import write_cache
from benchmarks.published_shapes import LLADA2_MINI, STUDENT, WEDLM_8B, Config, random_backbone
from benchmarks.step import StepSize
from benchmarks.students import PROXY, PROXY_VOCAB, Trainee, objectives_of, shape_of
from tide_cache.config.presets import PRESETS
from tide_cache.config.settings import TeacherContext
from tide_cache.modeling.backbone import DTYPES
from tide_cache.shards import SignalKind
from tide_cache.teacher.capture import Teacher

STEPS = {
    "ce": "shared/bd3lm", "kl": "shared/kl", "tidal": "shared/tide-shared", "calm": "cross/calm",
    "chunk_kl": "cross/tide-chunk",
}  # fmt: skip
"""Presets, by the objective that each adds to the cross-entropy."""
_MODEL_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"
)  # fmt: skip


@dataclass(frozen=True)
class Capture:
    """A capture that is measured.

    Attributes:
        model: The teacher's configuration.
        context: What it is shown.
        kinds: What is kept.
        pipeline: `shared`: every chunk is one token; `cross`: one to three.
    """

    model: Config
    context: TeacherContext
    kinds: tuple[SignalKind, ...]
    pipeline: str


CAPTURES = {
    "llada2_truth": Capture(LLADA2_MINI, "full", ("truth",), "cross"),
    "llada2_chunks": Capture(LLADA2_MINI, "full", ("truth", "chunks"), "cross"),
    "wedlm_block": Capture(WEDLM_8B, "block", ("truth", "topk"), "shared"),
}


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    device: str

    @property
    def is_real(self) -> bool:
        """Whether shapes are the published ones."""
        return self.device != "cpu"

    @property
    def rounds(self) -> int:
        """Timed rounds."""
        return 8 if self.is_real else 1

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return 512 if self.is_real else 64

    @property
    def step(self) -> StepSize:
        """The student's step."""
        if not self.is_real:
            return StepSize(PROXY | {"num_hidden_layers": 1}, PROXY_VOCAB, self.length, 2)
        model = {name: STUDENT[name] for name in _MODEL_FIELDS}
        return StepSize(model, STUDENT["vocab_size"], self.length, 8, "bfloat16", self.device)

    def model(self, published: Config) -> Config:
        """A teacher's configuration."""
        return published if self.is_real else TINY[published["model_type"]]


def run(file: GrowingFile, device: str) -> None:
    """Take every figure.

    Args:
        file: Where they go.
        device: `cuda`, or `cpu` for a try, tiny.
    """
    size = Size(device)
    with tempfile.TemporaryDirectory() as folder:
        roots = {pipeline: Path(folder, pipeline) for pipeline in ("shared", "cross")}
        for pipeline, root in roots.items():
            write_cache(root, size.step.shape(pipeline))
        file.take("head", partial(heads.compare, size.device, size.rounds))
        trainee = size.step.trainee()
        for name, preset in STEPS.items():
            root = roots[preset.partition("/")[0]]
            file.take(f"step_{name}", partial(step, name, preset, root, trainee, size, file))
        file.take("loader", partial(stalls, trainee, size))
        file.take("head_cuts", partial(heads.cuts, size.device, size.rounds))
        del trainee
        torch.cuda.empty_cache()
        for name, wanted in CAPTURES.items():
            file.take(f"capture_{name}", partial(capture, name, wanted, Path(folder, name), size, file))


def stalls(trainee: Trainee, size: Size) -> dict[str, float]:
    """Return the share of steps that waits for data."""
    of = size.step
    return loader.stalls(trainee, of.length, of.micro_batch, of.vocab_size, 24 if size.is_real else 2)


def step(name: str, preset: str, root: Path, trainee: Trainee, size: Size, file: GrowingFile) -> dict[str, float]:
    """Time steps, count the waits of one, and profile one."""
    objectives = objectives_of(PRESETS[preset].objectives)
    batch = size.step.batch(root, preset)
    work = partial(trainee.step, batch, objectives)
    if size.is_real:
        torch.cuda.reset_peak_memory_stats()
    seconds = _rounds(work, size)
    with counted_waits(size.device) as waits:
        work()
    found = profiled(work, size.device)
    file.note(f"kernels_step_{name}", found.longest)
    file.note(f"waits_step_{name}", sorted(set(waits.places)))
    figures = {"step_s": median(seconds), "rows": len(batch[1].true_id_N), "waits": waits.count}
    figures |= {"busy_share": found.busy_share, "launches": found.launches}
    if size.is_real:
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def capture(name: str, wanted: Capture, root: Path, size: Size, file: GrowingFile) -> dict[str, float]:
    """Time the capture of some samples with a teacher, and profile it."""
    raw, num_samples, num_views = size.model(wanted.model), 32 if size.is_real else 2, 4
    vocab = raw["vocab_size"]
    pairs, views = samples(root, shape_of(wanted.pipeline, num_samples, size.length, vocab), num_views)
    settings = capture_settings(
        wanted.context, vocab, wanted.kinds, vocab if wanted.pipeline == "shared" else 0, 16384 if size.is_real else 512
    )
    backbone = random_backbone(raw, DTYPES["bfloat16" if size.is_real else "float32"], size.device)
    teacher = Teacher(backbone, settings, SameIds(vocab))

    def work() -> None:
        teacher.signals(pairs, views)

    positions = sum(int(view.is_teacher_masked_M.sum()) for of_sample in views for view in of_sample)
    seconds = _rounds(work, size)
    found = profiled(work, size.device)
    file.note(f"kernels_capture_{name}", found.longest)
    return {
        "positions_per_s": positions / median(seconds),
        "views_per_s": num_samples * num_views / median(seconds),
        "busy_share": found.busy_share,
        "launches_per_s": found.launches / found.seconds,
    }


def _rounds(work: Callable[[], Any], size: Size) -> list[float]:
    """Return the seconds of each round, after one that loads kernels."""
    work()
    seconds = []
    for _ in range(size.rounds):
        start_s = perf_counter()
        work()
        seconds.append(perf_counter() - start_s)
    return seconds
