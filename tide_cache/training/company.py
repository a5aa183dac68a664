"""Ranks that end together: one that fails or dies ends the others within seconds, with the first one's message.

A process group of torch notices a lost rank only in a collective, after up to half an hour, and with a traceback. So
each rank holds one more connection, to the first rank. The operating system closes it when a process dies, however that
happens, and a failing rank sends its message over it to all others (`lifeline.py`). A rank that waits in a collective
cannot be woken up; a thread then says what happened and ends the process.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from secrets import token_hex
from threading import Event, Timer

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from tide_cache.errors import Interrupted, RankError, RunFileError, TideCacheError, first_line
from tide_cache.progress import doing
from tide_cache.training.distributed import World
from tide_cache.training.lifeline import GONE, Failure, FirstRank, OtherRank
from tide_cache.training.meeting import meet

GRACE_S, FIRST_SPEAKS_S = 1.0, 3.0
"""Time for a rank to end by itself when another has failed, and how much more for those that are not the first."""

NEWS_S = 10.0
"""Time to wait for the news of why a connection was lost."""

SHARED_S = 20.0
"""Time for a new file to be seen by other machines: a network file system remembers for seconds what was not there."""

PROBE = ".tide-cache-probe-"
"""Begins the name of a file by which ranks see whether they share a folder."""

_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "connection refused")
"""Words of a RuntimeError that another rank's end causes here."""

Condition = Callable[[], bool]

_numbers = count()


@contextmanager
def keep_company(world: World) -> Iterator["Company"]:
    """Run the `with` block as one of several ranks, which end together; alone, this does nothing.

    Every rank enters it, as often as the others. A rank that leaves it without an error is no longer watched.

    Args:
        world: This process.

    Raises:
        RankError: Ranks did not meet; or another rank failed or died first, with its message and exit code.
    """
    if world.size == 1:
        yield Company(world, None)
        return
    company = Company(world, PrefixStore(f"run-{next(_numbers)}", meet(world)))
    try:
        yield company
    except BaseException as error:
        company.end(error)
        raise
    company.leave()
    company.see_off()


class Company:
    """The ranks of a run, as one of them sees them."""

    def __init__(self, world: World, store: Store | None) -> None:
        """Join the others; see `keep_company`."""
        self._world, self._store = world, store
        self._failure: Failure | None = None
        self._heard, self._is_ending = Event(), Event()
        if store is not None:
            self._line = (FirstRank if world.is_first else OtherRank)(world, store, self._hear)

    def from_first(self, what: str, value: str) -> str:
        """Return on all ranks what the first one found, where each could find something else: the day, around midnight.

        Args:
            what: Its name; every rank asks for it once.
            value: What this rank found.

        Raises:
            RankError: The first rank failed or died meanwhile.
        """
        store, key = self._store, f"first/{what}"
        if store is None:
            return value
        if self._world.is_first:
            store.set(key, value)
        else:
            self._wait_until(lambda: store.check([key]))
        return str(store.get(key).decode())

    def agree(self, device: str) -> None:
        """Wait until every rank is ready for its first collective.

        Args:
            device: What this rank computes on, under a name that no other device has; empty where ranks may share it.

        Raises:
            RankError: Another rank failed or died meanwhile.
            RunFileError: Two ranks have the same device.
        """
        if self._store is None:
            return
        self._store.set(f"device/{self._world.rank}", device)
        self._wait_for_all("ready")
        devices = [self._store.get(f"device/{rank}").decode() for rank in range(self._world.size)]
        for rank, taken in enumerate(devices):
            if taken and (first := devices.index(taken)) < rank:
                raise RunFileError(
                    f"processes {first} and {rank} of {self._world.size} compute on the same GPU, {taken}; start one "
                    "process for each GPU, and let each see its own or all of its machine (CUDA_VISIBLE_DEVICES)"
                )

    def require_shared(self, folder: Path) -> None:
        """Make a folder on the first rank and refuse to go on when another rank does not see it.

        Args:
            folder: Of the run.

        Raises:
            RunFileError: A rank on another machine has another folder under that path.
            RankError: Another rank failed or died meanwhile.
        """
        if self._store is None:
            return
        if self._world.is_first:
            self._show_probe(self._store, folder)
        else:
            self._find_probe(self._store, folder)

    def _show_probe(self, store: Store, folder: Path) -> None:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{PROBE}{token_hex(8)}"
        probe.touch()
        store.set("probe", json.dumps([probe.name, socket.gethostname()]))
        try:
            self._wait_for_all("shared")
        except RankError:
            probe.unlink()
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
            raise
        probe.unlink()

    def _find_probe(self, store: Store, folder: Path) -> None:
        self._wait_until(lambda: store.check(["probe"]))
        name, host = json.loads(store.get("probe"))
        until_s = time.monotonic() + SHARED_S
        while not _sees(folder, name):
            if time.monotonic() > until_s:
                raise RunFileError(
                    f"train.out: {folder} on {socket.gethostname()} is not the folder that process 0 has made on "
                    f"{host}; checkpoints need one file system for all processes: give a folder that all machines share"
                )
            time.sleep(0.2)
        self._wait_for_all("shared")

    def _wait_for_all(self, what: str) -> None:
        assert self._store is not None
        store, size = self._store, self._world.size
        store.add(what, 1)
        with doing("Waiting for the other processes"):
            self._wait_until(lambda: store.add(what, 0) >= size)

    def _wait_until(self, holds: Condition) -> None:
        """Poll; the operating system reports a rank that dies meanwhile."""
        pause_s = 0.002
        while True:
            try:
                if holds():
                    return
            except RuntimeError as error:  # the first rank took the store with it
                raise self._lost(error) from None
            if self._heard.wait(pause_s):
                raise self._others_failure()
            pause_s = min(2 * pause_s, 0.2)

    def end(self, error: BaseException) -> None:
        """Tell the others why this rank fails, or find out which of them failed first.

        Raises:
            RankError: Another rank failed first, and `error` is what came of it here.
        """
        if self._store is None or isinstance(error, RankError):
            return
        self._is_ending.set()
        if isinstance(error, TideCacheError):
            error.is_told = True
        if isinstance(error, Interrupted):  # all have agreed to stop
            self.leave()
            self._line.close()
            return
        if not isinstance(error, TideCacheError) and isinstance(error, Exception):
            if self._failure is not None:
                raise self._others_failure() from None
            if _is_lost_connection(error):
                raise self._lost(error) from None
        self._line.tell(_failure(self._world, error))
        self._line.close()

    def leave(self) -> None:
        """End well: from now on no rank misses this one."""
        if self._store is not None:
            self._is_ending.set()
            self._line.leave()

    def see_off(self) -> None:
        """Wait until the first rank is also done: it writes the model, and all ranks fail if it cannot.

        Raises:
            RankError: It failed.
        """
        if self._store is None:
            return
        self._line.see_off()
        if self._failure is not None:
            raise self._others_failure()
        self._line.close()

    def _lost(self, error: Exception) -> RankError:
        """Return the error that says why a connection was lost, as soon as that is known."""
        if not self._heard.wait(NEWS_S):
            reason = first_line(error)
            self._failure = _failure(self._world, RankError(f"the connection to another process was lost: {reason}"))
            self._line.tell(self._failure)
        return self._others_failure()

    def _others_failure(self) -> RankError:
        assert self._failure is not None
        self._is_ending.set()
        self._line.close()
        message, has_gone = self._failure.describe(self._world.size), self._failure.message == GONE
        return RankError(message, exit_code=self._failure.exit_code, has_gone=has_gone)

    def _hear(self, failure: Failure) -> None:
        """Take the first failure of another rank; called in the thread of the lifeline."""
        self._failure = failure
        self._heard.set()
        timer = Timer(GRACE_S if self._world.is_first else GRACE_S + FIRST_SPEAKS_S, self._end_process)
        timer.daemon = True
        timer.start()

    def _end_process(self) -> None:
        """End a process that waits for ranks that will never come."""
        if self._is_ending.is_set():
            return
        assert self._failure is not None
        show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a bar may have hidden it
        print(f"{show_cursor}error: {self._failure.describe(self._world.size)}", file=sys.stderr, flush=True)
        os._exit(self._failure.exit_code)


def _is_lost_connection(error: Exception) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(words in str(error).lower() for words in _LOST)


def _failure(world: World, error: BaseException) -> Failure:
    if isinstance(error, TideCacheError):
        return Failure(world.rank, str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure(world.rank, "it was interrupted", 130)
    text = str(error).splitlines()
    return Failure(world.rank, f"{type(error).__name__}: {text[0] if text else ''}; its traceback says where", 1)


def _sees(folder: Path, name: str) -> bool:
    """Return whether a folder holds a file; it is listed again, which a network file system answers from the server."""
    try:
        return name in os.listdir(folder)
    except OSError:
        return False
