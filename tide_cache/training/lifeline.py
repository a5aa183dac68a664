"""One connection from each rank to the first: it breaks when a process dies, and tells all others why one failed.

Lines of JSON: `[rank]` when a rank comes, `null` when it leaves in peace, `{"rank": ...}` when it fails. The operating
system closes the connection of a process that is killed; keep-alive finds a machine that is gone within a minute.
Neither needs the interpreter of the other side, which may be in C for minutes.
"""

import contextlib
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from threading import Event, Lock, Thread

from torch._C._distributed_c10d import Store

from tide_cache.errors import RankError, first_line
from tide_cache.training.distributed import World
from tide_cache.training.meeting import VARIABLE, patience_s

LINGER_S = 10.0
"""How long a first rank that failed waits for those that are still on their way, to tell them."""

LOOK_S = 0.5
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6}
"""A machine that answers nothing for 45 s is gone."""

LEAVES = None
GONE = (
    "it has gone: killed, out of memory, or its machine was lost. Run the same command again, with --resume where a "
    "checkpoint was committed"
)


@dataclass(frozen=True)
class Failure:
    """Why a run ends: what the first rank that failed says.

    Attributes:
        rank: Which one.
        message: For the user.
        exit_code: Of all processes.
    """

    rank: int
    message: str
    exit_code: int

    def describe(self, size: int) -> str:
        """Return what happened, and in which of `size` processes."""
        return f"in process {self.rank} of {size}: {self.message}"


Hear = Callable[[Failure], None]


class _Peer:
    """One end of a connection that carries lines."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rank: int | None = None
        self.has_left = False
        self._received = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if option := getattr(socket, name, None):  # Linux has all of them
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, message: object) -> None:
        """Send a line; a peer that has gone does not get it."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[object]:
        """Yield lines as they arrive.

        Raises:
            EOFError: The other side has closed the connection, or is gone.
        """
        try:
            found = self.connection.recv(65_536)
        except OSError:
            found = b""
        if not found:
            raise EOFError
        *lines, self._received = (self._received + found).split(b"\n")
        return [json.loads(line) for line in lines]


class FirstRank:
    """The first rank's side: listens to all others, and passes on the first failure."""

    def __init__(self, world: World, store: Store, hear: Hear) -> None:
        """Open a port and tell the others of it.

        Args:
            world: This process, the first.
            store: Of all ranks and of this run.
            hear: Called once, with the first failure of another rank, in this object's thread.
        """
        self._world, self._hear = world, hear
        self._server = _open_port()
        self._secret = os.urandom(16).hex()
        self._peers: dict[int, _Peer] = {}
        self._failure: Failure | None = None
        self._lock, self._all_came, self._is_over = Lock(), Event(), Event()
        self._late_s = time.monotonic() + patience_s()
        store.set("lifeline", json.dumps([socket.gethostname(), self._server.getsockname()[1], self._secret]))
        self._thread = Thread(target=self._serve, name="tide-cache-lifeline", daemon=True)
        self._thread.start()

    def tell(self, failure: Failure) -> None:
        """Report a failure to all others; wait a little for those still to come."""
        self._pass_on(failure)
        self._all_came.wait(LINGER_S)

    def leave(self) -> None:
        """Report that this rank ends well."""
        with self._lock:
            for peer in self._peers.values():
                peer.send(LEAVES)

    def see_off(self) -> None:
        """Return at once: the first rank waits for nobody."""

    def close(self) -> None:
        """Stop listening."""
        self._is_over.set()
        self._thread.join()
        self._server.close()
        for peer in self._peers.values():
            peer.connection.close()

    def _pass_on(self, failure: Failure) -> bool:
        """Report a failure to the others, if it is the first; ranks that come later hear of it then."""
        with self._lock:
            if self._failure is not None:
                return False
            self._failure = failure
            for peer in self._peers.values():
                peer.send(asdict(failure))
        return True

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ, None)
            while not self._is_over.is_set():
                for key, _ in selector.select(LOOK_S if self._all_came.is_set() else LOOK_S / 5):
                    if key.data is None:
                        connection, _ = self._server.accept()
                        selector.register(connection, selectors.EVENT_READ, _Peer(connection))
                    elif not self._serve_peer(key.data):
                        selector.unregister(key.fileobj)
                self._miss()

    def _serve_peer(self, peer: _Peer) -> bool:
        """Handle what a peer sends; return whether more may come."""
        try:
            lines = peer.receive()
        except (EOFError, ValueError):
            if peer.rank is not None and not peer.has_left:
                self._fail(Failure(peer.rank, GONE, 1))
            return False
        for line in lines:
            if peer.rank is None:
                if not isinstance(line, list) or line[1:] != [self._secret]:
                    return False  # a stranger found the port
                self._welcome(peer, line[0])
            elif line is LEAVES:
                peer.has_left = True
            else:
                assert isinstance(line, dict)
                peer.has_left = True
                self._fail(Failure(**line))
        return True

    def _welcome(self, peer: _Peer, rank: int) -> None:
        with self._lock:
            peer.rank = rank
            self._peers[rank] = peer
            if self._failure is not None:
                peer.send(asdict(self._failure))
        if len(self._peers) == self._world.size - 1:
            self._all_came.set()

    def _miss(self) -> None:
        """Fail when a rank has not come in time."""
        if self._all_came.is_set() or time.monotonic() < self._late_s:
            return
        missing = sorted(set(range(1, self._world.size)) - self._peers.keys())
        words = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(map(str, missing[:8]))}"
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        self._all_came.set()
        self._fail(
            Failure(
                0,
                f"{words}{more} of {self._world.size} did not come within {patience_s():.0f} s: see what they said, "
                f"and whether they were started; {VARIABLE} sets how long to wait",
                1,
            )
        )

    def _fail(self, failure: Failure) -> None:
        if self._pass_on(failure):
            self._hear(failure)


class OtherRank:
    """The side of a rank that is not the first."""

    def __init__(self, world: World, store: Store, hear: Hear) -> None:
        """Connect with the first rank.

        Args:
            world: This process.
            store: Of all ranks and of this run.
            hear: Called once, with the first failure of another rank, in this object's thread.

        Raises:
            RankError: The first rank has not opened its port, or it cannot be reached.
        """
        self._world, self._hear = world, hear
        self._is_over = False
        self._peer = _Peer(_connect(world, store))
        _, _, secret = json.loads(store.get("lifeline"))
        self._peer.send([world.rank, secret])
        self._thread = Thread(target=self._listen, name="tide-cache-lifeline", daemon=True)
        self._thread.start()

    def tell(self, failure: Failure) -> None:
        """Report to the first rank, which passes it on."""
        self._peer.send(asdict(failure))

    def leave(self) -> None:
        """Report that this rank ends well."""
        self._peer.send(LEAVES)

    def see_off(self) -> None:
        """Wait until the first rank has ended, well or not."""
        self._thread.join()

    def close(self) -> None:
        """Stop listening."""
        self._is_over = True
        with contextlib.suppress(OSError):
            self._peer.connection.shutdown(socket.SHUT_WR)

    def _listen(self) -> None:
        try:
            while not self._is_over:
                for line in self._peer.receive():
                    if line is LEAVES:
                        self._is_over = True
                    elif not self._is_over:
                        assert isinstance(line, dict)
                        self._is_over = True
                        self._hear(Failure(**line))
        except EOFError:
            if not self._is_over:
                self._hear(Failure(0, GONE, 1))
            self._peer.connection.close()


def _open_port() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _connect(world: World, store: Store) -> socket.socket:
    try:
        store.wait(["lifeline"])
        host, port, _ = json.loads(store.get("lifeline"))
    except RuntimeError as error:
        raise RankError(
            f"process 0 of {world.size} did not come within {patience_s():.0f} s: {first_line(error)}; see "
            f"what it said, and whether it was started; {VARIABLE} sets how long to wait"
        ) from None
    reasons = []
    for name in (os.environ["MASTER_ADDR"], host):
        try:
            connection = socket.create_connection((name, port), timeout=patience_s())
        except OSError as error:
            reasons.append(f"{name}: {error}")
        else:
            connection.settimeout(None)
            return connection
    raise RankError(f"process {world.rank} cannot reach port {port} of process 0: {'; '.join(reasons)}; open it")
