"""The process of one local worker: `python -m` this file; shard numbers come in on stdin, answers leave on stdout.

Both are lines of JSON. The end of stdin means that nobody is waiting any more. The process then ends at once, whatever
it is doing, so no worker outlives the command that started it. Publication survives that as it survives a power cut.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Protocol

from tide_cache.building.executors.answers import answer_of, attempted
from tide_cache.building.executors.phases import PhaseTeller
from tide_cache.building.shard import BuiltShard
from tide_cache.building.worker import ShardWorker
from tide_cache.config.build import BuildRun
from tide_cache.progress import listen


class Worker(Protocol):
    """Builds shards on one device."""

    def build(self, shard: int, on_views: Callable[[int], None]) -> "Future[BuiltShard]":
        """Build a shard, and count what is done of it."""


def serve(make_worker: Callable[[dict[str, Any]], Worker]) -> None:
    """Build the shards that stdin names, until it ends.

    Args:
        make_worker: Makes a worker of its task, when the first shard comes.
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    task = json.loads(sys.stdin.readline())
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    worker: Worker | None = None
    one_at_a_time = threading.Lock()

    def tell(document: dict[str, Any]) -> None:
        with one_at_a_time:  # the writer's thread answers for what it has committed
            os.write(answers, json.dumps(document).encode() + b"\n")

    listen(PhaseTeller(tell))

    def build() -> "Future[BuiltShard]":
        nonlocal worker
        if worker is None:
            worker = make_worker(task)
        return worker.build(shard, count)

    def count(number: int) -> None:
        if number:  # 0 asks whether to stop, and whoever wants that ends this process
            tell({"views": number, "shard": shard})

    while True:
        shard = int(lines.get())
        future = attempted(build)
        future.add_done_callback(lambda done: tell(answer_of(done.result)))


def _read(lines: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _shard_worker(task: dict[str, Any]) -> Worker:
    return ShardWorker.elsewhere(BuildRun.model_validate(task["run"]), task["device"])


if __name__ == "__main__":
    serve(_shard_worker)
