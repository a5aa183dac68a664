"""Worker processes for the campaigns, and the tree that an undisturbed run leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.campaign import tree

FOLDER = Path(__file__).resolve().parent
LIMIT_S = 60


@dataclass
class Worker:
    """A worker process."""

    pid: int
    message_file: Path
    server: subprocess.Popen[str]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def state(self) -> str:
        """One letter, as in /proc: T stopped, t held by a tracer, Z ended and not yet waited for."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def wait(self) -> int:
        """Exit status; negative for a signal."""
        return int(_ask(self.server, {"wait": self.pid})["status"])

    def message(self) -> str:
        return self.message_file.read_bytes().rstrip(b"\0").decode()


def _ask(server: subprocess.Popen[str], question: dict[str, object]) -> dict[str, int]:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(question) + "\n")
    server.stdin.flush()
    answer: dict[str, int] = json.loads(server.stdout.readline())
    return answer


def until(is_reached: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    deadline_s = time.monotonic() + LIMIT_S
    while not is_reached():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.001)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Worker]]:
    """Start a worker on a folder: `start(root, order=0, is_held=False)`; a held one waits for SIGCONT."""
    messages = tmp_path_factory.mktemp("messages")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "fork_server.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        numbers = iter(range(10**9))

        def start_worker(root: Path, order: int = 0, is_held: bool = False) -> Worker:
            file = messages / str(next(numbers))
            question = {"root": str(root), "message_file": str(file), "order": order, "is_held": is_held}
            worker = Worker(_ask(server, {"start": question})["pid"], file, server)
            if is_held:
                until(lambda: worker.state() == "T")
            return worker

        yield start_worker
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="session")
def undisturbed(start: Callable[..., Worker], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of all files that a run without faults leaves."""
    root = tmp_path_factory.mktemp("undisturbed") / "cache"
    worker = start(root)
    assert worker.wait() == 0, worker.message()
    return tree(root)


@pytest.fixture
def finish(start: Callable[..., Worker], undisturbed: dict[str, str]) -> Callable[[Path, object], None]:
    """Run a worker on what a fault has left: it must end well, in the undisturbed tree; then the tree is removed."""

    def run_again(root: Path, trial: object) -> None:
        worker = start(root)
        assert worker.wait() == 0, f"{trial}: {worker.message()}"
        assert tree(root) == undisturbed, f"{trial}: another tree"
        shutil.rmtree(root)

    return run_again


@pytest.fixture(scope="session")
def trace(start: Callable[..., Worker], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Run a held worker under strace, with `inject` for system calls; gives the names of the calls."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = tmp_path_factory.mktemp("strace") / "log"

    def run_traced(worker: Worker, calls: str, inject: str = "") -> list[str]:
        command = [strace, "-f", "-qq", "-o", str(log), "-p", str(worker.pid), "-e", f"trace={calls}"]
        command += ["-e", f"inject={calls}:{inject}"] if inject else []
        log.unlink(missing_ok=True)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            until(lambda: tracer.poll() is not None or worker.state() == "t")
            if tracer.poll() is not None and not log.exists():
                worker.send(signal.SIGKILL)
                worker.wait()
                assert tracer.stderr is not None
                pytest.skip(f"strace cannot attach here: {tracer.stderr.read()}")
            worker.send(signal.SIGCONT)
            tracer.wait(LIMIT_S)
        return re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)

    return run_traced


@pytest.fixture(scope="session")
def count_calls(
    start: Callable[..., Worker],
    trace: Callable[..., list[str]],
    undisturbed: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Counter[str]]:
    """`count_calls("write,fsync")`: how often an undisturbed worker makes each of these system calls."""

    def count(calls: str) -> Counter[str]:
        root = tmp_path_factory.mktemp("traced") / "cache"
        worker = start(root, is_held=True)
        names = trace(worker, calls)
        assert worker.wait() == 0, worker.message()
        assert tree(root) == undisturbed
        return Counter(names)

    return count
