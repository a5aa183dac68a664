"""A cluster that cannot be joined: Ray's reason reaches the user, and no other one is made up."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from helpers.proxy import IS_FULL, wait_for
from tide_cache.building.executors.ray_words import heard_stderr, refusal

TOKEN = (
    "Failed to get cluster ID from GCS server: Unauthenticated: RPC error: InvalidAuthToken: Authentication token is"
)
LOG = f"[2026-11-28 11:01:12,760 W 29312 29312] gcs_client.cc:210: {TOKEN} missing or incorrect"


def test_a_wrong_token_is_told_and_not_taken_for_a_version():
    said = refusal(
        ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"), [LOG, LOG.replace("12,", "13,")]
    )
    assert said.startswith(
        f"Failed to connect to Ray cluster at 10.0.0.1:6379; {TOKEN} missing or incorrect. Set RAY_AUTH"
    )
    assert "version" not in said


def test_other_versions_are_told_in_full():
    said = refusal(
        RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.12.1"), []
    )
    assert said.startswith(
        "Version mismatch: The cluster was started with: Ray: 2.40.0 Python: 3.12.1. Use the versions"
    )


def test_what_a_library_writes_is_heard_only_when_it_fails(capfd):
    with heard_stderr() as heard:
        os.write(2, b"for the user\n")
    assert capfd.readouterr().err == "for the user\n"
    with contextlib.suppress(ConnectionError), heard_stderr() as heard:
        os.write(2, b"one\ntwo\n")
        raise ConnectionError
    assert heard == ["one", "two"]
    os.write(2, b"back\n")
    assert capfd.readouterr().err == "back\n"


@pytest.mark.skipif(not IS_FULL, reason="takes half a minute: TIDE_CACHE_FAULTS=full")
def test_a_head_that_wants_another_token():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tide-cache[ray]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "the-right-token-0123456789"}
    size = ["--num-cpus=1", "--include-dashboard=false", f"--object-store-memory={80 << 20}"]
    head = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            f"--port={port}",
            "--block",
            *size,
        ],
        env={**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, 60)
        code = (
            "import sys; from tide_cache.building.executors import ray_actors\n"
            "import ray; from tide_cache.errors import TideCacheError\n"
            f"try: ray_actors._connect(ray, '127.0.0.1:{port}', 1)\n"
            "except TideCacheError as error: print(error)"
        )
        environment = {**os.environ, **token, "RAY_AUTH_TOKEN": "another-token-0123456789ab"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert "InvalidAuthToken: Authentication token is missing or incorrect. Set RAY_AUTH_MODE=token" in done.stdout
    finally:
        head.terminate()
        head.wait(30)
