"""An object's copy in a process of its own, so that this process's interpreter is left to what it launches.

Python threads take turns: a thread that sorts halves the rate at which another one launches the kernels of a GPU. What
goes there and back is pickled: numpy arrays, frozen records and plain values, never tensors. It is sent as a whole and
through large pipes: each time that a thread is woken for a part, it takes the interpreter from the one that launches.
"""

import contextlib
import fcntl
import os
import pickle
import subprocess
import sys
import weakref
from threading import Lock
from typing import IO, Any

_PIPE_BYTES = 1 << 20
"""Of a pipe, which has 64 KiB otherwise; what any user may have."""


class Aside:
    """The copy; its process ends with this object, or with the process that made it."""

    def __init__(self, original: object) -> None:
        """Start the process, which takes seconds in which this one goes on.

        Args:
            original: Of a class of this package; it is pickled when it is first called.
        """
        self._original: object | None = original
        self._lock = Lock()
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only this process
            env={"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # too many large pipes: this one stays as it is
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        weakref.finalize(self, _end, self._popen)

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what a method of the copy gives; an error that it raises is raised here.

        Args:
            method: Its name.
            arguments: Are pickled.
        """
        with self._lock:
            orders, answers = self._popen.stdin, self._popen.stdout
            assert orders is not None
            assert answers is not None
            try:
                if self._original is not None:
                    _send(orders, self._original)
                    self._original = None
                _send(orders, (method, arguments))
                is_error, answer = _receive(answers)
            except (BrokenPipeError, EOFError):
                code = self._popen.wait()
                raise RuntimeError(f"the process that this one has work done in ended, exit code {code}") from None
        if is_error:
            raise answer
        return answer


def _send(stream: IO[bytes], value: object) -> None:
    data = pickle.dumps(value, protocol=5)
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """Return the next value; EOFError where the stream ends."""
    length = int.from_bytes(_exactly(stream, 8), "little")
    return pickle.loads(_exactly(stream, length))


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _end(popen: "subprocess.Popen[bytes]") -> None:
    """Close a process's orders, and wait for its end."""
    for stream in (popen.stdin, popen.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    popen.wait()


def serve() -> None:
    """Answer calls on the standard input until it is closed; what is printed meanwhile goes to the standard error."""
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(EOFError, BrokenPipeError):
        copy = _receive(orders)
        while True:
            method, arguments = _receive(orders)
            try:
                answer = False, getattr(copy, method)(*arguments)
            except Exception as error:  # whatever it is, it is the caller's
                answer = True, error
            _send(answers, answer)


if __name__ == "__main__":
    serve()
