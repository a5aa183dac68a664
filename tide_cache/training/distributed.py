"""This process's rank, world size and device: alone, or under torchrun, DeepSpeed's launcher or Slurm."""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from tide_cache.errors import RunFileError
from tide_cache.launchers import PLAIN, launcher_names

COLLECTIVE_S = 1800.0
"""Seconds that a collective waits for the last rank: for one whose data is late, or whose kernels are compiled. Ranks
that have died end the others at once (`company.py`); whatever takes longer waits in the store (`meeting.wait_for_all`).
"""


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and talks to the user."""
        return self.rank == 0


def find_world() -> World:
    """Read launcher variables: RANK and WORLD_SIZE (torchrun, DeepSpeed), or the step's variables under `srun`.

    Raises:
        RunFileError: Several processes are announced but not where they meet, or a variable holds no number.
    """
    env = os.environ
    if (names := launcher_names(env)) is None:
        return World(0, 1, 0)
    local = "LOCAL_RANK" if names == PLAIN else "SLURM_LOCALID"
    world = World(_number(names[0]), _number(names[1]), _number(local, "0"))
    if world.rank >= world.size:
        raise RunFileError(f"{names[0]}: found {world.rank}, expected less than {names[1]} = {world.size}")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
    if world.size > 1 and missing:
        raise RunFileError(
            f"found rank {world.rank} of {world.size} in the environment, but no {' and '.join(missing)}; under Slurm: "
            "export MASTER_PORT=29500 MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)"
        )
    return world


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise RunFileError(f"{name}: found {text!r}, expected a whole number, as launchers set it")
    return int(text)


def rank_device(world: World, device: str) -> str:
    """Return the device of this process: the only GPU that it sees, else the one of its number on this machine.

    Launchers let each process see either all GPUs of its machine or only its own.

    Args:
        world: This process.
        device: As returned by `resolve_device`.

    Raises:
        RunFileError: The process sees several GPUs, and fewer than there are processes here.
    """
    if device != "cuda":
        return device
    found = torch.cuda.device_count()
    if world.local_rank < found:
        return f"cuda:{world.local_rank}"
    if found == 1:
        return "cuda:0"
    raise RunFileError(
        f"process {world.rank} of {world.size} is number {world.local_rank} on its machine, counted from 0, and sees "
        f"{found} GPUs; start one process for each GPU, and let each see its own or all of its machine "
        "(CUDA_VISIBLE_DEVICES)"
    )


def device_name(device: str) -> str:
    """Return a name of a GPU that no other has, on any machine; empty for a CPU, which processes may share."""
    if not device.startswith("cuda"):
        return ""
    return f"{device} of {socket.gethostname()}, {torch.cuda.get_device_properties(device).uuid}"


def give_time() -> None:
    """Have every group's collectives wait `COLLECTIVE_S`: DeepSpeed makes groups that would wait 10 minutes."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=COLLECTIVE_S), group)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Add a small tensor over all ranks; returns a new one."""
    total = values.clone()
    dist.all_reduce(total)
    return total
