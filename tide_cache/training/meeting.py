"""Where ranks meet: one store on the first rank's machine, found within a minute or not at all."""

import atexit
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from itertools import count

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from tide_cache.errors import RankError, RunFileError, first_line
from tide_cache.training.distributed import COLLECTIVE_S, World

VARIABLE = "TIDE_CACHE_MEET_S"
"""Of the environment: seconds that ranks wait for each other to come."""

PATIENCE_S = 60.0
"""Ranks are started together; they arrive as far apart as their machines differ in loading torch."""

LONGEST_S = 86_400.0

_stores: dict[tuple[int, int], Store] = {}
_waits: defaultdict[World, Iterator[int]] = defaultdict(count)


def patience_s() -> float:
    """Return how long a rank waits for the others to come.

    Raises:
        RunFileError: The variable holds no number of seconds.
    """
    said = os.environ.get(VARIABLE, str(PATIENCE_S))
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_S:
        raise RunFileError(f"{VARIABLE}: found {said!r}; expected seconds above 0, at most {LONGEST_S:.0f}")
    return seconds


def meet(world: World) -> Store:
    """Connect to the store of all ranks; once per process, however many runs it makes.

    Args:
        world: This process among several.

    Raises:
        RankError: The first rank cannot be reached, or its port is taken.
        RunFileError: A launcher's variable cannot be used.
    """
    if (known := _stores.get((world.rank, world.size))) is not None:
        return known
    host, port = os.environ["MASTER_ADDR"], _port()
    is_master = world.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    limit = timedelta(seconds=patience_s())
    if not is_master:
        _await_port(world, host, port)
    try:
        store = TCPStore(host, port, None, is_master, limit, wait_for_workers=False)
    except RuntimeError as error:  # all errors of torch's stores are
        raise _no_store(world, host, port, is_master, error) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives processes that it restarts
    return _stores.setdefault((world.rank, world.size), PrefixStore(f"tide-cache/{attempt}", store))


def join(world: World, device: str) -> None:
    """Join the other processes until this one ends; one process alone needs no port.

    DeepSpeed holds on to the process groups it was first given, so a process joins once however many runs it makes.

    Args:
        world: This process.
        device: Its own, with a number where it is a GPU.
    """
    if dist.is_initialized():
        return
    _, _, number = device.partition(":")
    os.environ["LOCAL_RANK"] = number or str(world.local_rank)  # DeepSpeed finds the device by it
    store = HashStore() if world.size == 1 else PrefixStore("group", meet(world))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    limit = timedelta(seconds=COLLECTIVE_S)
    dist.init_process_group(backend, timeout=limit, store=store, rank=world.rank, world_size=world.size)
    atexit.register(dist.destroy_process_group)


def wait_for_all(world: World) -> None:
    """Wait until every rank has come as often as this one, as long as it takes.

    For what one rank does on a disk while the others have nothing to do: a collective would give up on it, and a rank
    that dies meanwhile ends the others all the same (`company.py`).

    Args:
        world: This process.
    """
    if world.size == 1:
        return
    store, place = PrefixStore("wait", meet(world)), str(next(_waits[world]))
    store.add(place, 1)
    pause_s = 0.002
    while store.add(place, 0) < world.size:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.2)


def _await_port(world: World, host: str, port: int) -> None:
    """Wait until the first rank's port is open; torch's own store would print C++ frames where it is not."""
    until_s = time.monotonic() + patience_s()
    while True:
        try:
            socket.create_connection((host, port), timeout=patience_s()).close()
            return
        except OSError as error:
            if time.monotonic() > until_s:
                raise _no_store(world, host, port, False, error) from None
            time.sleep(0.1)


def _port() -> int:
    said = os.environ["MASTER_PORT"]
    if not said.isdecimal() or not 0 < int(said) < 65_536:
        raise RunFileError(f"MASTER_PORT: found {said!r}; expected a port from 1 to 65535")
    return int(said)


def _no_store(world: World, host: str, port: int, is_master: bool, error: Exception) -> RankError:
    reason = first_line(error)
    if is_master:
        return RankError(
            f"MASTER_PORT {port} cannot be opened on this machine: {reason}\n"
            "Another run may hold it: export another MASTER_PORT, the same for all processes."
        )
    return RankError(
        f"process {world.rank} of {world.size} cannot reach process 0 at MASTER_ADDR:MASTER_PORT = {host}:{port} "
        f"within {patience_s():.0f} s: {reason}\nSee whether process 0 was started, what it said, and whether this "
        f"machine can reach that port; {VARIABLE} sets how long to wait."
    )
