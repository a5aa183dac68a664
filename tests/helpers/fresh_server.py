"""The server of `fresh.py`: imports, then forks a process for every question.

python fresh_server.py SOCKET IMPORTS
"""

import array
import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import traceback
import warnings
from typing import Any

IMPORTS = {
    "hub": (
        "torch", "transformers", "datasets", "tide_cache_cli.main", "tide_cache.building.driver",
        "tide_cache.evaluation.nll", "transformers.models.qwen3.modeling_qwen3", "safetensors.torch",
    ),
    "everything": (
        "torch", "transformers", "tokenizers", "datasets", "tide_cache_cli.main", "tide_cache.training.run",
        "tide_cache.building.driver", "deepspeed", "transformers.models.qwen3.modeling_qwen3", "safetensors.torch",
        "torch.distributed.run", "tide_cache.training.lora", "tide_cache.evaluation.nll", "helpers.fresh",
    ),
}  # fmt: skip


def serve(line: socket.socket) -> dict[str, Any]:
    """Answer questions until this is a new process; gives what it has to do."""
    while True:
        head, rights, _, _ = line.recvmsg(4, socket.CMSG_SPACE(3 * 4))
        if not head:
            os._exit(0)
        streams = array.array("i")
        for _, _, data in rights:
            streams.frombytes(data)
        size = int.from_bytes(head, "big")
        data = b""
        while len(data) < size:
            data += line.recv(size - len(data))
        ours, theirs = os.pipe()
        if (middle := os.fork()) == 0:
            if pid := os.fork():
                os.write(theirs, b"%d\n" % pid)
                os._exit(0)
            os.close(ours)
            os.close(theirs)
            line.close()
            question: dict[str, Any] = json.loads(data)
            become(question, list(streams))
            return question
        os.waitpid(middle, 0)  # from now on the new process is a child of whoever asked
        line.sendall(os.read(ours, 32))
        for number in (ours, theirs, *streams):
            os.close(number)


def become(question: dict[str, Any], streams: list[int]) -> None:
    """Take streams, variables and folder."""
    if question["is_session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    if encoding := question["variables"].get("PYTHONIOENCODING"):
        sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(question["variables"])
    os.chdir(question["cwd"])
    tempfile.tempdir = None  # it may be named by a variable
    sys.path[:0] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def have_own_server(variables: dict[str, str]) -> dict[str, Any] | None:
    """Fork a server for what this process starts; gives what to do in a process that this one has asked for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.fork() == 0:
        ours.close()
        for number in range(3):  # else whoever reads what the process says would wait for this one too
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        return serve(theirs)
    theirs.close()
    from helpers import fresh

    fresh.lines["everything",] = fresh.Line(ours, variables)
    fresh.subprocess.Popen._execute_child = fresh.start  # type: ignore[assignment]
    return None


def execute(command: list[str]) -> None:
    """Do what this command line would: the installed command, or Python with options."""
    program, *rest = command
    if os.path.basename(program) == "tide-cache":
        sys.argv = command
        from tide_cache_cli.main import run

        sys.exit(run())
    options = []
    while rest[0] in ("-W", "-u", "-P"):
        options.append(rest.pop(0))
        if options[-1] == "-W":
            warnings.simplefilter(rest.pop(0))  # type: ignore[arg-type]
    if rest[0] == "-c":
        sys.argv = ["-c", *rest[2:]]
        sys.path.insert(0, "")
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        exec(compile(rest[1], "<string>", "exec"), module.__dict__)
    elif rest[0] == "-m":
        sys.argv = rest[1:]
        if "-P" not in options:
            sys.path.insert(0, os.getcwd())
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # it was imported: that is the point
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path.insert(0, os.path.dirname(os.path.abspath(rest[0])))
        runpy.run_path(rest[0], run_name="__main__")


def end(command: list[str]) -> None:
    """Execute and end as Python does, but for taking every module to pieces, which is half a second."""
    code: object = 0
    try:
        try:
            execute(command)
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            traceback.print_exc()
            code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        code = 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(int(code or 0) & 0xFF)  # type: ignore[call-overload]


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who asked
    early = dict(os.environ)
    gc.disable()
    for name in IMPORTS[sys.argv[2]]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what was imported is never looked through again, nor copied for it
    gc.enable()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    while sys.argv[2] == "everything" and (further := have_own_server(early)):
        asked = further
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.resetwarnings()
    end(asked["command"])
