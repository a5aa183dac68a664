"""Everything that needs a GPU: two calls for the first fifteen minutes, and pieces that take longer.

`--call first --out FILE` asks of every piece of CUDA code whether it runs and gives what a CPU gives, `--call second`
measures at the published shapes (`benchmarks/gpu/`); the file is written anew after every figure, and no work is begun
after `--seconds`. `--dry-run` tries both on a CPU, tiny. `benchmarks/gpu/prepare.sh` makes the wheels they need.

The pieces measure at the published shapes and end within eight minutes each.
`python -m benchmarks.gpu_suite --out benchmarks/results/gpu` runs all; `--list` names the pieces, `--piece NAME` runs
some, `--tiny` tries their code on a CPU. Weights are random, in bfloat16, made on the GPU: time and memory do not
depend on them. Each piece runs in a separate process, which is ended when its time is up, and writes one JSON file.
"""

import argparse
import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import amortise, inference, loader, online, step
from benchmarks.gpu import first, second
from benchmarks.gpu.growing import GrowingFile
from benchmarks.machine import describe_machine
from benchmarks.online import Setting
from benchmarks.published_shapes import LLADA2_MINI, STUDENT, WEDLM_8B
from benchmarks.students import PROXY, PROXY_VOCAB

BUDGET_S = 480
LENGTH, MICRO_BATCH = 512, 8
REAL = {
    "cross": Setting("cross", STUDENT, LLADA2_MINI, LENGTH, MICRO_BATCH, "bfloat16", "cuda"),
    "shared": Setting("shared", STUDENT, WEDLM_8B, LENGTH, MICRO_BATCH, "bfloat16", "cuda"),
}
_MODEL_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How large a piece is run: at real shapes on a GPU, or tiny on a CPU."""

    is_tiny: bool

    @property
    def repeats(self) -> int:
        """Timed rounds."""
        return 1 if self.is_tiny else 5

    def setting(self, pipeline: str) -> Setting:
        """A pipeline's models and sizes."""
        return online.tiny(REAL[pipeline]) if self.is_tiny else REAL[pipeline]

    @property
    def step_size(self) -> step.StepSize:
        """The student's step."""
        if self.is_tiny:
            return step.StepSize(PROXY, PROXY_VOCAB, length=64, micro_batch=2)
        model = {name: STUDENT[name] for name in _MODEL_FIELDS}
        return step.StepSize(model, STUDENT["vocab_size"], LENGTH, MICRO_BATCH, "bfloat16", "cuda")


Figures = dict[str, float]


def _step(pipeline: str, scale: Scale) -> Figures:
    names = tuple(name for name in step.NAMES if name.startswith(pipeline))
    return step.measure(scale.step_size, scale.repeats, names)


def _online(pipeline: str, scale: Scale) -> Figures:
    return online.measure(scale.setting(pipeline), scale.repeats)


def _amortise(pipeline: str, scale: Scale) -> Figures:
    return amortise.measure_parts(scale.setting(pipeline), scale.repeats)


def _loader(scale: Scale) -> Figures:
    size = scale.step_size
    return loader.stalls(size.trainee(), size.length, size.micro_batch, size.vocab_size, 4 if scale.is_tiny else 24)


def _inference(scale: Scale) -> Figures:
    return inference.measure(inference.InferenceSize() if scale.is_tiny else inference.PUBLISHED, scale.repeats)


PIECES: dict[str, Callable[[Scale], Figures]] = {
    "step_shared": lambda scale: _step("shared", scale),
    "step_cross": lambda scale: _step("cross", scale),
    "loader": _loader,
    "online_shared": lambda scale: _online("shared", scale),
    "online_cross": lambda scale: _online("cross", scale),
    "inference": _inference,
    "amortise_shared": lambda scale: _amortise("shared", scale),
    "amortise_cross": lambda scale: _amortise("cross", scale),
}
"""By name. `amortise` gives the parts of its formula for a pipeline; with both there, `amortise.json` is the whole."""


CALLS: dict[str, tuple[Callable[[GrowingFile, str], None], float]] = {
    "first": (first.run, 220.0),
    "second": (second.run, 280.0),
}
"""What each call does, and after how many seconds it begins nothing new: they end within four and five minutes."""


def main(arguments: Sequence[str]) -> int:
    """Run pieces.

    Args:
        arguments: Of the command line, without the program.

    Returns:
        Exit status: 1 when a piece failed or took too long.
    """
    given = _parser().parse_args(arguments)
    if given.list:
        print("\n".join(PIECES))
        return 0
    if not given.tiny and not torch.cuda.is_available():
        print("gpu_suite: skipped, found no CUDA GPU; --tiny tries the pieces on a CPU", file=sys.stderr)
        return 0
    if given.call is not None:
        return run_call(given.call, given.out, given.seconds or CALLS[given.call][1], given.tiny, arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    failed = [name for name in given.piece or PIECES if not run_piece(name, given.out, given.tiny, given.budget)]
    _write_total(given.out)
    if failed:
        print(f"gpu_suite: no figures of {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def run_call(name: str, path: Path, seconds: float, is_tiny: bool, arguments: Sequence[str]) -> int:
    """Take the figures of a call; gives 1 where one of them could not be had.

    Args:
        name: `first` or `second`.
        path: File of the figures; in a folder, one of the call's name.
        seconds: No work is begun after so long.
        is_tiny: On a CPU.
        arguments: Of the command line, for the file.
    """
    command = shlex.join(["python", "-m", "benchmarks.gpu_suite", *arguments])
    file = GrowingFile(path if path.suffix else path / f"{name}.json", command, seconds, _gpu())
    CALLS[name][0](file, "cpu" if is_tiny else "cuda")
    for fault, why in file.faults.items():
        print(f"gpu_suite: {fault}: {why.splitlines()[0]}", file=sys.stderr)
    if file.left_out:
        print(f"gpu_suite: no time for {', '.join(file.left_out)}", file=sys.stderr)
    return int(bool(file.faults))


def run_piece(name: str, out: Path, is_tiny: bool, budget_s: float) -> bool:
    """Run a piece in a separate process; return whether its figures were written.

    Args:
        name: The piece.
        out: Folder of the figures.
        is_tiny: Small models on a CPU.
        budget_s: Its process is ended after so long.
    """
    start_s = time.monotonic()
    process = multiprocessing.get_context("spawn").Process(target=write_piece, args=(name, out, is_tiny))
    process.start()
    process.join(budget_s)
    is_over = process.is_alive()
    if is_over:
        process.terminate()
        process.join()
    state = "out of time" if is_over else "done" if process.exitcode == 0 else f"failed, exit code {process.exitcode}"
    print(f"gpu_suite: {name}: {state} after {time.monotonic() - start_s:.0f} s", file=sys.stderr)
    return process.exitcode == 0


def write_piece(name: str, out: Path, is_tiny: bool) -> None:
    """Measure a piece and write its figures with the machine and the command."""
    if is_tiny:
        torch.set_num_threads(1)
    figures = PIECES[name](Scale(is_tiny))
    flags = ["--tiny"] if is_tiny else []
    command = shlex.join(["python", "-m", "benchmarks.gpu_suite", "--piece", name, *flags])
    record = {"figures": figures, "machine": describe_machine() | _gpu(), "command": command}
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}


def _write_total(out: Path) -> None:
    """Put the parts of both pipelines together where both are there."""
    parts = [out / f"amortise_{pipeline}.json" for pipeline in ("shared", "cross")]
    if not all(path.exists() for path in parts):
        return
    records = [json.loads(path.read_text(encoding="utf-8")) for path in parts]
    is_tiny = "--tiny" in records[0]["command"]
    micro_batch = Scale(is_tiny).setting("shared").micro_batch
    figures = amortise.totals(records[0]["figures"] | records[1]["figures"], micro_batch)
    total = records[0] | {"figures": figures, "command": "; ".join(record["command"] for record in records)}
    (out / "amortise.json").write_text(json.dumps(total, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description="Measure at published shapes.")
    parser.add_argument("--list", action="store_true", help="name the pieces")
    parser.add_argument("--piece", action="append", choices=PIECES, metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--call", choices=CALLS, help="the first minutes, in one file; see --seconds")
    parser.add_argument("--seconds", type=float, help="for a call: no work is begun later (first 220, second 280)")
    parser.add_argument("--tiny", "--dry-run", action="store_true", help="small models on a CPU, to try the code")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), metavar="FOLDER")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="for a piece (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
