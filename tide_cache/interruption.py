"""Stopping cleanly: the first Ctrl-C or SIGTERM asks for a stop at the next safe point, a second one kills.

Where any point is safe, because nothing important is ever half-written, the wait has a limit.
"""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from tide_cache.errors import Interrupted

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers the first signal that arrives inside the `with` block; later signals act as usual."""

    def __init__(self, patience_s: float | None = None) -> None:
        """Prepare to catch signals.

        Args:
            patience_s: Raise `Interrupted` wherever the main thread is, this long after the signal; by default never.
        """
        self.signal_number: int | None = None
        self._patience_s = patience_s
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_alarm: Any = None

    def __enter__(self) -> Self:
        for number in CAUGHT:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self._previous_alarm is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._previous_alarm)

    @property
    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal_number is not None

    def raise_interrupted(self, message: str) -> None:
        """Raise `Interrupted` with the exit code a shell expects: 128 plus the signal's number.

        Raises:
            Interrupted: Always.
        """
        error = Interrupted(message)
        error.exit_code = 128 + (self.signal_number or signal.SIGINT)
        raise error

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()
        if self._patience_s is not None:
            self._previous_alarm = signal.signal(signal.SIGALRM, self._lose_patience)
            signal.setitimer(signal.ITIMER_REAL, self._patience_s)

    def _lose_patience(self, number: int, frame: FrameType | None) -> None:
        self.raise_interrupted(
            "Stopped in the middle of a step; what was committed is kept. Run the same command again."
        )

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
