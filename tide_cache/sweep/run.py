"""All jobs of a sweep, one after the other or side by side; one that fails does not stop the others."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tide_cache.errors import Interrupted, RunFileError, TideCacheError
from tide_cache.interruption import StopRequest
from tide_cache.modeling.backbone import resolve_device
from tide_cache.sweep.arms import Job
from tide_cache.sweep.job import run_job
from tide_cache.training.metrics import StepMetrics

WORKER = "tide_cache.sweep.worker"
POLL_S = 0.2
AGAIN = "Run the same command again: finished students are kept, interrupted ones go on from their checkpoint."

OnJobStep = Callable[[Job, StepMetrics, int], None]
"""Called with the job, the figures of a logged step, and how many steps it has."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended; `error` is None where it did what it should."""

    job: Job
    error: str | None


def run_jobs(jobs: Sequence[Job], num_processes: int, on_step: OnJobStep) -> Iterator[JobEnd]:
    """Run jobs; yield them as they end.

    Args:
        jobs: From `make_jobs`, checked.
        num_processes: 1 runs them in this process; more run side by side, each on cores or on a GPU of its own.
        on_step: Progress; called only for jobs of this process.

    Raises:
        Interrupted: A stop was asked for; what was done is kept.
    """
    try:
        if num_processes == 1:
            yield from (_run_here(job, on_step) for job in jobs)
        else:
            yield from _run_side_by_side(jobs, num_processes)
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped. {AGAIN}") from None


def _run_here(job: Job, on_step: OnJobStep) -> JobEnd:
    try:
        run_job(job, lambda metrics, steps: on_step(job, metrics, steps))
    except Interrupted as error:
        stopped = Interrupted(f"Stopped in {job.name}. {AGAIN}")
        stopped.exit_code = error.exit_code
        raise stopped from None
    except TideCacheError as error:
        return JobEnd(job, str(error))
    except Exception:  # a fault of ours in one arm is shown, and must not cost the others
        return JobEnd(job, traceback.format_exc())
    return JobEnd(job, None)


def devices_of(jobs: Sequence[Job], num_processes: int) -> list[str | None]:
    """Give each process the name of a GPU, or None on CPUs.

    Raises:
        RunFileError: There are fewer GPUs than processes.
    """
    if resolve_device(jobs[0].run.train.device) == "cpu":
        return [None] * num_processes
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if num_processes > len(names):
        raise RunFileError(
            f"--jobs {num_processes}: found {len(names)} GPUs, and every student has one of its own; lower it"
        )
    return list(names[:num_processes])


def _run_side_by_side(jobs: Sequence[Job], num_processes: int) -> Iterator[JobEnd]:
    waiting, free = list(jobs), devices_of(jobs, num_processes)
    running: dict[subprocess.Popen[bytes], tuple[Job, str | None]] = {}
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    with StopRequest() as stop:
        try:
            while waiting or running:
                while waiting and free:
                    job, device = waiting.pop(0), free.pop(0)
                    running[_start(job, device, threads)] = job, device
                time.sleep(POLL_S)
                if stop.is_set:
                    break
                for process in [process for process in running if process.poll() is not None]:
                    job, device = running.pop(process)
                    free.append(device)
                    yield JobEnd(job, _fault_of(process, job))
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait()  # it commits a checkpoint first
                _close(process)
        if stop.is_set:
            stop.raise_interrupted(f"Stopped. {AGAIN}")


def _start(job: Job, device: str | None, threads: int) -> "subprocess.Popen[bytes]":
    """Start a job in a session of its own: Ctrl-C reaches the sweep alone, which stops its jobs."""
    log = job.log
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER],
            stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True, env=environment,
        )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(job.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    return process


def _close(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()


def _fault_of(process: "subprocess.Popen[bytes]", job: Job) -> str | None:
    """Say why a process that has ended failed; None when it did not."""
    _close(process)
    if process.returncode == 0:
        return None
    text = job.log.read_text(encoding="utf-8", errors="replace").strip()
    if process.returncode < 0:
        return f"killed by {signal.Signals(-process.returncode).name}; its output is in {job.log}"
    _, found, said = text.rpartition("\nerror: ")
    if not found and text.startswith("error: "):
        found, said = "error: ", text.removeprefix("error: ")
    return said if found else f"{text.splitlines()[-1] if text else 'it said nothing'}; its output is in {job.log}"
