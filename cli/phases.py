"""Slow parts of a command say what they do: silent for two seconds, then a bar on a terminal, and lines elsewhere."""

import os
import sys
import time
from threading import Event, Thread

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tide_cache.launchers import is_first
from tide_cache.progress import Phase

from .console import is_quiet, messages, number, say, size, stamp

PATIENCE_S = 2.0
"""Seconds; a shorter phase is not shown."""
SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_DRAWINGS = 0.2
BAR_WIDTH = 12


class PhasePrinter:
    """Shows phases that take long; a thread watches each, since the work may be in C for minutes."""

    def __init__(self) -> None:
        """Begin with nothing to show."""
        self._watched: dict[int, tuple[Event, Thread]] = {}

    def begin(self, phase: Phase) -> None:
        """Watch a phase; see `Listener`."""
        if is_quiet() or not is_first(os.environ):
            return
        ended = Event()
        watcher = Thread(target=_watch, args=(phase, ended), name="tide-cache-phase", daemon=True)
        self._watched[id(phase)] = ended, watcher
        watcher.start()

    def end(self, phase: Phase) -> None:
        """Stop watching it, and take its bar away; see `Listener`."""
        if id(phase) not in self._watched:
            return
        ended, watcher = self._watched.pop(id(phase))
        ended.set()
        watcher.join()

    def hear(self, text: str) -> None:
        """Print a remark above any bar; see `Listener`."""
        say(stamp() + text)


def _watch(phase: Phase, ended: Event) -> None:
    started_s = time.monotonic()
    if ended.wait(PATIENCE_S):
        return
    if sys.stderr.isatty():
        _draw(phase, ended)
        return
    say(f"{stamp()}{describe(phase)} ...")
    while not ended.wait(SECONDS_BETWEEN_LINES):
        say(f"{stamp()}{describe(phase)} ... {time.monotonic() - started_s:.0f} s")


def _draw(phase: Phase, ended: Event) -> None:
    """Show a bar that goes away with the phase; it pulses where nothing is counted."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(BAR_WIDTH), TimeElapsedColumn())
    with Progress(*columns, console=messages(), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(describe(phase), total=None)
        while not ended.wait(SECONDS_BETWEEN_DRAWINGS):
            bar.update(
                task, description=describe(phase), completed=phase.done, total=phase.total if phase.done else None
            )


def describe(phase: Phase) -> str:
    """Describe a phase and how far it is, for example `Hashing weights of teacher (1.2 GB of 2.1 GB)`."""
    count = size if phase.unit == "bytes" else number
    unit = "" if phase.unit == "bytes" else f" {phase.unit}"
    if phase.total is None:
        return f"{phase.title} ({count(round(phase.done))}{unit})" if phase.done else phase.title
    if not phase.done:
        return f"{phase.title} ({count(round(phase.total))}{unit})"
    return f"{phase.title} ({count(round(phase.done))} of {count(round(phase.total))}{unit})"
