"""The process of one local worker: `python -m` this file; shard numbers come in on stdin, answers leave on stdout.

Both are lines of JSON. The end of stdin means that nobody is waiting any more: the process ends at once, whatever it
is doing, so no worker outlives the command that started it. Publication survives that as it does a power cut.
"""

import json
import os
import sys
import threading
from queue import SimpleQueue
from typing import Any

from tide_cache.building.executors.answers import answer_of
from tide_cache.building.shard import BuiltShard
from tide_cache.building.worker import ShardWorker
from tide_cache.config.build import BuildRun


def serve() -> None:
    """Build the shards that stdin names, until it ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    task = json.loads(sys.stdin.readline())
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    worker: ShardWorker | None = None

    def tell(document: dict[str, Any]) -> None:
        os.write(answers, json.dumps(document).encode() + b"\n")

    def build() -> BuiltShard:
        nonlocal worker
        if worker is None:
            worker = ShardWorker.elsewhere(BuildRun.model_validate(task["run"]), task["device"])
        return worker.build(shard, lambda count: tell({"views": count}))

    while True:
        shard = int(lines.get())
        tell(answer_of(build))


def _read(lines: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    serve()
