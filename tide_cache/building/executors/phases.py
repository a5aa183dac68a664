"""Show what workers in other processes are doing, so that a wait is never silent.

Several workers do the same at the same time, so one phase stands for all of them, and the slowest counts.
"""

import threading
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import Any

from tide_cache.progress import Phase, doing, tell

SECONDS_BETWEEN_COUNTS = 1.0
STARTING = "Starting Python and torch"


class PhaseTeller:
    """Hears of a worker's phases, and sends them as plain values; a `Listener`."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        """Begin to send.

        Args:
            send: Takes one message; from any thread.
        """
        self._send = send
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Phase, float]] = {}
        threading.Thread(target=self._count, name="tide-cache-phases", daemon=True).start()

    def begin(self, phase: Phase) -> None:
        """Send that a phase begins; see `Listener`."""
        with self._lock:
            self._open[id(phase)] = phase, phase.done
        self._say(phase)

    def end(self, phase: Phase) -> None:
        """Send that it has ended; see `Listener`."""
        with self._lock:
            self._open.pop(id(phase), None)
            self._send({"phase": id(phase), "ended": True})

    def hear(self, text: str) -> None:
        """Send a remark; see `Listener`."""
        self._send({"told": text})

    def _say(self, phase: Phase) -> None:
        told = {"title": phase.title, "done": phase.done, "total": phase.total, "unit": phase.unit}
        self._send({"phase": id(phase), **told})

    def _count(self) -> None:
        wait = threading.Event()
        while not wait.wait(SECONDS_BETWEEN_COUNTS):
            with self._lock:
                for number, (phase, told) in self._open.items():
                    if phase.done != told:
                        self._open[number] = phase, phase.done
                        self._say(phase)


class PhaseMirror:
    """Shows the phases of workers as phases of this process."""

    def __init__(self) -> None:
        """Begin with no worker."""
        self._shown: dict[str, tuple[ExitStack, Phase, dict[tuple[Hashable, Hashable], float]]] = {}

    def start(self, worker: Hashable) -> None:
        """Show that a worker starts, until it is first heard of."""
        self._begin(worker, STARTING, {"title": STARTING, "done": 0.0, "total": None, "unit": ""})

    def hear(self, worker: Hashable, message: dict[str, Any]) -> bool:
        """Take a worker's message; return whether it was about phases."""
        self._end(worker, STARTING)
        if "told" in message:
            tell(message["told"])
        elif message.get("ended"):
            self._end(worker, message["phase"])
        elif "phase" in message:
            self._begin(worker, message["phase"], message)
        else:
            return False
        return True

    def forget(self, worker: Hashable) -> None:
        """End the phases of a worker that is gone."""
        for members in [members for _, _, members in self._shown.values()]:
            for owner, number in list(members):
                if owner == worker:
                    self._end(worker, number)

    def close(self) -> None:
        """End all phases."""
        for stack, _, _ in self._shown.values():
            stack.close()
        self._shown.clear()

    def _begin(self, worker: Hashable, number: Hashable, told: dict[str, Any]) -> None:
        title = f"Workers: {told['title']}"
        if title not in self._shown:
            stack = ExitStack()
            self._shown[title] = stack, stack.enter_context(doing(title, told["total"], told["unit"])), {}
        _, phase, members = self._shown[title]
        members[worker, number] = told["done"]
        phase.reach(min(members.values()), told["total"])

    def _end(self, worker: Hashable, number: Hashable) -> None:
        for title, (stack, _, members) in list(self._shown.items()):
            if members.pop((worker, number), None) is not None and not members:
                del self._shown[title]
                stack.close()
