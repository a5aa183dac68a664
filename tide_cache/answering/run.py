"""`answers` as a whole: find the missing parts, let workers write them, and join all parts into one file."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tide_cache.answering.prepare import PreparedAnswers
from tide_cache.answering.record import AnswersResult, begin, finish, finished, part_path, require_fits
from tide_cache.answering.shard import PartCounts
from tide_cache.answering.worker import AnswersWorker
from tide_cache.building.executors.devices import worker_devices
from tide_cache.building.executors.processes import build_in_processes
from tide_cache.building.shard import BuiltShard
from tide_cache.config.answers import AnswersRun
from tide_cache.disk import whole_file
from tide_cache.interruption import StopRequest
from tide_cache.modeling.backbone import require_means
from tide_cache.unreadable import is_there

STOP_WITHIN_S = 8.0
WORKER = "tide_cache.answering.worker"

OnProgress = Callable[[int, int], None]
"""Hears how many answers this run has written, and the most that it has to write."""


@dataclass(frozen=True)
class AnswersSummary:
    """What a finished run leaves behind.

    Attributes:
        out: The file.
        result: What it holds.
        num_prompts: Number of rows to answer.
        num_shards: Number of its parts.
        shards_reused: Parts that already existed.
        skipped_rows: Rows that could not be used.
        elapsed_s: Seconds that this run took.
    """

    out: Path
    result: AnswersResult
    num_prompts: int
    num_shards: int
    shards_reused: int
    skipped_rows: tuple[str, ...]
    elapsed_s: float


def write_answers(
    prepared: PreparedAnswers, num_workers: int = 1, on_progress: OnProgress | None = None
) -> AnswersSummary:
    """Write a file of answers, or its missing parts.

    Args:
        prepared: The checked run.
        num_workers: Processes that write at the same time, one device each; 1 writes in this process.
        on_progress: Called as answers are written.

    Raises:
        Interrupted: A stop was asked for; finished parts are kept, and the same command writes the rest.
        TideCacheError: The file was begun with other settings, or a worker failed.
    """
    started_s, run, out = time.monotonic(), prepared.run, prepared.run.answers.out
    devices = require_devices(run, num_workers)
    require_fits(out, prepared.identity)
    num_reused, result = prepared.num_shards, finished(out)
    if result is None:
        begin(out, prepared.identity, run.model_dump(mode="json"))
        missing = [shard for shard in range(prepared.num_shards) if not is_there(part_path(out, shard))]
        num_reused -= len(missing)
        if missing:
            _write_parts(prepared, missing, devices, on_progress)
        result = _joined(prepared)
        finish(out, result)
    elapsed_s = time.monotonic() - started_s
    num_prompts = len(prepared.corpus)
    return AnswersSummary(out, result, num_prompts, prepared.num_shards, num_reused, prepared.skipped, elapsed_s)


def require_devices(run: AnswersRun, num_workers: int) -> list[str]:
    """Return a device for each worker.

    Raises:
        TideCacheError: A device, or what the teacher needs on it, is missing here.
    """
    devices = worker_devices(run.teacher, num_workers)
    require_means(devices[0], run.teacher.loading)
    return devices


def _write_parts(
    prepared: PreparedAnswers, missing: list[int], devices: list[str], on_progress: OnProgress | None
) -> None:
    num_answers = sum(len(prepared.rows_of(shard)) for shard in missing)
    with StopRequest(STOP_WITHIN_S) as stop:
        log = _Log(prepared, len(missing), num_answers, stop, on_progress)
        if len(devices) > 1:
            task = {"run": prepared.run.model_dump(mode="json")}
            build_in_processes(WORKER, task, devices[: len(missing)], missing, log)
            return
        worker = AnswersWorker(prepared, devices[0])
        for shard in missing:
            log.on_shard(worker.build(shard, log.on_views).result())


class _Log:
    """Adds up what workers report, tells the user, and stops the run when a signal asked for it; a `BuildLog`."""

    def __init__(
        self,
        prepared: PreparedAnswers,
        num_missing: int,
        num_answers: int,
        stop: StopRequest,
        on_progress: OnProgress | None,
    ) -> None:
        self._out, self._num_shards, self._num_answers = prepared.run.answers.out, prepared.num_shards, num_answers
        self._shards, self._answers = prepared.num_shards - num_missing, 0
        self._stop, self._on_progress = stop, on_progress

    def on_views(self, count: int) -> None:
        """Hear that answers were written; see `BuildLog`."""
        self._answers += count
        if self._stop.is_set:
            self._stop.raise_interrupted(
                f"Stopped with {self._shards} of {self._num_shards} parts of {self._out} written. Run the same command "
                "again to continue."
            )
        if self._on_progress is not None:
            self._on_progress(self._answers, self._num_answers)

    def on_shard(self, built: BuiltShard) -> None:
        """Hear that a part is written; see `BuildLog`."""
        self._shards += 1
        self.on_views(0)


def _joined(prepared: PreparedAnswers) -> AnswersResult:
    """Join the parts into the file, which appears complete or not at all."""
    out, total, digest = prepared.run.answers.out, PartCounts(), hashlib.sha256()
    with whole_file(out) as temporary, temporary.open("wb") as target:
        for shard in range(prepared.num_shards):
            with part_path(out, shard).open("rb") as part:
                for name, value in json.loads(part.readline()).items():
                    setattr(total, name, getattr(total, name) + value)
                for line in part:
                    target.write(line)
                    digest.update(line)
        target.flush()
        os.fsync(target.fileno())
    values = {name: value for name, value in vars(total).items() if name != "left_out"}
    return AnswersResult(sha256=digest.hexdigest(), **values, left_out=tuple(total.left_out))
