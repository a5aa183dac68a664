"""Looking at a GPU while work runs: how often the host waits for it, what it launches, and how long it is busy."""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

NUM_KERNELS = 8


@dataclass
class Waits:
    """How often the host waited; set when the block is left."""

    count: int = 0
    places: list[str] = field(default_factory=list)


@contextmanager
def counted_waits(device: str) -> Iterator[Waits]:
    """Count what torch calls a synchronizing operation; on a CPU there is none."""
    waits = Waits()
    if device == "cpu":
        yield waits
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits.places = [f"{one.filename}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)]
    waits.count = len(waits.places)


@dataclass(frozen=True)
class Profile:
    """What a GPU did during some work.

    Attributes:
        seconds: Of the work.
        busy_share: Share of them in which at least one kernel ran.
        launches: Kernels and copies.
        longest: Name and milliseconds of the kernels that took longest, together.
    """

    seconds: float
    busy_share: float
    launches: int
    longest: list[tuple[str, float]]


def profiled(work: Callable[[], Any], device: str) -> Profile:
    """Run some work under the profiler, once."""
    activities = [ProfilerActivity.CPU] if device == "cpu" else [ProfilerActivity.CUDA]
    with profile(activities=activities) as found:
        start_s = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start_s
    spans, by_kernel = [], Counter[str]()
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns() > 0:
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
            by_kernel[event.name()[:80]] += event.duration_ns()
    longest = [(name, round(ns / 1e6, 3)) for name, ns in by_kernel.most_common(NUM_KERNELS)]
    return Profile(seconds, union_ns(spans) / 1e9 / seconds, len(spans), longest)


def union_ns(spans: list[tuple[int, int]]) -> int:
    """Return how long at least one of some spans lasts; they may overlap, in any order."""
    total, end = 0, 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total
