"""Stopping cleanly: the first Ctrl-C or SIGTERM asks for a stop at the next safe point, a second one kills."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from tide_cache.errors import Interrupted

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers the first signal that arrives inside the `with` block; later ones act as they did before it."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in CAUGHT:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

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

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
