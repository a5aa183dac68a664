"""The process of one local worker: `python -m` this file; shard numbers come in on stdin, answers leave on stdout.

Both are lines of JSON. The end of stdin means that nobody is waiting any more. The process then ends at once, whatever
it is doing, so no worker outlives the command that started it. Publication survives that as it survives a power cut.
"""

import json
import os
import sys
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from tide_cache.building.executors.answers import answer_of, attempted
from tide_cache.building.executors.phases import PhaseTeller
from tide_cache.building.shard import BuiltShard
from tide_cache.building.worker import ShardWorker
from tide_cache.config.build import BuildRun
from tide_cache.progress import listen


def serve() -> None:
    """Build the shards that stdin names, until it ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    task = json.loads(sys.stdin.readline())
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    worker: ShardWorker | None = None
    one_at_a_time = threading.Lock()

    def tell(document: dict[str, Any]) -> None:
        with one_at_a_time:  # the writer's thread answers for what it has committed
            os.write(answers, json.dumps(document).encode() + b"\n")

    listen(PhaseTeller(tell))

    def build() -> "Future[BuiltShard]":
        nonlocal worker
        if worker is None:
            worker = ShardWorker.elsewhere(BuildRun.model_validate(task["run"]), task["device"])
        return worker.build(shard, lambda count: tell({"views": count, "shard": shard}))

    while True:
        shard = int(lines.get())
        future = attempted(build)
        future.add_done_callback(lambda done: tell(answer_of(done.result)))


def _read(lines: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    serve()
