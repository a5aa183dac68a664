"""Programs of a model: right ones pass, wrong ones fail, and none gets out, takes over or goes on for ever."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tide_cache.errors import EvaluationError
from tide_cache.evaluation.harness import sandbox as module
from tide_cache.evaluation.harness.sandbox import Limits, Sandbox

QUICK = Limits(wall_s=5.0, cpu_s=1, memory_bytes=256 << 20)
BRIEF = Limits(wall_s=2.0)
LATE_S = 60
"""What a machine with other work may add."""


def working(isolation):
    box = Sandbox(isolation, QUICK)
    try:
        box.require_works()
    except EvaluationError as error:
        pytest.skip(str(error))
    return box


@pytest.fixture(params=["namespaces", "limits"])
def sandbox(request):
    return working(request.param)


@pytest.fixture
def closed():
    return working("namespaces")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 + 1 == 3", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("'", "SyntaxError"),
        ("input()", "EOFError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "left early with exit code 0"),
        ("import os; os._exit(1)", "left early with exit code 1"),
        ("if __name__ == '__main__': raise ValueError", "passed"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1\nassert A().x == 1", "passed"),
        ("assert len('é') == 1", "passed"),
        ("print('x' * 10**6)", "passed"),
        ("open('here', 'w').write('x')\nassert open('here').read() == 'x'", "passed"),
    ],
)
def test_programs_are_judged_by_how_they_end(sandbox, program, reason):
    outcome = sandbox.run(program)
    assert (outcome.is_passed, outcome.reason) == (reason == "passed", reason)


def test_an_endless_loop_is_stopped(sandbox):
    begin = time.monotonic()
    outcome = sandbox.run("while True: pass")
    assert not outcome.is_passed
    at_the_cpu_limit = {"killed by signal 9", "left early with exit code 1"}
    assert outcome.reason in at_the_cpu_limit | {"timed out"}  # a busy machine may not even give it its second
    assert time.monotonic() - begin < QUICK.wall_s + LATE_S


def test_one_that_sleeps_is_stopped_with_all_its_processes(sandbox, tmp_path):
    mark = f"tide-cache-sleeper-{os.getpid()}-{sandbox.isolation}"
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])"
    assert Sandbox(sandbox.isolation, BRIEF).run(program).reason == "timed out"
    until_s = time.monotonic() + LATE_S
    while any(mark.encode() in line for line in command_lines()):
        assert time.monotonic() < until_s
        time.sleep(0.05)


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it may end meanwhile
            yield path.read_bytes()


def test_a_memory_bomb_fails_alone(sandbox):
    assert sandbox.run("x = bytearray(1 << 30)").reason == "MemoryError"


def test_a_file_cannot_grow_without_end(sandbox):
    program = "with open('big', 'wb') as f:\n    for _ in range(64):\n        f.write(bytes(1 << 20))"
    assert not sandbox.run(program).is_passed


def test_the_environment_holds_nothing_of_ours(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_USER", "1")
    assert sandbox.run("import os; assert 'SECRET_OF_THE_USER' not in os.environ").is_passed


def test_there_is_no_network_not_even_this_machine(closed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
        assert Sandbox("limits", QUICK).run(reach).is_passed, "this test cannot fail if nothing can be reached anyway"
        assert closed.run(reach).reason in {"ConnectionRefusedError", "OSError"}


def test_files_outside_are_read_only(closed, tmp_path):
    theirs = tmp_path / "file"
    theirs.write_text("mine")
    for statement in (f"open({str(theirs)!r}, 'w')", f"open({str(tmp_path / 'new')!r}, 'w')"):
        assert closed.run(statement).reason == "OSError"
    assert closed.run(f"import os; os.remove({str(theirs)!r})").reason == "OSError"
    assert theirs.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_privileges_and_other_processes_are_out_of_reach(closed):
    remount = "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, None) == 0"
    assert closed.run(remount).reason == "AssertionError"
    assert closed.run(f"import os; os.kill({os.getpid()}, 0)").reason == "ProcessLookupError"
    assert closed.run("import os; assert os.listdir('/proc') == []").is_passed


@pytest.mark.parametrize("tool", [None, "false"])
def test_without_namespaces_nothing_is_run(tool, monkeypatch):
    """Where `unshare` is missing, or not permitted, as in most containers."""
    monkeypatch.setattr(module, "_UNSHARE", (tool or "no-such-program",))
    with pytest.raises(EvaluationError, match=r"cannot run generated programs .*--code-isolation limits"):
        Sandbox().require_works()
