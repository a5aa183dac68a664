"""A process that runs jobs: each comes as a line on stdin, its progress and end go to stdout as lines.

A failed job ends the process, so that the next one begins in a new process. The end of stdin means that the sweep's
process has ended: the current job then stops as if by SIGTERM, with a checkpoint.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from queue import SimpleQueue

from tide_cache.errors import TideCacheError
from tide_cache.sweep.arms import Job
from tide_cache.training.metrics import OnStep

Work = Callable[[Job, OnStep], object]
"""Trains a student, and does whatever else the caller wants."""


def find_work(name: str) -> Work:
    """Return the function that runs a job, by its module and name: `tide_cache.sweep.job:run_job`."""
    module, _, function = name.partition(":")
    work: Work = getattr(import_module(module), function)
    return work


def main(work: str) -> int:
    """Run jobs until stdin ends or one fails; the exit code says which.

    Args:
        work: What runs a job; see `find_work`.
    """
    answers = os.dup(1)
    lines: SimpleQueue[bytes] = SimpleQueue()
    is_busy = threading.Event()
    threading.Thread(target=_read, args=(lines, is_busy), daemon=True).start()
    while line := lines.get():
        job = Job.model_validate(json.loads(line))
        _write_to(job)
        try:
            find_work(work)(job, lambda metrics, steps: _tell(answers, step=metrics.step, steps=steps))
        except TideCacheError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return error.exit_code
        sys.stdout.flush()
        is_busy.clear()
        _tell(answers, is_done=True)
    return 0


def _write_to(job: Job) -> None:
    """Send what is printed from now on to the job's log."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    with job.log.open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _tell(answers: int, **answer: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the sweep has died; the end of stdin stops this process cleanly
        os.write(answers, json.dumps(answer).encode() + b"\n")


def _read(lines: "SimpleQueue[bytes]", is_busy: threading.Event) -> None:
    rest = b""
    while part := os.read(0, 1 << 16):  # not sys.stdin, whose lock this thread would hold when the interpreter ends
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            is_busy.set()
            lines.put(line)
    lines.put(b"")
    if is_busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
