"""Progress of a long command on stderr: a bar on a terminal, elsewhere a line with the time every few seconds."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from .console import is_quiet, messages, say, size, stamp

SECONDS_BETWEEN_LINES = 5.0
BAR_WIDTH = 12


class _Text(ProgressColumn):
    """The progress text; the only column that shrinks on a narrow terminal, and never folded."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")


class _TimeLeft(TimeRemainingColumn):
    """Time left, labelled as such; keeps its width."""

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        return super().render(task).append(" left")


class ProgressReport:
    """Shows one growing count; use it in a `with` block."""

    def __init__(self, title: str, unit: str, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        """State what is counted.

        Args:
            title: What is going on, for example `build`.
            unit: What is counted, in the plural; `bytes` are shown as sizes.
            seconds_between_lines: Applies where there is no terminal.
        """
        self._title, self._unit = title, unit
        self._seconds_between_lines = seconds_between_lines
        self._bar: Progress | None = None
        self._first: tuple[float, float] | None = None
        self._next_line_s = 0.0
        self._line = ""

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not is_quiet():
            columns = [TextColumn("{task.description}"), BarColumn(BAR_WIDTH), _Text(), _TimeLeft()]
            self._bar = Progress(*columns, console=messages(), redirect_stdout=False)
            self._task = self._bar.add_task(self._title, total=None, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._line:
            say(stamp() + self._line)

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show that `done` of `total` are done.

        Args:
            done: Decreases only where work was lost.
            total: In all.
            note: Shown behind the rate, for example bytes written.
        """
        now_s = time.monotonic()
        self._first = self._first or (now_s, done)
        elapsed_s, grown = now_s - self._first[0], done - self._first[1]
        rate = grown / elapsed_s if elapsed_s > 0 and grown else None
        parts = [f"{self._count(done)} of {self._count(total)} {self._unit}".replace(" bytes", "")]
        parts += [self._speed(rate)] if rate else []
        parts += [note] if note else []
        if self._bar is not None:
            self._bar.start()  # only now, since an earlier stage may have shown a bar
            self._bar.update(self._task, completed=done, total=total, text=", ".join(parts))
            return
        parts += [f"{_clock((total - done) / rate)} left"] if rate and done < total else []
        self._line = f"{self._title}: {', '.join(parts)}"
        if now_s >= self._next_line_s:
            say(stamp() + self._line)
            self._line = ""
            self._next_line_s = now_s + self._seconds_between_lines

    def since(self, done: float, elapsed_s: float) -> None:
        """State when counting began, if that was before the first `update`.

        Args:
            done: What was done then.
            elapsed_s: How long ago it was.
        """
        self._first = self._first or (time.monotonic() - elapsed_s, done)

    def _speed(self, rate: float) -> str:
        """Return the number done per second, or the seconds per item where that is longer."""
        if rate >= 1 or rate <= 0 or self._unit == "bytes":
            return f"{self._count(rate)}/s"
        one = self._unit.removesuffix(" at most").removesuffix("s")
        return f"{1 / rate:,.1f} s/{one}"

    def _count(self, value: float) -> str:
        if self._unit == "bytes":
            return size(value)
        return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


class ProgressReports:
    """Several reports in turn, each with its own title; use it in a `with` block."""

    def __init__(self, unit: str) -> None:
        """State what is counted, in the plural."""
        self._unit, self._title = unit, ""
        self._open: ProgressReport | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def update(self, title: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done of what the title names; a new title ends the previous report."""
        if title != self._title:
            self.named(title)
        assert self._open is not None
        self._open.update(done, total)

    def named(self, title: str) -> Callable[[float, float], None]:
        """Begin a report, and return what to call with the number done and the number in all."""
        self._close()
        self._title, self._open = title, ProgressReport(title, self._unit).__enter__()
        return self._open.update

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
