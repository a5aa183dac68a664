"""Real servers on ports of their own, started by the tests and ended with them."""

import socket
import subprocess
import sys
import urllib.request
from itertools import count

import pytest

from helpers.proxy import running_proxy, wait_for

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
SERVER = "import sys; from moto.server import main; main(['-p', sys.argv[1]])"
LIMIT_S = 240.0


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory):
    """Port of an S3 server with conditional writes: moto, in a process of its own."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'tide-cache[dev]'")
    pytest.importorskip("moto", reason="moto is not installed: pip install 'tide-cache[dev]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SERVER, str(port)], stdout=log, stderr=log)
    try:
        wait_for(port, LIMIT_S)
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")).close()
        yield port
    finally:
        server.kill()
        server.wait()
        log.close()


@pytest.fixture(scope="session")
def proxies(s3_port):
    """A server in front of that one, which misbehaves as it is told."""
    with running_proxy(s3_port) as proxy:
        yield proxy


@pytest.fixture
def s3(proxies, monkeypatch):
    """The same, behaving well at first; `s3://` leads to it, here and in processes that are started."""
    import fsspec.config

    for name, value in {**KEYS, "AWS_EC2_METADATA_DISABLED": "true", "FSSPEC_S3_ENDPOINT_URL": proxies.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": proxies.url})
    yield proxies
    proxies.ways = set()


@pytest.fixture(scope="session")
def numbers():
    """Numbers for names that no other test uses."""
    return count()
