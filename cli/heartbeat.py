"""Progress that is never silent: shows a command's stages in turn, each again while it makes no headway."""

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from .progress import ProgressReport

SECONDS = 1.0
"""Seconds between two looks; with lines in place of a bar, one shows up in less than two seconds."""


class Heartbeat:
    """Shows one stage after the other, with the seconds it has taken; use it in a `with` block."""

    def __init__(self, units: Mapping[str, str]) -> None:
        """Start with no stage.

        Args:
            units: What is counted, by stage.
        """
        self._units = units
        self._lock = threading.RLock()
        self._report: ProgressReport | None = None
        self._stage, self._since_s, self._count = "", 0.0, (0.0, 0.0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._close()

    def update(self, stage: str, done: float, total: float) -> None:
        """Show that a stage has done `done` of `total`."""
        with self._lock:
            if stage != self._stage:
                self._close()
                self._stage, self._since_s = stage, time.monotonic()
                self._report = ProgressReport(stage, self._units[stage], SECONDS).__enter__()
            self._count = (done, total)
            self._show()

    def _show(self) -> None:
        if self._report is not None:
            self._report.update(*self._count, note=f"{time.monotonic() - self._since_s:.0f} s")

    def _beat(self) -> None:
        while not self._is_over.wait(SECONDS):
            with self._lock:
                self._show()

    def _close(self) -> None:
        with self._lock:
            if self._report is not None:
                self._report.__exit__(None, None, None)
                self._report = None
