"""Several processes: start local ones of `train`, as torchrun would, and report each error only once."""

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tide_cache.config.train import TrainRun
from tide_cache.errors import Interrupted, RankError, RunFileError, TideCacheError
from tide_cache.launchers import launcher_names

from .console import complain
from .run_toml import run_toml

if TYPE_CHECKING:
    from tide_cache.training.distributed import World

SHUTDOWN_TIMEOUT_S = 600
"""Time for all processes to commit a checkpoint after Ctrl-C, before they are killed."""


FIRST_SPEAKS_S = 3.0
"""How long another process holds its message back, while the first says the same and the launcher ends all."""


@contextmanager
def one_voice() -> Iterator[None]:
    """Let the first of several processes say what went wrong; another speaks only if nobody ends it meanwhile.

    A fault that one process finds alone is told to the others, so that none waits for it.
    """
    try:
        yield
    except TideCacheError as error:
        if not launcher_variables():
            raise
        from tide_cache.training.distributed import find_world

        _tell_others(error)
        _speak_in_turn(error, find_world())
        raise typer.Exit(error.exit_code) from None


def _tell_others(error: TideCacheError) -> None:
    """Report an error that was found before the processes met."""
    if error.is_told or isinstance(error, RankError):
        return
    from tide_cache.training.company import keep_company
    from tide_cache.training.distributed import find_world

    with suppress(TideCacheError), keep_company(find_world()):
        raise error


def _speak_in_turn(error: TideCacheError, world: "World") -> None:
    if world.is_first:
        if isinstance(error, RankError) and error.has_gone and "TORCHELASTIC_RUN_ID" in os.environ:
            time.sleep(FIRST_SPEAKS_S)  # torchrun ends this process, and says who was killed
        complain(str(error) if isinstance(error, Interrupted) else f"error: {error}")
    elif not isinstance(error, Interrupted):
        time.sleep(FIRST_SPEAKS_S)
        where = "" if isinstance(error, RankError) else f" in process {world.rank} of {world.size}"
        complain(f"error{where}: {error}")


def launcher_variables() -> list[str]:
    """List the variables by which a launcher tells this process its rank; none where it runs alone."""
    return list(launcher_names(os.environ) or ())


def require_no_launcher(num_gpus: int) -> None:
    """Refuse `--num-gpus` in a process that a launcher has started.

    Raises:
        RunFileError: Launcher variables are set.
    """
    if names := launcher_variables():
        found = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise RunFileError(
            f"--num-gpus {num_gpus}: found {found} in the environment: a launcher has already started this process, "
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

    Each process reads the resolved run from a temporary file. Each process has its own session, so Ctrl-C
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
