"""A server in front of another one, that misbehaves as it is told: real HTTP, on a port of its own."""

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IS_FULL = os.environ.get("TIDE_CACHE_FAULTS") == "full"
HUNG_S = 60.0


class Proxy(ThreadingHTTPServer):
    """Hands requests on, and spoils them.

    Attributes:
        ways: What is spoilt: `unconditional` drops If-None-Match, `rangeless` drops Range, `forbidden` answers 403,
            `read-only` answers it to what writes, `hung` never answers, `short` cuts ranges, `busy` answers 503.
        num_busy: How many answers `busy` still spoils.
        num_requests: How many came.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target_port = port
        self.ways: set[str] = set()
        self.num_busy = 0
        self.num_requests = 0
        self.is_closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_any(self) -> None:
        proxy, ways = self.server, self.server.ways
        proxy.num_requests += 1
        body = self._body()
        is_writing = self.command in {"PUT", "POST", "DELETE"}
        if "hung" in ways:
            proxy.is_closing.wait(HUNG_S)
            self.close_connection = True
        elif "forbidden" in ways or ("read-only" in ways and is_writing):
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        elif "busy" in ways and proxy.num_busy > 0:
            proxy.num_busy -= 1
            self._answer(503, b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>")
        else:
            self._hand_on(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _body(self) -> bytes:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _hand_on(self, body: bytes) -> None:
        ways = self.server.ways
        dropped = {"connection", "transfer-encoding", "content-length", "expect"}
        dropped |= {"if-none-match"} if "unconditional" in ways else set()
        dropped |= {"range"} if "rangeless" in ways else set()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        target = http.client.HTTPConnection("127.0.0.1", self.server.target_port, timeout=30)
        try:
            target.request(self.command, self.path, body, headers)
            answer = target.getresponse()
            content = answer.read()
            if "short" in ways and answer.status == 206 and len(content) > 1:
                content = content[:-1]
            self._answer(answer.status, content, dict(answer.getheaders()))
        finally:
            target.close()

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers = {name.lower(): value for name, value in (headers or {"content-type": "application/xml"}).items()}
        self.send_response(status)
        if self.command != "HEAD":
            headers["content-length"] = str(len(content))
        for name, value in headers.items():
            if name not in {"connection", "transfer-encoding", "date", "server"}:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def running_proxy(port: int) -> Iterator[Proxy]:
    """Run a proxy in front of a port of this machine."""
    with Proxy(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.is_closing.set()
            proxy.shutdown()
            thread.join()


def wait_for(port: int, limit_s: float) -> None:
    """Wait until something listens on a port of this machine."""
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline_s, f"nothing listens on port {port}"
            time.sleep(0.05)
        else:
            return
