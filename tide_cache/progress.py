"""What a slow part of the work is doing: the library reports it, and a listening program shows it.

The library has no screen and no clock for this. It names a phase and counts what is done; the listener decides
when and how often to show it. Without a listener nothing is shown, and a phase costs nothing.
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
        total: How much there is to do, if that is known.
        unit: What is counted, in the plural; `bytes` are shown as sizes.
        done: How much is done; stays 0 where nothing is counted.
    """

    title: str
    total: float | None = None
    unit: str = "bytes"
    done: float = 0.0

    def advance(self, amount: float = 1.0) -> None:
        """Count more as done; cheap enough for an inner loop."""
        self.done += amount

    def reach(self, done: float, total: float | None) -> None:
        """Report how much is done of how much, as callbacks `(done, total)` of the library do."""
        self.done, self.total = done, total


class Listener(Protocol):
    """Hears about phases; called in the thread that does the work. Phases may be nested."""

    def begin(self, phase: Phase) -> None:
        """Hear that a phase begins; its counts may be read until it ends."""

    def end(self, phase: Phase) -> None:
        """Hear that a phase has ended, well or badly."""

    def hear(self, text: str) -> None:
        """Hear something that the user should know now."""


_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Send all phases of this process to a listener from now on, or to nobody."""
    global _listener
    _listener = listener


@contextmanager
def doing(title: str, total: float | None = None, unit: str = "bytes") -> Iterator[Phase]:
    """Name what the `with` block does, for the listener.

    Args:
        title: What is being done; a verb in -ing and its object.
        total: How much there is to do, if that is known.
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
    """Report something that the user should know now rather than at the end."""
    if _listener is not None:
        _listener.hear(text)
