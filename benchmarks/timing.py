"""Times things in turns, so that a load that comes and goes falls on all of them alike."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any


class Timings:
    """Seconds of every round, by name.

    Attributes:
        names: What was timed.
    """

    def __init__(self, work: Mapping[str, Callable[[], Any]], repeats: int) -> None:
        """Run everything once unmeasured, then measure `repeats` rounds.

        Args:
            work: What to time, by name.
            repeats: Number of rounds.
        """
        for run in work.values():
            run()
        rounds = [{name: _seconds(run) for name, run in work.items()} for _ in range(repeats)]
        self.names = list(work)
        self._seconds = {name: [one[name] for one in rounds] for name in work}

    def rate(self, name: str, num_items: int) -> float:
        """Items per second in the median round."""
        return num_items / median(self._seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times longer `slow` takes than `fast`: the median over rounds, each compared within itself."""
        return median(a / b for a, b in zip(self._seconds[slow], self._seconds[fast], strict=True))


def _seconds(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start
