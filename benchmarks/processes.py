"""Measurements in a separate process, so that its peak of memory is its own."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

PRELOADED = ["benchmarks.step", "benchmarks.online", "benchmarks.scale"]
"""Imported once, by the server that the processes are forked from."""


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process, so that nothing is left of what ran before.

    Args:
        work: The function.
        arguments: Its arguments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def peak_rss() -> int:
    """Bytes of this process at its peak; what the process had that started its parent does not count."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
