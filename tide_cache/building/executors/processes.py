"""Workers as processes on this machine, each with its own device."""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tide_cache.building.executors.answers import built_of
from tide_cache.building.executors.base import TICK_S, BuildLog
from tide_cache.building.executors.devices import worker_devices
from tide_cache.building.executors.phases import PhaseMirror
from tide_cache.building.executors.queue import ShardQueue
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.child import Child
from tide_cache.config.build import BuildRun
from tide_cache.modeling.backbone import require_means

STOP_TIMEOUT_S = 5.0
"""Time for workers to end after SIGTERM, before they are killed."""
WORKER = "tide_cache.building.executors.worker_process"


class LocalProcesses:
    """The executor of `--workers N`."""

    def __init__(self, num_workers: int) -> None:
        """Remember how many.

        Args:
            num_workers: Processes that build at the same time.
        """
        self._num_workers = num_workers

    def check(self, run: BuildRun) -> None:
        """Find a device for each worker, and what the teacher needs on it."""
        require_means(worker_devices(run.teacher, self._num_workers)[0], run.teacher.loading)

    def build(self, run: BuildRun, prepared: PreparedBuild, shards: Sequence[int], log: BuildLog) -> None:
        """Build shards; see `Executor`."""
        devices = worker_devices(run.teacher, self._num_workers)[: len(shards)]
        build_in_processes(WORKER, {"run": run.model_dump(mode="json")}, devices, shards, log)


def build_in_processes(
    module: str, task: Mapping[str, Any], devices: Sequence[str], shards: Sequence[int], log: BuildLog
) -> None:
    """Have processes of this machine build shards; none of them is left when this returns or raises.

    Args:
        module: What runs in each, as after `python -m`; calls `serve` of `worker_process`.
        task: What each gets besides its device, as plain values.
        devices: One process for each.
        shards: Numbers of the shards to build.
        log: Hears about every step.

    Raises:
        Interrupted: `log` asked for a stop.
        TideCacheError: A worker failed, or workers kept dying on a shard.
    """
    queue, selector, phases = ShardQueue(shards), selectors.DefaultSelector(), PhaseMirror()

    def start(device: str) -> None:
        process = _Process(module, {**task, "device": device}, len(devices))
        selector.register(process.answers, selectors.EVENT_READ, process)
        phases.start(process)
        process.give(queue)

    try:
        for device in devices:
            start(device)
        while selector.get_map():
            for key, _ in selector.select(TICK_S):
                process: _Process = key.data
                for answer in process.read():
                    if not phases.hear(process, answer):
                        _hear(process, answer, queue, log)
                if process.has_ended:
                    selector.unregister(process.answers)
                    phases.forget(process)
                    how = _how(process.bury())
                    if process.in_hand:
                        log.on_views(-sum(process.in_hand.values()))
                        for shard in reversed(process.in_hand):
                            queue.put_back(shard, how)
                        start(process.device)
            log.on_views(0)
    finally:
        phases.close()
        _stop(key.data for key in list(selector.get_map().values()))
        selector.close()


class _Process(Child):
    """One worker, and what it is working on.

    Attributes:
        device: Where its teacher is.
        in_hand: Shards that it builds, the oldest first, and how many of their views it has captured.
    """

    def __init__(self, module: str, task: Mapping[str, Any], num_workers: int) -> None:
        self.device: str = task["device"]
        self.in_hand: dict[int, int] = {}
        self._num_workers = num_workers
        super().__init__([module], {}, max(1, len(os.sched_getaffinity(0)) // num_workers))
        self.send(json.dumps(task))

    def give(self, queue: ShardQueue) -> None:
        """Hand over more shards, or tell the worker to end."""
        while len(self.in_hand) < queue.share(self._num_workers) and (shard := queue.take()) is not None:
            self.in_hand[shard] = 0
            self.send(json.dumps(shard))
        if not self.in_hand:
            self.send_home()


def _how(code: int) -> str:
    """Return how a process ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _hear(process: _Process, answer: dict[str, Any], queue: ShardQueue, log: BuildLog) -> None:
    if "views" in answer:
        process.in_hand[answer["shard"]] += answer["views"]
        log.on_views(answer["views"])
    else:
        built = built_of(answer)
        del process.in_hand[built.shard]
        process.give(queue)
        log.on_shard(built)


def _stop(processes: Iterable[_Process]) -> None:
    """End workers that are still at work; nothing half-done was published."""
    left = list(processes)
    for process in left:
        process.popen.terminate()
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    for process in left:
        try:
            process.popen.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.popen.kill()
        process.bury()
