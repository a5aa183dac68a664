"""One process of `ranks`: it trains as a user's run does, but steps when it is told to, and counts what a step takes.

The hooks are timers around calls of the trainer, of DeepSpeed and of `torch.distributed`. Seconds of a call within
another one count for the inner one only.
"""

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tide_cache.config.train import TrainRun
from tide_cache.loading.micro_batches import step_micro_batches
from tide_cache.training import run as trainer

COLLECTIVES = ("all_reduce", "reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")
OF_THE_ENGINE = ("autograd", "engine")
"""Parts in which a collective moves gradients, weights or their norm; others are small sums of the trainer."""


@dataclass(frozen=True)
class Place:
    """What a process is in its arm.

    Attributes:
        rank: Its number.
        share_of: Parts that a step's samples are dealt to.
        talks: Whether the processes of the arm are one run; else each steps alone with its part of the samples.
        port: Where they meet.
    """

    rank: int
    share_of: int
    talks: bool
    port: int


@dataclass
class Step:
    """What a step took of one process.

    Attributes:
        wall_s: Seconds of the thread that trains, by part.
        cpu_s: The same in seconds of computing.
        process_cpu_s: Of all threads.
        loader_cpu_s: Of the thread that loads ahead.
        waited_s: Of a counted step: until the other rank was there for the first collective of gradients.
        sent: Bytes handed to collectives, and their calls.
        tokens: Of its samples.
        computed: Of its forwards, with padding.
    """

    wall_s: Counter[str] = field(default_factory=Counter)
    cpu_s: Counter[str] = field(default_factory=Counter)
    process_cpu_s: float = 0.0
    loader_cpu_s: float = 0.0
    waited_s: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    computed: int = 0


@dataclass(frozen=True)
class Waited:
    """A collective under way.

    Attributes:
        wait: Waits for it.
    """

    wait: Callable[[], Any]


class Counters:
    """Timers of one process."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.is_counted = False
        self._parts = ["between"]
        self._begun_s = self._clocks()
        self._step = Step()
        self._process_s = time.process_time()
        self._loaded_s = self._loader_s = 0.0
        self._barrier = dist.barrier

    def close_step(self) -> None:
        """End a step and begin the next one."""
        self._close_part()
        process_s = time.process_time()
        self._step.process_cpu_s, self._process_s = process_s - self._process_s, process_s
        self._step.loader_cpu_s, self._loaded_s = self._loader_s - self._loaded_s, self._loader_s
        self.steps.append(self._step)
        self._step = Step()

    def restart(self) -> None:
        """Forget what was counted, as the time between two turns."""
        self.close_step()
        self.steps.clear()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call with its seconds counted for a part."""

        @functools.wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self._within(part):
                return call(*arguments, **named)

        return timed

    def collective(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a collective with its seconds, bytes and, in counted turns, its wait for the other rank."""

        @functools.wraps(call)
        def counted(*arguments: Any, **named: Any) -> Any:
            if self._parts[-1] not in OF_THE_ENGINE:
                with self._within("small_sums"):
                    return call(*arguments, **named)
            tensors = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
            self._step.sent["bytes"] += max(tensor.nbytes for tensor in tensors)
            self._step.sent["calls"] += 1
            self._step.sent[kind] += 1
            if self.is_counted and self._step.sent["calls"] == 1:
                with self._within("waiting"):
                    start_s = time.perf_counter()
                    self._barrier()
                    self._step.waited_s = time.perf_counter() - start_s
            with self._within("collectives"):
                work = call(*arguments, **named)
            return None if work is None else Waited(self.timed("collectives", work.wait))

        return counted

    def count_batches(self, batches: Any) -> None:
        """Count the tokens of a step's micro-batches."""
        self._step.tokens += sum(int(batch.is_real_BL.sum()) for batch, _ in batches)
        self._step.computed += sum(batch.is_real_BL.numel() for batch, _ in batches)

    def loads(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the loader's call with its seconds of computing counted, in whatever thread."""

        @functools.wraps(call)
        def counted(*arguments: Any) -> Any:
            start_s = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self._loader_s += time.thread_time() - start_s

        return counted

    @contextmanager
    def _within(self, part: str) -> Iterator[None]:
        self._close_part()
        self._parts.append(part)
        try:
            yield
        finally:
            self._close_part()
            self._parts.pop()

    def _close_part(self) -> None:
        """Count the seconds since the last call for the part that they were spent in."""
        wall_s, cpu_s = self._clocks()
        self._step.wall_s[self._parts[-1]] += wall_s - self._begun_s[0]
        self._step.cpu_s[self._parts[-1]] += cpu_s - self._begun_s[1]
        self._begun_s = wall_s, cpu_s

    def _clocks(self) -> tuple[float, float]:
        return time.perf_counter(), time.thread_time()


def take_turns(connection: Connection, place: Place, values: dict[str, Any], said: Path) -> None:
    """Train; before each turn wait for (steps, whether waits are counted), after it send the steps.

    Args:
        connection: To whoever tells when.
        place: Of this process.
        values: The run file; its global batch is that of the whole arm.
        said: File for what the run says.
    """
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if place.talks:
        size = str(place.share_of)
        os.environ |= {"RANK": str(place.rank), "LOCAL_RANK": str(place.rank), "WORLD_SIZE": size}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.port)}
    whole, counters = TrainRun.model_validate(values), Counters()
    train = whole.train
    if not place.talks:
        train = train.model_copy(update={"global_batch": train.global_batch // place.share_of})
    _hook(counters, whole, place, connection)
    trainer.train(whole.model_copy(update={"train": train}))


def _hook(counters: Counters, whole: TrainRun, place: Place, connection: Connection) -> None:
    """Put timers around calls of this process."""
    module: Any = trainer
    for name in COLLECTIVES:
        setattr(dist, name, counters.collective(name, getattr(dist, name)))
    torch.autograd.backward = counters.timed("autograd", torch.autograd.backward)

    def load(source: Any, order: Any, layout: Any, config: Any, step: int, rank: int, world: int) -> Any:
        return list(step_micro_batches(source, order, layout, whole.train, step, place.rank, place.share_of))

    module.step_micro_batches = counters.loads(load)
    make_engine, train_step, step_of_loop = module.make_engine, module.train_step, module._Loop._step

    def hooked_engine(*arguments: Any) -> Any:
        engine = make_engine(*arguments)
        optimizer = engine.optimizer
        optimizer = getattr(optimizer, "optimizer", optimizer)
        engine.module.forward = counters.timed("forward", engine.module.forward)
        optimizer.step = counters.timed("optimizer", optimizer.step)
        for name in ("forward", "backward", "step"):
            setattr(engine, name, counters.timed("engine", getattr(engine, name)))
        return engine

    def counted_step(engine: Any, batches: Any, *arguments: Any) -> Any:
        counters.count_batches(batches)
        return train_step(engine, batches, *arguments)

    left = 0

    def gated_step(loop: Any, *arguments: Any) -> Any:
        nonlocal left
        counters.close_step()
        if left == 0:
            connection.send(counters.steps)
            left, counters.is_counted = connection.recv()
            counters.restart()
        left -= 1
        return step_of_loop(loop, *arguments)

    module.make_engine = hooked_engine
    module.train_step = counters.timed("objectives", counted_step)
    module._Loop._step = gated_step
