"""Times things in turns, so that a load that comes and goes falls on all of them alike."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter, process_time
from typing import Any


class Timings:
    """Seconds of every round, by name.

    Attributes:
        names: What was timed.
    """

    def __init__(self, work: Mapping[str, Callable[[], Any]], repeats: int, of_cpu: bool = False) -> None:
        """Run everything once unmeasured, then measure `repeats` rounds.

        Args:
            work: What to time, by name.
            repeats: Number of rounds.
            of_cpu: Count the seconds that this process computes, not those that it waits for a core.
        """
        for run in work.values():
            run()
        rounds = [{name: _seconds(run, of_cpu) for name, run in work.items()} for _ in range(repeats)]
        self.names = list(work)
        self._seconds = {name: [one[name] for one in rounds] for name in work}

    def rate(self, name: str, num_items: int) -> float:
        """Items per second in the median round."""
        return num_items / median(self._seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times longer `slow` takes than `fast`: the median over rounds, each compared within itself."""
        return median(a / b for a, b in zip(self._seconds[slow], self._seconds[fast], strict=True))


def _seconds(run: Callable[[], Any], of_cpu: bool) -> float:
    clock = process_time if of_cpu else perf_counter
    start = clock()
    run()
    return clock() - start
