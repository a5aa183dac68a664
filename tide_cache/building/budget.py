"""The time a measurement may take, and how much of its sample still fits."""

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Self

Clock = Callable[[], float]


class Budget:
    """Seconds to spend, counted from its creation."""

    def __init__(self, seconds: float, clock: Clock = perf_counter) -> None:
        """Start it.

        Args:
            seconds: Seconds to spend.
            clock: Returns seconds.
        """
        self._clock = clock
        self._end_s = clock() + seconds

    def left_s(self) -> float:
        """Return the seconds left; zero or less when the budget is used up."""
        return self._end_s - self._clock()

    def share(self, part: float) -> Self:
        """Start a budget of a part of the seconds left.

        Args:
            part: From 0 to 1.
        """
        return type(self)(self.left_s() * part, self._clock)


def affordable_parts(members: Sequence[int], budget: Budget, largest: int | None = None) -> Iterator[list[int]]:
    """Yield parts of the members to process in turn, until all are done or the budget is used up.

    The first part is one member, whatever is left: a measurement of nothing says nothing. Each later part is at most as
    large as all before it, and no larger than what fits into the rest at the pace so far.

    Args:
        members: In the order in which they matter.
        budget: For all of them.
        largest: Most members of a part.
    """
    before_s, done = budget.left_s(), 0
    while done < len(members):
        left_s = budget.left_s()
        pace_s = (before_s - left_s) / done if done else 0.0
        fits = int(left_s / pace_s) if pace_s > 0 else (done if left_s > 0 else 0)
        size = min(fits, done, largest or done) if done else 1
        if size < 1:
            return
        yield list(members[done : done + size])
        done += size


def spread_first(members: Sequence[int]) -> list[int]:
    """Order members so that those at the front are spread over all of them, however few are taken.

    Args:
        members: Any.
    """
    width = max(len(members) - 1, 1).bit_length()
    return [members[i] for i in sorted(range(len(members)), key=lambda i: f"{i:0{width}b}"[::-1])]
