"""The first call, at most four minutes: does every piece of CUDA code run, and give what a CPU gives?

Errors are relative to the largest number of the CPU's. `waits` count how often the host waited for the GPU, over the
whole of what is named; a capture waits once for each forward, by an event that is not counted, and a step never.
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import heads
from benchmarks.gpu.growing import GrowingFile
from benchmarks.gpu.material import CAPTURES, TINY, SameIds, capture_settings, samples, write_teacher
from benchmarks.gpu.watching import counted_waits
from benchmarks.material import Loading, write_cache
from benchmarks.published_shapes import random_backbone
from benchmarks.step import NAMES
from benchmarks.students import ALONE, objectives_of, shape_of, signals_of
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.presets import PRESETS
from tide_cache.config.train import TrainRun
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.demo.vocabularies import train_vocabularies
from tide_cache.evaluation.measuring import measure
from tide_cache.modeling.attention import try_flex
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.experts import grouped_experts, uses_grouped_gemm
from tide_cache.modeling.head import apply_head
from tide_cache.modeling.moving import pinned
from tide_cache.records import TeacherSignal
from tide_cache.student.model import Student
from tide_cache.teacher.capture import Teacher
from tide_cache.teacher.compdemo import compdemo_signals
from tide_cache.training.run import train
from tide_cache.training.step import train_step

LENGTH, MICRO_BATCH = 96, 2
ZERO: tuple[dict[str, Any], ...] = (
    {"zero_stage": 0}, {"zero_stage": 1}, {"zero_stage": 2}, {"zero_stage": 3},
    {"zero_stage": 2, "offload": "optimizer"},
    {"zero_stage": 3, "offload": "optimizer+parameters"},
)  # fmt: skip
Figures = dict[str, float]


def run(file: GrowingFile, device: str) -> None:
    """Take every figure.

    Args:
        file: Where they go.
        device: `cuda`, or `cpu` for a try.
    """
    file.take("import_without_toolkit", import_without_toolkit)
    file.take("products", partial(products, device))
    file.take("grouped", partial(grouped, device))
    file.take("head", partial(heads.agree, device, heads.SMALL if device != "cpu" else heads.DRY))
    if device != "cpu":
        file.take("flex", partial(flex, device))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, context in CAPTURES:
            file.take(f"capture_{name}_{context}", partial(capture, root / f"{name}_{context}", name, context, device))
        for preset in NAMES:
            file.take(f"step_{preset}", partial(step, root / preset.replace("/", "_"), preset, device, file))
        work = Pipeline(root / "pipeline", device)
        file.take("build", work.build)
        for options in ZERO:
            file.take("_".join(["train", *map(str, options.values())]), partial(work.train, options))
        file.take("resume", work.resume)
        file.take("eval", work.evaluate)


def import_without_toolkit() -> Figures:
    """Import the engine where no CUDA toolkit is to be found."""
    kept = [place for place in os.environ["PATH"].split(":") if not Path(place, "nvcc").exists()]
    hidden = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    code = "import torch.utils.cpp_extension as e; e.CUDA_HOME = None; import tide_cache.training.engine"
    result = subprocess.run(
        [sys.executable, "-c", code], env=hidden | {"PATH": ":".join(kept)}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(result.stderr[-1000:])
    return {"lines_on_stdout": len(result.stdout.splitlines())}


def products(device: str) -> Figures:
    """Multiply bfloat16 matrices into float32 ones, with no row too."""
    random = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(rows, 64, generator=random).bfloat16() for rows in (300, 1000))
    figures = {}
    for rows in (0, 1, 300):
        got = apply_head(hidden[:rows].to(device), head.to(device)).cpu()
        want = hidden[:rows].double() @ head.double().T
        assert got.shape == (rows, 1000)
        assert got.dtype == torch.float32
        figures[f"error_{rows}_rows"] = _error(got, want)
    return figures


def grouped(device: str) -> Figures:
    """Run experts of which one has no token, in bfloat16."""
    random = torch.Generator().manual_seed(0)
    x_ND, gate_up_EJD, down_EDI = (
        (torch.randn(*shape, generator=random) / 4).bfloat16() for shape in ((40, 32), (4, 64, 32), (4, 32, 32))
    )
    expert_NK = torch.randint(0, 3, (40, 2), generator=random)
    weight_NK = torch.rand(40, 2, generator=random)
    parts = (x_ND, expert_NK, weight_NK, gate_up_EJD, down_EDI)
    want = grouped_experts(*(part.float() if part.is_floating_point() else part for part in parts), in_one_gemm=False)
    here = [part.to(device) for part in parts]
    in_one = uses_grouped_gemm(here[0], here[4])
    got = grouped_experts(*here, in_one_gemm=in_one)
    return {"error": _error(got.float().cpu(), want), "is_one_kernel": float(in_one)}


def flex(device: str) -> Figures:
    """Compile FlexAttention, forward and backward, and compare it with sdpa."""
    if problem := try_flex(torch.device(device)):
        raise RuntimeError(problem)
    return {"works": 1.0}


def capture(root: Path, name: str, context: Any, device: str) -> Figures:
    """Capture all signals of a tiny model in both passes, and compare them with the CPU's."""
    raw = TINY[name]
    vocab, dtype = raw["vocab_size"], torch.bfloat16 if "num_experts" in raw else torch.float32
    shape = shape_of("cross", 4, LENGTH, vocab)
    pairs, views = samples(root, shape, 2)
    settings = capture_settings(context, vocab, ("truth", "topk", "chunks"), vocab, 1024)

    def said(model: Backbone) -> list[list[TeacherSignal]]:
        teacher = Teacher(model, settings, SameIds(vocab))
        answers = teacher.signals(pairs, views)
        return answers + ([] if context == "causal" else compdemo_signals(teacher, pairs, views, 0, 0.5))

    want = said(random_backbone(raw, dtype, "cpu"))
    here = random_backbone(raw, dtype, "cpu").to(device)
    said(here)
    with counted_waits(device) as waits:
        got = said(here)
    errors = [
        float(abs(one.truth_logprobs_N - other.truth_logprobs_N).max(initial=0))
        for of_got, of_want in zip(got, want, strict=True)
        for one, other in zip(of_got, of_want, strict=True)
    ]
    return {"error_nats": max(errors), "waits": float(waits.count)}


class _Bare:
    """As much of an engine as a step needs, without DeepSpeed, whose own waits are not ours."""

    def __init__(self, student: Student, device: torch.device) -> None:
        self.student, self.device = student, device

    def __call__(self, *arguments: Any) -> Any:
        return self.student(*arguments)

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Leave the gradient as it is."""


def step(root: Path, preset: str, device: str, file: GrowingFile) -> Figures:
    """Take a step of a preset, in float32, and compare loss and gradient with the CPU's."""
    raw = TINY["a2d-qwen3"]
    shape = shape_of(preset.partition("/")[0], 2 * MICRO_BATCH, LENGTH, raw["vocab_size"])
    objectives = objectives_of(PRESETS[preset].objectives)
    loading = Loading(root, write_cache(root, shape), signals_of(objectives))

    def taken(where: str) -> tuple[torch.Tensor, torch.Tensor, int]:
        batches = loading.batches(2, MICRO_BATCH)
        if where != "cpu":
            batches = [(pinned(batch), pinned(targets)) for batch, targets in batches]
        student = Student(random_backbone(raw, torch.float32, "cpu").to(where), 32, 64)
        engine = _Bare(student, torch.device(where))
        train_step(engine, batches, objectives, ALONE, 0.5)  # kernels are loaded, and masks are made
        student.zero_grad()
        with counted_waits(where) as waits:
            sums = train_step(engine, batches, objectives, ALONE, 0.5)
        if waits.places:
            file.note(f"waits_{preset}", waits.places)
        gradient = torch.cat([weight.grad.flatten() for weight in student.parameters() if weight.grad is not None])
        return sums.totals_O.cpu(), gradient.cpu(), waits.count

    (want, want_gradient, _), (got, got_gradient, waits) = taken("cpu"), taken(device)
    return {"loss_error": _error(got, want), "gradient_error": _error(got_gradient, want_gradient), "waits": waits}


class Pipeline:
    """A cache is built, and students learn from it, by the functions that the commands call."""

    def __init__(self, root: Path, device: str) -> None:
        """Take a folder that is made, and a device."""
        self._root, self._device = root, device

    def build(self) -> Figures:
        """Build a small cache from a teacher with random weights."""
        self._root.mkdir(parents=True)
        vocabularies = train_vocabularies(self._root / "vocab", 0)
        write_tasks(self._root / "tasks.jsonl", make_tasks(24, seed=3))
        write_teacher(self._root / "teacher", vocabularies.second, TINY["a2d-qwen3"])
        tokenizer = {"path": str(vocabularies.second)}
        values = {
            "corpus": {"spec": str(self._root / "tasks.jsonl")},
            "teacher": {"model": str(self._root / "teacher"), "max_length": 64, "device": self._device},
            "student": {"tokenizer": tokenizer, "max_length": 64, "block_size": 16},
            "views": {"num_views": 2},
            "signals": {"top_k": 8, "kinds": ["truth", "topk", "chunks"]},
            "build": {"out": str(self._root / "cache"), "samples_per_shard": 8},
        }
        build_cache(BuildRun.model_validate(values))
        return {"shards": len(list((self._root / "cache").rglob("*.parquet")))}

    def train(self, options: dict[str, Any]) -> Figures:
        """Train for a few steps in bfloat16."""
        return self._train("_".join(map(str, options.values())), 3, options)

    def resume(self) -> Figures:
        """Go on from the checkpoint of a run whose folder is as if it had been stopped."""
        self._train("resumed", 4, {"checkpoint_every": 2})
        for part in ("model", "metrics.jsonl"):
            target = self._root / "resumed" / part
            if target.is_dir():
                for path in target.iterdir():
                    path.unlink()
                target.rmdir()
        return self._train("resumed", 4, {"checkpoint_every": 2}, resume=True)

    def evaluate(self) -> Figures:
        """Measure the held-out NLL of a student."""
        found = measure(str(self._root / "resumed" / "model"), self._root / "tasks.jsonl", limit=8, device=self._device)
        assert found.nll.mean_nll is not None
        return {"nll": found.nll.mean_nll}

    def _train(self, name: str, steps: int, options: dict[str, Any], resume: bool = False) -> Figures:
        section = {
            "out": str(self._root / name), "steps": steps, "global_batch": 4, "micro_batch": 2, "log_every": 1,
            "precision": "bfloat16", "device": self._device, "checkpoint_every": 0,
        }  # fmt: skip
        values = {
            "student": {"model": str(self._root / "teacher"), "block_size": 16},
            "data": {"cache": str(self._root / "cache")},
            "objective": [{"kind": "ce"}, {"kind": "kl", "temperature": 1.0}],
            "optimizer": {"lr": 1e-3},
            "train": section | options,
        }
        last = train(TrainRun.model_validate(values), resume=resume).last
        assert last is not None
        return {"loss": last.loss}


def _error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest number; 0 where there is none."""
    if not want.numel():
        return 0.0
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30))
