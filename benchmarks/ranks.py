"""Why two ranks are not twice as fast as one: what a step takes on each, and on two processes that do not talk.

Every arm is one run of `tide_cache.train` on CPUs, one thread a process, in processes that wait between turns of a few
steps; the turns of all arms alternate, so that a load that comes and goes falls on all of them. Seconds of computing
are counted apart from seconds of waiting. Every second turn has a barrier before the first collective of gradients,
which tells waiting for the other rank from sending.
"""

import multiprocessing
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.options import Options
from benchmarks.processes import PRELOADED
from benchmarks.rank_process import Place, Step, take_turns
from benchmarks.scale import SHAPE, difference, read_metrics
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.demo.vocabularies import train_vocabularies

MICRO_BATCH = 4
PARTS = ("forward", "autograd", "objectives", "engine", "optimizer", "collectives", "small_sums", "between")


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        compared_with: The arm of one rank that takes the same steps.
        processes: How many take each step.
        talks: Whether they are ranks of one run; else each takes its part of the samples in a run of its own.
        global_batch: Samples of a step.
        turn: Steps of a turn.
        settings: Of `train`.
    """

    compared_with: str
    processes: int = 1
    talks: bool = True
    global_batch: int = 16
    turn: int = 3
    settings: dict[str, Any] = field(default_factory=dict)


PACKED = {"batching": "packed", "row_tokens": 256}
ARMS = {
    "one": Arm("one"),
    "apart": Arm("one", 2, talks=False),
    **{f"stage{stage}": Arm("one", 2, settings={"zero_stage": stage}) for stage in (0, 1, 2)},
    "one_packed": Arm("one_packed", settings=PACKED),
    "apart_packed": Arm("one_packed", 2, talks=False, settings=PACKED),
    "stage0_packed": Arm("one_packed", 2, settings=PACKED),
    "one_wide": Arm("one_wide", global_batch=64, turn=1),
    "stage0_wide": Arm("one_wide", 2, global_batch=64, turn=1),
}


@dataclass(frozen=True)
class Turn:
    """A turn of an arm.

    Attributes:
        wall_s: Seconds until its slowest process was done.
        of_processes: Steps of each.
        talks: Whether a step is over when the last of them has taken it.
    """

    wall_s: float
    of_processes: Sequence[Sequence[Step]]
    talks: bool = True

    @property
    def busy_s(self) -> float:
        """Seconds of computing that the turn takes on free cores: of every step those of the busiest rank."""
        if not self.talks:
            return max(sum(map(_busy_s, steps)) for steps in self.of_processes)
        return sum(max(map(_busy_s, of_step)) for of_step in zip(*self.of_processes, strict=True))


def _busy_s(step: Step) -> float:
    return step.process_cpu_s - step.loader_cpu_s


def run(options: Options) -> dict[str, float]:
    """Let all arms take turns."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        tokenizer = train_vocabularies(folder, seed=0).first
        write_tasks(folder / "tasks.jsonl", make_tasks(64, seed=1))
        started = {
            name: stack.enter_context(_started(folder, name, arm, tokenizer, options)) for name, arm in ARMS.items()
        }
        rounds = []
        for number in range(2 * options.repeats):
            names = list(ARMS)[:: 1 if number % 4 < 2 else -1]
            rounds.append({name: _take(started[name], ARMS[name], bool(number % 2)) for name in names})
        losses = {name: [line["loss"] for line in read_metrics(folder / name)] for name in ARMS if ARMS[name].talks}
    figures: dict[str, float] = {}
    for name, arm in ARMS.items():
        figures |= {f"{figure}_{name}": value for figure, value in figures_of(rounds, name, arm).items()}
        if arm.talks and arm.processes > 1:
            both = zip(losses[arm.compared_with], losses[name], strict=False)
            figures[f"loss_difference_{name}"] = difference(*map(list, zip(*both, strict=True)))
    return figures


def figures_of(rounds: Sequence[dict[str, Turn]], name: str, arm: Arm) -> dict[str, float]:
    """Return the figures of an arm: means of a process and step, and medians over rounds of what is compared.

    Args:
        rounds: Turns by arm; of every second one the waits were counted.
        name: Of the arm.
        arm: The arm.
    """
    turns = [turns[name] for turns in rounds]
    steps = [step for turn in turns for steps in turn.of_processes for step in steps]
    ones = [turns[arm.compared_with] for turns in rounds]
    figures = {f"cpu_ms_{part}": 1e3 * fmean(step.cpu_s[part] for step in steps) for part in PARTS}
    figures["cpu_ms_loader"] = 1e3 * fmean(step.loader_cpu_s for step in steps)
    figures["cpu_ms_all"] = 1e3 * fmean(step.process_cpu_s for step in steps)
    main = fmean(sum(step.cpu_s.values()) for step in steps)
    figures["cpu_ms_other_threads"] = figures["cpu_ms_all"] - figures["cpu_ms_loader"] - 1e3 * main
    figures["computed_tokens"] = fmean(step.computed for step in steps)
    figures["useful_tokens"] = fmean(step.tokens for step in steps)
    if arm.processes == 1:
        return figures
    sums: Counter[str] = sum((step.sent for step in steps), Counter())
    figures["mib_sent"] = sums["bytes"] / len(steps) / 2**20
    figures["collectives"] = sums["calls"] / len(steps)
    figures["speed_up"] = median(one.wall_s / turn.wall_s for one, turn in zip(ones, turns, strict=True))
    figures["speed_up_of_cpu"] = median(one.busy_s / turn.busy_s for one, turn in zip(ones, turns, strict=True))
    figures["busiest_tokens"] = fmean(
        max(step.computed for step in of_step) for turn in turns for of_step in zip(*turn.of_processes, strict=True)
    )
    counted = [step for turn in turns[1::2] for steps in turn.of_processes for step in steps]
    all_s = sum(sum(step.wall_s.values()) for step in counted)
    for figure, seconds in (
        ("waiting_share", [step.waited_s for step in counted]),
        ("sending_share", [step.wall_s["collectives"] for step in counted]),
    ):
        figures[figure] = sum(seconds) / all_s if all_s else 0.0
    return figures


def _take(connections: Sequence[Connection], arm: Arm, is_counted: bool) -> Turn:
    start_s = time.perf_counter()
    for connection in connections:
        connection.send((arm.turn, is_counted))
    of_processes = [connection.recv() for connection in connections]
    return Turn(time.perf_counter() - start_s, of_processes, arm.talks)


@contextmanager
def _started(folder: Path, name: str, arm: Arm, tokenizer: Path, options: Options) -> Iterator[list[Connection]]:
    """Start the processes of an arm, and have each take a turn that is not counted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "benchmarks.rank_process"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, connections = [], []
    for rank in range(arm.processes):
        ours, theirs = context.Pipe()
        talks = arm.talks and arm.processes > 1
        values = _run_values(folder, name if arm.talks else f"{name}-{rank}", arm, tokenizer, options)
        place = Place(rank, arm.processes, talks, port)
        said = folder / f"{name}-{rank}.txt"
        processes.append(context.Process(target=take_turns, args=(theirs, place, values, said)))
        processes[-1].start()
        theirs.close()
        connections.append(ours)
    try:
        for rank, connection in enumerate(connections):
            try:
                connection.recv()
            except EOFError:
                raise RuntimeError((folder / f"{name}-{rank}.txt").read_text(encoding="utf-8")) from None
        _take(connections, arm, is_counted=False)
        yield connections
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _run_values(folder: Path, name: str, arm: Arm, tokenizer: Path, options: Options) -> dict[str, Any]:
    return {
        "student": {"shape": SHAPE, "tokenizer": {"path": str(tokenizer)}, "block_size": 32, "max_length": 256},
        "data": {"corpus": {"spec": str(folder / "tasks.jsonl")}},
        "optimizer": {"lr": 1e-4},
        "train": {
            "out": str(folder / name), "steps": arm.turn * (2 * options.repeats + 2),
            "global_batch": arm.global_batch, "micro_batch": MICRO_BATCH, "precision": "float32", "device": "cpu",
            "log_every": 1, "checkpoint_every": 0, **arm.settings,
        },
    }  # fmt: skip
