"""Starting several local processes of `train`: what torchrun would do, from the command itself."""

import logging
import os
import tempfile
from pathlib import Path

from tide_cache.config.train import TrainRun
from tide_cache.errors import RunFileError

from .console import complain
from .run_toml import run_toml

SHUTDOWN_TIMEOUT_S = 600
"""Time for all processes to commit a checkpoint after Ctrl-C, before they are killed."""


def require_no_launcher(num_gpus: int) -> None:
    """Refuse `--num-gpus` in a process that a launcher has started.

    Raises:
        RunFileError: Launcher variables are set.
    """
    env = os.environ
    names = ["RANK", "WORLD_SIZE"] if "RANK" in env and "WORLD_SIZE" in env else []
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names += ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"]
    if names:
        found = ", ".join(f"{name}={env[name]}" for name in names)
        raise RunFileError(
            f"--num-gpus {num_gpus}: found {found} in the environment: a launcher has started this process already, "
            "and it joins the others by itself. Leave --num-gpus out, or start the command without a launcher."
        )


def require_gpus(num_gpus: int, device: str) -> None:
    """Refuse more processes than GPUs, where the run uses GPUs at all.

    Raises:
        RunFileError: There are fewer.
    """
    import torch

    found = torch.cuda.device_count()
    uses_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if uses_gpus and num_gpus > found:
        raise RunFileError(
            f"--num-gpus {num_gpus}: found {found} GPUs; lower it, or train on the CPU with --set train.device=cpu"
        )


def launch(run: TrainRun, num_processes: int, flags: list[str]) -> int:
    """Run `train` in local processes until they end.

    Each process reads the resolved run from a temporary file. Processes start in sessions of their own, so Ctrl-C
    reaches this process alone, which passes it on once to each of them.

    Args:
        run: The resolved run.
        num_processes: How many.
        flags: Options of `train` to hand on.

    Returns:
        Exit code: of the process that failed first, or 128 plus the signal that stopped this one.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as run_processes

    logging.disable()  # each process says itself what is wrong
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_TIMEOUT_S))
    with tempfile.TemporaryDirectory(prefix="tide-cache-run-") as folder:
        path = Path(folder, "run.toml")
        path.write_text(run_toml(run), encoding="utf-8")
        launcher = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={num_processes}"]
        command = ["-m", f"{__package__}.main", "train", str(path), *flags]
        try:
            run_processes(parse_args([*launcher, *command]))  # type: ignore[no-untyped-call]
        except SignalException as error:
            return 128 + int(error.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                complain(f"error: process {rank} was killed by signal {-failure.exitcode}; the others were stopped")
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0
