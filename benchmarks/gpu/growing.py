"""A file of figures that is whole after each of them: a run that is ended early keeps what it has."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine


class GrowingFile:
    """Takes one piece of work after the other, and writes what each gave.

    Attributes:
        figures: By name of the work and of the figure: `step_kl.launches`.
        faults: What went wrong, by name of the work; the rest goes on.
        left_out: Work for which no time was left.
    """

    def __init__(self, path: Path, command: str, seconds: float, machine: Mapping[str, Any]) -> None:
        """Begin the file.

        Args:
            path: Where it is written.
            command: That measures it.
            seconds: No work is begun after so long.
            machine: What is said of it beside its processor.
        """
        self.figures: dict[str, float] = {}
        self.faults: dict[str, str] = {}
        self.left_out: list[str] = []
        self._notes: dict[str, Any] = {}
        self._taken_s: dict[str, float] = {}
        self._path, self._command, self._machine = path, command, describe_machine() | dict(machine)
        self._start_s, self._seconds = time.monotonic(), seconds
        self._write()

    def take(self, name: str, work: Callable[[], Mapping[str, float]]) -> None:
        """Do some work and write its figures, or why there are none."""
        start_s = time.monotonic()
        if start_s - self._start_s > self._seconds:
            self.left_out.append(name)
        else:
            try:
                self.figures |= {f"{name}.{figure}": float(value) for figure, value in work().items()}
            except Exception as error:  # the next figure may still be had
                self.faults[name] = f"{type(error).__name__}: {error}"[:2000]
                traceback.print_exc()
            self._taken_s[name] = round(time.monotonic() - start_s, 2)
            print(f"{name}: {self._taken_s[name]:.1f} s", file=sys.stderr, flush=True)
        self._write()

    def note(self, name: str, value: Any) -> None:
        """Add what is no figure, such as the longest kernels; written with the next figure."""
        self._notes[name] = value

    def _write(self) -> None:
        record = {
            "figures": self.figures,
            "faults": self.faults,
            "left_out": self.left_out,
            "notes": self._notes,
            "seconds": self._taken_s,
            "machine": self._machine,
            "command": self._command,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(beside, self._path)
