"""Which process this is among how many, and joining them: one alone, torchrun, DeepSpeed's launcher, or Slurm."""

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from tide_cache.errors import RunFileError


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and speaks to the user."""
        return self.rank == 0


def find_world() -> World:
    """Read launcher variables: RANK and WORLD_SIZE (torchrun, DeepSpeed), or the step's variables under `srun`.

    Raises:
        RunFileError: Several processes are announced but not where they meet.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world = World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", "0")))
    elif int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set by srun alone; a batch script by itself is one process
        world = World(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_LOCALID", "0")))
    else:
        return World(0, 1, 0)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
    if world.size > 1 and missing:
        raise RunFileError(
            f"found rank {world.rank} of {world.size} in the environment, but no {' and '.join(missing)}; under Slurm: "
            "export MASTER_PORT=29500 MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)"
        )
    return world


def join(world: World, device: str) -> None:
    """Join the other processes until this one ends; one process alone needs no port.

    DeepSpeed holds on to the process groups it was first given, so a process joins once however many runs it makes.
    """
    if dist.is_initialized():
        return
    backend = "nccl" if device.startswith("cuda") else "gloo"
    os.environ["LOCAL_RANK"] = str(world.local_rank)  # DeepSpeed looks for it
    if world.size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, rank=world.rank, world_size=world.size)
    atexit.register(dist.destroy_process_group)


def max_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Give the largest of the ranks' values, element by element; returns a new tensor."""
    result = value.clone()
    dist.all_reduce(result, op=dist.ReduceOp.MAX)
    return result


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Add a small tensor over all ranks; returns a new one."""
    total = values.clone()
    dist.all_reduce(total)
    return total
