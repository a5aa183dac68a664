"""One student of a sweep: check it, train it unless it exists, and measure it unless that was done."""

import datetime
import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tide_cache.config.train import TrainRun
from tide_cache.corpus import Corpus, open_corpus
from tide_cache.disk import write_whole
from tide_cache.errors import CheckpointError, PairingError, RunFileError, TideCacheError, differing, fault_list
from tide_cache.evaluation.measuring import measure
from tide_cache.evaluation.trained import TrainedModel
from tide_cache.modeling.backbone import read_checkpoint
from tide_cache.modeling.checkpoint import read_provenance
from tide_cache.pairing import PairedRows, encode_student
from tide_cache.pairing.checking import require_samples
from tide_cache.pairing.dates import today
from tide_cache.records import ChatRow
from tide_cache.sweep.arms import SCORES, HeldOut, Job
from tide_cache.training.checkpoints import CHECKPOINTS, committed_checkpoints, find_checkpoint, read_marker
from tide_cache.training.distributed import World
from tide_cache.training.metrics import OnStep
from tide_cache.training.prepare import Prepared, prepare
from tide_cache.training.run import train_prepared

_WAY_OUT = "Fix the rows, or give others. Nothing was trained."
State = Literal["new", "unfinished", "trained"]


@dataclass(frozen=True, eq=False)
class CheckedJob:
    """A job that can run: what already exists of it, and its opened data."""

    state: State
    prepared: Prepared


def check_jobs(jobs: Sequence[Job]) -> list[CheckedJob]:
    """Check all jobs before the first is run; no model is loaded and nothing is written.

    Raises:
        RunFileError: Lists what is wrong with each job, only once if it is the same for every seed.
    """
    checked, faults = [], []
    day = _day_of_sweep(jobs)
    for job in jobs:
        try:
            checked.append(check_job(job, day))
        except TideCacheError as error:
            faults.append(f"{job.name}: {error}")
    if jobs and jobs[0].held_out is not None:
        try:
            _open(jobs[0].held_out)
            seen = {(job.prepared.tokenizer.name, job.prepared.max_length): job.prepared for job in checked}
            for prepared in seen.values():
                _samples(jobs[0].held_out, prepared)
        except TideCacheError as error:
            faults.append(f"held-out corpus: {error}")
    if faults:
        raise RunFileError(fault_list("The sweep cannot start:", faults, "Nothing was trained."))
    return checked


def with_days(jobs: Sequence[Job], checked: Sequence[CheckedJob]) -> list[Job]:
    """Return jobs whose runs state the day that templates write, so that arms which begin later use the same day.

    Args:
        jobs: All jobs of a sweep.
        checked: From `check_jobs`.
    """
    days = [one.prepared.continuity.get("data.date") for one in checked]
    return [job if day is None else _on_day(job, day) for job, day in zip(jobs, days, strict=True)]


def _on_day(job: Job, day: str) -> Job:
    data = job.run.data.model_copy(update={"date": datetime.date.fromisoformat(day)})
    return job.model_copy(update={"run": job.run.model_copy(update={"data": data})})


def _day_of_sweep(jobs: Sequence[Job]) -> datetime.date:
    """Return the day on which the first existing student began, or today."""
    for job in jobs:
        folder = job.run.train.out
        begun = committed_checkpoints(folder / CHECKPOINTS)[-1:]
        day = _run_of(folder).get("data.date") or (read_marker(begun[0]).run.get("data.date") if begun else None)
        if day is not None:
            return datetime.date.fromisoformat(day)
    return today()


def check_job(job: Job, day: datetime.date | None = None) -> CheckedJob:
    """Check a job, and that its folder holds nothing or the same run.

    Args:
        job: From `make_jobs`.
        day: As for `prepare`.

    Raises:
        TideCacheError: As `prepare`; or the folder holds another run, or no run at all.
    """
    out = job.run.train.out
    elsewhere = job.run.train.model_copy(update={"out": out / "new"})  # the folder itself is checked below
    prepared = prepare(job.run.model_copy(update={"train": elsewhere}), World(0, 1, 0), resume=False, day=day)
    if (out / "model" / "config.json").exists():
        _require_same_run(out, prepared.continuity)
        return CheckedJob("trained", prepared)
    if committed_checkpoints(out / CHECKPOINTS):
        return CheckedJob(
            "unfinished", replace(prepared, resumed=find_checkpoint(out / CHECKPOINTS, prepared.continuity))
        )
    if out.exists() and not (out / "run.json").exists() and any(out.iterdir()):
        raise RunFileError(f"{out}: found files that no training run wrote; give --out a new folder")
    return CheckedJob("new", prepared)


def _require_same_run(out: Path, continuity: dict[str, Any]) -> None:
    if faults := [
        f"{name}: found {found!r}, expected {expected!r}"
        for name, found, expected in differing(_run_of(out), continuity)
    ]:
        way_out = f"Sweep with the same run file, give --out a new folder, or remove {out}."
        raise CheckpointError(fault_list(f"{out / 'model'} was trained by another run:", faults, way_out))


def _run_of(out: Path) -> dict[str, Any]:
    """Return the settings of the run that trained a student, those that must be equal; empty if there is none."""
    found: dict[str, Any] = read_provenance(out / "model").get("run", {})
    return found


def run_job(job: Job, on_step: OnStep | None = None) -> State:
    """Train and measure a student; what already exists is not done again.

    Args:
        job: From `make_jobs`.
        on_step: As for `train`.

    Returns:
        What existed before.

    Raises:
        Interrupted: A stop was asked for; a checkpoint was committed first.
        TideCacheError: As `prepare` and `train`.
    """
    out = job.run.train.out
    checked = check_job(job)
    if checked.state == "new":
        shutil.rmtree(out, ignore_errors=True)  # a run that ended before its first checkpoint starts again
    if checked.state != "trained":
        train_prepared(job.run, checked.prepared, World(0, 1, 0), on_step=on_step)
        gc.collect()  # the engine is a reference cycle, and the next student needs its memory
    if job.held_out is not None and read_scores(job) is None:
        _measure(job.run, job.held_out, checked.prepared)
    return checked.state


def read_scores(job: Job) -> dict[str, Any] | None:
    """Return the held-out figures of a student, as `NllReport` without rows; None if not measured on this corpus."""
    file = job.run.train.out / SCORES
    if job.held_out is None or not file.exists():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    is_same = content["corpus"] == _measured_on(job.held_out, _open(job.held_out))
    nll: dict[str, Any] = {name: value for name, value in content["nll"].items() if name != "rows"}
    return nll if is_same else None


def _measure(run: TrainRun, held_out: HeldOut, prepared: Prepared) -> None:
    info, block_size = read_checkpoint(str(run.train.out / "model")), prepared.layout.block_size
    model = TrainedModel(info, prepared.tokenizer, block_size, held_out.dtype, run.train.device)
    document = {
        "corpus": _measured_on(held_out, _open(held_out)),
        "max_length": prepared.max_length,
        "nll": asdict(measure(model, _samples(held_out, prepared).pairs, by_row=True).nll),
    }
    write_whole(run.train.out / SCORES, json.dumps(document, indent=2) + "\n")


def _samples(held_out: HeldOut, prepared: Prepared) -> PairedRows:
    """Return samples of the held-out rows; called before the first student is trained, to find rows that fail."""
    corpus = _open(held_out)
    paired = encode_student(
        list(corpus.rows(0, held_out.limit or len(corpus))),
        prepared.tokenizer,
        max_length=prepared.max_length,
        block_size=prepared.layout.block_size,
        fill_last_block=True,
    )
    spec = held_out.spec
    if paired.faults:
        raise PairingError(fault_list(f"{spec}: held-out rows that cannot be rendered:", paired.faults[:5], _WAY_OUT))
    require_samples(f"{spec}: no held-out row became a sample:", paired.report, _WAY_OUT)
    return paired


@lru_cache(maxsize=1)
def _open(held_out: HeldOut) -> Corpus[ChatRow]:
    """Return the corpus, read once per process: all students are measured on it."""
    return open_corpus(held_out.spec, folder=held_out.folder, section="--held-out")


def _measured_on(held_out: HeldOut, corpus: Corpus[ChatRow]) -> dict[str, Any]:
    how = {} if held_out.dtype == "float32" else {"dtype": held_out.dtype}  # files without it mean float32
    return {"spec": held_out.spec, "limit": held_out.limit, "content_hash": corpus.content_hash, **how}
