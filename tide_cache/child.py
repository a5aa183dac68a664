"""A process of this machine that takes orders and answers, each one line of JSON."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any


class Child:
    """A Python process in its own session: Ctrl-C reaches only the parent, which stops its children.

    Attributes:
        popen: The process.
        answers: File descriptor.
        has_ended: Whether it will send nothing more.
    """

    def __init__(
        self, module: Sequence[str], environment: Mapping[str, str], threads: int, stderr: IO[bytes] | None = None
    ) -> None:
        """Start it.

        Args:
            module: What runs, as after `python -m`.
            environment: Variables set in addition to those of this process.
            threads: Of its arrays, where the user has not said how many.
            stderr: Where its errors go; None for those of this process.
        """
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", *module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env={"OMP_NUM_THREADS": str(threads), **os.environ, **environment},
        )
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self._orders = self.popen.stdin
        self.answers = self.popen.stdout.fileno()
        self.has_ended = False
        self._rest = b""

    def send(self, order: str) -> None:
        """Send one order: a line of JSON without its end."""
        with contextlib.suppress(BrokenPipeError):  # it has died; the end of its answers says so
            self._orders.write(order.encode() + b"\n")
            self._orders.flush()

    def send_home(self) -> None:
        """Tell it to end when its orders are done."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield what it has sent since."""
        part = os.read(self.answers, 1 << 16)
        self.has_ended = not part
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            yield json.loads(line)

    def bury(self) -> int:
        """Wait for its end, and return its exit code."""
        self.send_home()
        code = self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return code
