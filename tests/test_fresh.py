"""Forked processes behave as started ones do."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from helpers import fresh

AS_COLLECTED = dict(os.environ)
"""Test files copy the variables while others are imported, with what libraries set as they are."""

pytestmark = pytest.mark.skipif(fresh.IS_FULL, reason="TIDE_CACHE_TESTS=full: nothing is forked")

TELL = """
import json, os, sys, threading
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), os.getppid(), threading.active_count(), sys.stdin.read()]))
print("heard", file=sys.stderr)
sys.exit(7)
"""


def test_it_has_arguments_folder_variables_streams_and_exit_code_of_its_own(tmp_path):
    variables = os.environ | {"OMP_NUM_THREADS": "1", "ONLY": "this"}
    del variables["PATH"]
    command = [sys.executable, "-c", TELL, "a b"]
    done = fresh.run(command, input="said", cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert json.loads(done.stdout) == [["-c", "a b"], str(tmp_path), variables, os.getpid(), 1, "said"]
    assert done.stderr == "heard\n"
    assert done.returncode == 7


def test_signals_end_it(tmp_path):
    sleep = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with fresh.Process(sleep, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout.readline() == b"up\n"
            process.send_signal(number)
            assert process.wait(60) == -number


def test_faults_are_told_and_what_it_starts_is_forked_too():
    inner = "import sys; assert 'deepspeed' in sys.modules; 1 / 0"
    outer = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {inner!r}]).returncode + 1)"
    done = fresh.run([sys.executable, "-c", outer], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_variables_that_libraries_read_as_they_are_imported_need_a_process_that_imports():
    code = "import sys; print('deepspeed' in sys.modules)"
    for value, is_forked in (("1", "True\n"), ("2", "False\n")):
        variables = AS_COLLECTED | {"OMP_NUM_THREADS": value}
        done = fresh.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
        assert done.stdout == is_forked


def test_it_speaks_in_the_encoding_that_is_asked_for():
    code = "import sys; print(ascii(sys.stderr.encoding)); print(chr(228), file=sys.stderr); print(chr(228))"
    variables = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = fresh.run([sys.executable, "-c", code], env=variables, capture_output=True)
    assert done.stdout == b"'ascii'\n"
    assert done.stderr.startswith(b"\\xe4\n")
    assert b"UnicodeEncodeError" in done.stderr


def test_the_code_under_test_forks_where_it_is_asked_to(forking):
    code = "import sys; print('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
    started_s = time.monotonic()
    assert subprocess.run(["sleep", "0.1"]).returncode == 0
    assert time.monotonic() - started_s >= 0.1
