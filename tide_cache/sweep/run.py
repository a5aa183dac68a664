"""All jobs of a sweep, one after the other or in parallel; a failed job does not stop the others."""

import os
import selectors
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch

from tide_cache.child import Child
from tide_cache.errors import Interrupted, RunFileError, TideCacheError
from tide_cache.interruption import StopRequest
from tide_cache.modeling.backbone import resolve_device
from tide_cache.sweep.arms import Job
from tide_cache.sweep.worker import find_work

WORKER = "tide_cache.sweep.worker"
WORK = "tide_cache.sweep.job:run_job"
POLL_S = 0.2
AGAIN = "Run the same command again: finished students are kept, interrupted ones go on from their checkpoint."

OnJobStep = Callable[[Job, int, int], None]
"""Called with the job, the number of a logged step, and how many steps it has."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended; `error` is None if it succeeded."""

    job: Job
    error: str | None


def run_jobs(
    jobs: Sequence[Job], num_processes: int, on_step: OnJobStep, work: str = WORK, threads: int | None = None
) -> Generator[JobEnd, None, None]:
    """Run jobs; yield them as they end.

    Args:
        jobs: From `make_jobs`, checked.
        num_processes: 1 runs them in this process; more run in parallel, each on separate cores or a separate GPU.
        on_step: Hears about progress.
        work: What runs a job, as `module:function` of a `Job` and an `OnStep`; by default it trains and measures.
        threads: Threads of each of several processes; by default its share of the cores.

    Raises:
        Interrupted: A stop was asked for; finished work is kept.
    """
    try:
        if num_processes == 1:
            yield from (_run_here(job, on_step, work) for job in jobs)
        else:
            yield from _run_side_by_side(jobs, num_processes, on_step, work, threads)
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped. {AGAIN}") from None


def _run_here(job: Job, on_step: OnJobStep, work: str) -> JobEnd:
    try:
        find_work(work)(job, lambda metrics, steps: on_step(job, metrics.step, steps))
    except Interrupted as error:
        stopped = Interrupted(f"Stopped in {job.name}. {AGAIN}")
        stopped.exit_code = error.exit_code
        raise stopped from None
    except TideCacheError as error:
        return JobEnd(job, str(error))
    except Exception:  # a bug in one arm is reported, and must not stop the others
        return JobEnd(job, traceback.format_exc())
    return JobEnd(job, None)


def devices_of(jobs: Sequence[Job], num_processes: int) -> list[str | None]:
    """Return the name of each process's GPU, or None on CPUs.

    Raises:
        RunFileError: There are fewer GPUs than processes.
    """
    if resolve_device(jobs[0].run.train.device) == "cpu":
        return [None] * num_processes
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if num_processes > len(names):
        raise RunFileError(
            f"--jobs {num_processes}: found {len(names)} GPUs, and every student needs its own; lower it"
        )
    return list(names[:num_processes])


def _run_side_by_side(
    jobs: Sequence[Job], num_processes: int, on_step: OnJobStep, work: str, threads: int | None
) -> Iterator[JobEnd]:
    waiting, free = list(jobs), devices_of(jobs, num_processes)
    threads = threads or max(1, len(os.sched_getaffinity(0)) // num_processes)
    selector = selectors.DefaultSelector()
    with StopRequest() as stop:
        try:
            while waiting or selector.get_map():
                while waiting and free:
                    started = _Worker(waiting.pop(0), free.pop(0), threads, work)
                    selector.register(started.answers, selectors.EVENT_READ, started)
                ready = selector.select(POLL_S)
                if stop.is_set:
                    break
                for worker in (key.data for key, _ in ready):
                    for answer in worker.read():
                        if "step" in answer:
                            on_step(worker.job, answer["step"], answer["steps"])
                            continue
                        yield JobEnd(worker.job, None)
                        worker.give(waiting.pop(0) if waiting else None)
                    if worker.has_ended:
                        selector.unregister(worker.answers)
                        code = worker.bury()
                        free.append(worker.device)
                        if worker.job is not None:
                            yield JobEnd(worker.job, _fault_of(code, worker.job))
        finally:
            left = [key.data for key in list(selector.get_map().values())]
            for worker in left:
                worker.popen.terminate()
            for worker in left:
                worker.bury()  # the worker commits a checkpoint first
            selector.close()
        if stop.is_set:
            stop.raise_interrupted(f"Stopped. {AGAIN}")


class _Worker(Child):
    """A process that runs jobs.

    Attributes:
        device: Name of its GPU; None on CPUs.
        job: The current job; None when there is nothing left to do.
    """

    def __init__(self, job: Job, device: str | None, threads: int, work: str) -> None:
        self.device = device
        self.job: Job | None = None
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:  # until the worker has the job and redirects its output itself
            super().__init__([WORKER, work], {} if device is None else {"CUDA_VISIBLE_DEVICES": device}, threads, log)
        self.give(job)

    def give(self, job: Job | None) -> None:
        """Give the worker its next job, or let it end."""
        self.job = job
        if job is None:
            self.send_home()
        else:
            self.send(job.model_dump_json())


def _fault_of(code: int, job: Job) -> str:
    """Return why a process ended before its job was done."""
    text = job.log.read_text(encoding="utf-8", errors="replace").strip()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; its output is in {job.log}"
    _, found, said = text.rpartition("\nerror: ")
    if not found and text.startswith("error: "):
        found, said = "error: ", text.removeprefix("error: ")
    return said if found else f"{text.splitlines()[-1] if text else 'it said nothing'}; its output is in {job.log}"
