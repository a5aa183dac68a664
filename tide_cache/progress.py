"""What a slow part of the work is doing: the library says it, and a program that listens shows it.

The library has no screen and no clock for this. It names a phase and counts what is done; who shows it, after how
long and how often is for the listener. Without one nothing is shown, and a phase costs nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass
class Phase:
    """A part of the work that may take seconds or hours.

    Attributes:
        title: What is being done, for example `Hashing weights of teacher`.
        total: How much there is to do, where that is known.
        unit: What is counted, in the plural; `bytes` are shown as sizes.
        done: How much is done; stays 0 where nobody counts.
    """

    title: str
    total: float | None = None
    unit: str = "bytes"
    done: float = 0.0

    def advance(self, amount: float = 1.0) -> None:
        """Count more as done; cheap enough for an inner loop."""
        self.done += amount

    def reach(self, done: float, total: float | None) -> None:
        """Say how much is done of how much, as callbacks `(done, total)` of the library do."""
        self.done, self.total = done, total


class Listener(Protocol):
    """Hears of phases; called in the thread that does the work, and phases may lie in each other."""

    def begin(self, phase: Phase) -> None:
        """Hear that a phase begins; its counts may be read until it ends."""

    def end(self, phase: Phase) -> None:
        """Hear that a phase has ended, well or badly."""

    def hear(self, text: str) -> None:
        """Hear something that whoever waits should know now."""


_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Have all phases of this process from now on heard by a listener, or by nobody."""
    global _listener
    _listener = listener


@contextmanager
def doing(title: str, total: float | None = None, unit: str = "bytes") -> Iterator[Phase]:
    """Name what the `with` block does, for whoever listens.

    Args:
        title: What is being done; a verb in -ing and its object.
        total: How much there is to do, where that is known.
        unit: What is counted.
    """
    phase, listener = Phase(title, total, unit), _listener
    if listener is None:
        yield phase
        return
    listener.begin(phase)
    try:
        yield phase
    finally:
        listener.end(phase)


def tell(text: str) -> None:
    """Say something that whoever waits should know now, rather than at the end."""
    if _listener is not None:
        _listener.hear(text)
