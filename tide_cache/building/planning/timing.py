"""Seconds that some work takes."""

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return what some work returns, and its seconds."""
    started_s = perf_counter()
    result = work()
    return result, perf_counter() - started_s
