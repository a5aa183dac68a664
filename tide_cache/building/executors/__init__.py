"""Where shards are built; an executor hands out their numbers and nothing else."""

from tide_cache.building.executors.base import BuildLog, Executor
from tide_cache.building.executors.in_process import InProcess
from tide_cache.building.executors.processes import LocalProcesses
from tide_cache.building.executors.ray_actors import RayActors

__all__ = ["BuildLog", "Executor", "InProcess", "LocalProcesses", "RayActors"]
