"""Processes that are new but need not import: a server that has imported everything forks them.

`run` and `Process` stand for `subprocess.run` and `subprocess.Popen`: a process of its own, with its own working
folder, variables, streams and signals, a child of whoever asks. What they leave out are the seconds of importing torch,
transformers and DeepSpeed; so do the Python processes that such a process starts. `forking` does the same for what the
code under test starts from this process. A question about the start itself, such as what a command imports or what it
says when it ends, needs `subprocess`. With `TIDE_CACHE_TESTS=full` all of them are started, not forked.
"""

import array
import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("fresh_server.py")
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "HUGGINGFACE_", "OMP_", "MKL_", "LD_", "PYTHON")
OF_NO_CONSEQUENCE = {
    *("HF_XET_HIGH_PERFORMANCE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "OMP_WAIT_POLICY"),
    *("PYTHONPATH", "PYTHONIOENCODING"),
}
"""What lm_eval and the commands set, hence what most copies of the variables hold, and which changes no result here;
processes that are forked obey the last two."""
PR_SET_CHILD_SUBREAPER = 36
IS_FULL = os.environ.get("TIDE_CACHE_TESTS") == "full"

_AT_FIRST = dict(os.environ)
"""Variables before any test has changed them."""
_start_really = subprocess.Popen._execute_child


class Line:
    """To a server, which forks a process for every question; it ends when this process does."""

    def __init__(self, ours: socket.socket, variables: Mapping[str, str]):
        self._ours = ours
        self._answers = ours.makefile("r")
        self._turn = threading.Lock()
        self.variables = variables

    def fork(self, question: dict[str, Any], streams: Sequence[int]) -> int:
        """Start a process with these streams; gives its pid, which is a child of this process."""
        data = json.dumps(question).encode()
        with self._turn:
            _adopt_orphans(True)
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
                self._ours.sendmsg([len(data).to_bytes(4, "big")], rights)
                self._ours.sendall(data)
                answer = self._answers.readline()
            finally:
                _adopt_orphans(False)
        assert answer, "the server of fresh processes has ended"
        return int(answer)

    def close(self) -> None:
        """Let the server end."""
        self._answers.close()
        self._ours.close()


def _adopt_orphans(is_asked: bool) -> None:
    """The server's child forks and ends, so that the grandchild becomes a child of this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(is_asked), 0, 0, 0)


lines: dict[tuple[object, ...], Line] = {}
"""By what their servers have imported, and with which variables of their own."""
servers: dict[int, "subprocess.Popen[bytes]"] = {}
"""By process id."""


@atexit.register
def _close() -> None:
    for line in lines.values():
        line.close()
    for server in servers.values():
        server.wait()


def line_to(imports: str, variables: Mapping[str, str] | None = None) -> Line:
    """Return the line to the server that has imported this much, started when it is first asked for.

    variables: What libraries read as they are imported, where it is not what it was at first.
    """
    read = {name: value for name, value in (variables or {}).items() if _is_read_at_import(name)}
    key = (imports, *sorted((read.items() - _AT_FIRST.items()) if read else ()))
    if key not in lines:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        variables = _AT_FIRST | {"OMP_NUM_THREADS": "1"} | read
        path = os.pathsep.join(part for part in sys.path if part)
        with theirs:
            server = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(SERVER), str(theirs.fileno()), imports],
                env={**variables, "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"}, pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        lines[key] = Line(ours, variables)
        servers[server.pid] = server
    return lines[key]


def _is_read_at_import(name: str) -> bool:
    return name.startswith(READ_AT_IMPORT) and name not in OF_NO_CONSEQUENCE


def have_read_others(variables: Mapping[str, str], line: Line) -> bool:
    """Return whether the server's libraries have read other values of these variables as they were imported."""
    both = variables.keys() | line.variables.keys()
    return any(_is_read_at_import(name) and variables.get(name) != line.variables.get(name) for name in both)


def restore_variables() -> None:
    """Set what libraries read as they are imported to what it was at first; some code under test sets it."""
    for name in [name for name in os.environ.keys() | _AT_FIRST.keys() if name.startswith(READ_AT_IMPORT)]:
        if name not in _AT_FIRST:
            del os.environ[name]
        elif os.environ.get(name) != _AT_FIRST[name]:
            os.environ[name] = _AT_FIRST[name]


class Process(subprocess.Popen):  # type: ignore[type-arg]
    """As `subprocess.Popen`, for the installed command or Python with `-c`, `-m` or a file.

    `imports`: what the server has imported: "everything", or "hub" for a test that sets variables which libraries read
    as they are imported. A process with such variables is started, not forked, by the former; each set of them has a
    server of the latter.
    """

    def __init__(self, command: Sequence[Any], *, imports: str = "everything", **how: Any):
        self._imports = imports
        super().__init__([os.fspath(word) for word in command], **how)

    def _execute_child(self, args, *rest):  # type: ignore[override]
        if IS_FULL:
            return _start_really(self, args, *rest)
        (_, _, _, _, cwd, env, _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *last) = rest
        variables = dict(os.environ if env is None else env)
        line = line_to(self._imports, variables if self._imports == "hub" else None)
        if self._imports == "everything" and have_read_others(variables, line):
            return _start_really(self, args, *rest)
        question = {
            "command": list(map(os.fspath, args)), "cwd": os.fspath(cwd or os.getcwd()), "variables": variables,
            "is_session": last[-2],
        }  # fmt: skip
        streams = [number if theirs == -1 else theirs for number, theirs in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            self.pid = line.fork(question, streams)
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def run(command, *, input=None, capture_output=False, timeout=None, check=False, **how) -> subprocess.CompletedProcess:  # type: ignore
    """As `subprocess.run`."""
    if capture_output:
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        how["stdin"] = subprocess.PIPE
    with Process(command, **how) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def start(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):  # type: ignore
    """Fork what Python would run; start everything else."""
    is_python = not isinstance(args, str | bytes) and os.fspath(next(iter(args))) == sys.executable
    if is_python and preexec_fn is None and not pass_fds and executable is None:
        self._imports = "everything"
        return Process._execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
    return _start_really(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)


@contextmanager
def forking() -> Iterator[None]:
    """Fork the Python processes that the code under test starts, too."""
    if not IS_FULL:
        line_to("everything")
    subprocess.Popen._execute_child = start
    try:
        yield
    finally:
        subprocess.Popen._execute_child = _start_really
