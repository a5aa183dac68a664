"""Runs programs that a model wrote: each in a separate process, for a limited time, with little memory and no network.

With `namespaces` the process also gets separate Linux namespaces, through `unshare`: it has no network, all files are
read-only except a small folder in memory, it sees no other process, and its own processes end with it. With `limits` it
only has the limits, and can reach the network and write the user's files. Neither prevents a program from reading the
user's files; with `namespaces` it cannot send them anywhere.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tide_cache.config.settings import Isolation
from tide_cache.errors import EvaluationError

_UNSHARE = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--ipc", "--uts"),
    *("--fork", "--kill-child"),
)
_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_SHOWN_BYTES = 200


@dataclass(frozen=True)
class Limits:
    """Limits of one program.

    Attributes:
        wall_s: Seconds until it is killed, including the start; more than `cpu_s`, since the machine may be busy.
        cpu_s: Seconds of processor time.
        memory_bytes: Address space of each of its processes.
        file_bytes: Size of a file; with namespaces, of all files that it writes.
        num_processes: Its processes and threads; only with namespaces, and not if the user is root.
    """

    wall_s: float = 20.0
    cpu_s: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    num_processes: int = 32


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        is_passed: Whether it ended without an exception.
        reason: `passed`, the exception's name, `timed out`, or how the process ended.
    """

    is_passed: bool
    reason: str


@dataclass(frozen=True)
class Sandbox:
    """Where programs run."""

    isolation: Isolation = "namespaces"
    limits: Limits = Limits()

    def run(self, program: str) -> Outcome:
        """Run a program to its end or to a limit.

        Raises:
            EvaluationError: This machine does not provide the isolation that was asked for.
        """
        with tempfile.TemporaryDirectory(prefix="tide-cache-code-") as scratch:
            written, message, code = self._run(program, scratch)
        is_ready, _, verdict = written.partition("\n")
        if code is not None and is_ready != "ready":
            raise EvaluationError(_no_isolation(is_ready or message or f"the process ended with exit code {code}"))
        if code is None:
            return Outcome(False, "timed out")
        if verdict:
            return Outcome(verdict == "passed", verdict)
        return Outcome(False, f"killed by signal {-code}" if code < 0 else f"left early with exit code {code}")

    def require_works(self) -> None:
        """Check that the sandbox works on this machine, before anything else is done.

        Raises:
            EvaluationError: It does not; says why, and what to do.
        """
        if self.isolation == "namespaces" and shutil.which(_UNSHARE[0]) is None:
            raise EvaluationError(_no_isolation("found no program `unshare`, which comes with util-linux"))
        outcome = self.run("")
        if not outcome.is_passed:
            raise EvaluationError(_no_isolation(f"an empty program did not pass: {outcome.reason}"))

    def _run(self, program: str, scratch: str) -> tuple[str, str, int | None]:
        """Return the runner's output, its stderr, and its exit code; None after a time-out."""
        is_isolated = self.isolation == "namespaces"
        command = [*(_UNSHARE if is_isolated else ()), sys.executable, "-I", "-W", "ignore", str(_RUNNER)]
        read_end, write_end = os.pipe()
        try:
            with tempfile.TemporaryFile() as stderr:
                process = subprocess.Popen(
                    [*command, json.dumps(self._settings(write_end, scratch, is_isolated))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    cwd=scratch,
                    env={"PATH": os.defpath, "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8"},
                    pass_fds=(write_end,),
                    start_new_session=True,
                )
                code = _wait(process, program, self.limits.wall_s)
                stderr.seek(0)
                message = stderr.read(_SHOWN_BYTES).decode(errors="replace").strip()
            os.set_blocking(read_end, False)  # an escaped process may still hold the other end
            try:
                written = os.read(read_end, _SHOWN_BYTES).decode(errors="replace")
            except BlockingIOError:
                written = ""
        finally:
            os.close(read_end)
            os.close(write_end)
        return written, message, code

    def _settings(self, verdict: int, scratch: str, is_isolated: bool) -> dict[str, Any]:
        limits = self.limits
        rlimits = {
            "RLIMIT_CPU": limits.cpu_s,
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_CORE": 0,
        }
        if is_isolated:  # otherwise all processes of the user would count
            rlimits["RLIMIT_NPROC"] = limits.num_processes
        return {
            "verdict": verdict,
            "scratch": scratch,
            "is_isolated": is_isolated,
            "file_bytes": limits.file_bytes,
            "rlimits": rlimits,
        }


def _wait(process: "subprocess.Popen[bytes]", program: str, wall_s: float) -> int | None:
    """Run a process with an input, and end its whole session; return None after a time-out."""
    with process:
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=wall_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode


def _no_isolation(found: str) -> str:
    return (
        f"this machine cannot run generated programs without network and with closed files: {found}. Expected Linux "
        "5.12 or newer on which a user may make namespaces: in a container start it with --security-opt "
        "seccomp=unconfined, on Ubuntu 24.04 set kernel.apparmor_restrict_unprivileged_userns=0. Or, where the machine "
        "is itself a throw-away with nothing to lose, --code-isolation limits: then programs have time and memory "
        "limits alone. Or leave humaneval_instruct and mbpp_instruct out: --tasks."
    )
