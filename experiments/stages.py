"""Teacher, caches and students: the calls that `tide-cache` makes, and two other sources to learn from."""

import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arms import TunedArm
from experiments.material import BLOCK_SIZE, FINAL, MAX_LENGTH, Material
from experiments.pretraining import pretrain
from experiments.sizes import Size
from tide_cache.building.driver import build_cache
from tide_cache.building.prepare import prepare_build
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.corpus import open_corpus
from tide_cache.demo.design import TIMES, Pipeline
from tide_cache.evaluation import generate_text
from tide_cache.evaluation.measuring import measure
from tide_cache.evaluation.trained import TrainedModel
from tide_cache.loading.groups import Groups
from tide_cache.loading.source import LiveTeacher, RecordSource, TeacherSource
from tide_cache.modeling.backbone import read_checkpoint
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.records import ChunkCandidates, Message, SamplePair, ViewRecord
from tide_cache.student.convert import convert
from tide_cache.training.checkpoints import CHECKPOINTS, committed_checkpoints
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train, train_prepared

NUM_VIEWS = 8
"""Of a cache of some of the samples."""
TEMPERATURES = (1.0, 2.0)
TEACHER_MAX_LENGTH = 192
"""Tokens of what the teacher is trained on; those of `MAX_LENGTH` it is asked about."""
_MAX_ANSWER = 96


@dataclass(frozen=True)
class Trial:
    """One student: an arm on some samples with one value of its grid.

    It is no `Job` of a sweep: which trial comes next depends on what the last ones measured, and a source other than
    the cache is no part of a run file.
    """

    arm: TunedArm
    samples: int | None
    value: float
    seed: int

    @property
    def key(self) -> str:
        """Its folder, and its name in the results."""
        return f"{self.samples or 'all'}/{self.arm.slug}/{self.arm.tunes}-{self.value:g}/seed-{self.seed}"


@dataclass(frozen=True)
class Experiment:
    """Folder and sizes of an experiment; every method that makes something keeps what is there."""

    root: Path
    size: Size

    @cached_property
    def material(self) -> Material:
        """Where rows and tokenizers lie."""
        return Material(self.root / "material")

    @property
    def teacher(self) -> Path:
        """Run folder of the teacher."""
        return self.root / "teacher"

    def make_student_start(self, pipeline: Pipeline) -> Path:
        """Return what the students with a tokenizer start from."""
        return self._start(f"student-{pipeline}", pipeline, self.size.student, self.size.student_epochs, threads=1)

    def _start(self, name: str, pipeline: Pipeline, shape: tuple[int, int], epochs: int, threads: int) -> Path:
        """Return a denoiser to start from, made of a causal model of all text for training."""
        start, causal = self.root / "starts" / name, self.root / "causal" / name
        if not (start / "config.json").exists():
            shutil.rmtree(start, ignore_errors=True)
            if not (causal / "config.json").exists():
                rows, tokenizer = self.material.rows("text"), self.material.tokenizer(pipeline)
                how = (causal, rows, tokenizer, shape, epochs, self.size.device, threads, self.size.teacher_precision)
                # A Trainer joins the process group that is there, and sets RANK for all that follows.
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    pool.submit(pretrain, *how).result()
            convert(str(causal), start)
        return start

    def train_teacher(self) -> None:
        """Train the teacher on all text for training, or go on where that was cut."""
        if (self.teacher / "model" / "config.json").exists():
            return
        size = self.size
        start = self._start("teacher", "shared", size.teacher, size.teacher_epochs, num_cores())
        resume = bool(committed_checkpoints(self.teacher / CHECKPOINTS))
        if not resume:
            shutil.rmtree(self.teacher, ignore_errors=True)
        values = {
            "student": {"model": str(start), "block_size": BLOCK_SIZE, "max_length": TEACHER_MAX_LENGTH},
            "data": {"corpus": {"spec": str(self.material.rows("text"))}},
            "objective": [{"kind": "ce", "time_weight": "uniform"}],
            "optimizer": {"lr": 1e-3, "weight_decay": 0.01},
            "train": self._train_section(
                self.teacher,
                size.teacher_steps,
                size.teacher_batch,
                size.teacher_views,
                checkpoint_every=100,
                precision=size.teacher_precision,
            ),
        }
        train(TrainRun.model_validate(values), resume=resume)

    def cache(self, arm: TunedArm, samples: int | None) -> Path:
        """Folder of the cache that an arm learns from."""
        return self.root / "caches" / cache_name(arm, samples)

    def _num_views(self, samples: int | None) -> int:
        return NUM_VIEWS if samples else self.size.all_views

    def capture(self, arm: TunedArm, samples: int | None) -> None:
        """Ask the teacher what an arm needs; the time it took is kept next to the cache."""
        cache = self.cache(arm, samples)
        timing = cache.parent / f"{cache.name}-{arm.signal_pass}.json"
        if timing.exists():
            return
        passes = ["plain"] if arm.signal_pass == "plain" else ["plain", "compdemo"]
        run, started = self._build_run(arm, samples, passes), time.process_time()
        summary = build_cache(run)
        seconds = time.process_time() - started
        content = {"cpu_s": seconds, "samples": summary.num_samples, "views": summary.num_views}
        timing.write_text(json.dumps(content | {"bytes": summary.cache_bytes}) + "\n", encoding="utf-8")

    def student(self, trial: Trial) -> dict[str, Any]:
        """Train and measure a student, or read what was measured."""
        out = self.root / "students" / trial.key
        file = out / "measured.json"
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        shutil.rmtree(out, ignore_errors=True)  # a student that was interrupted starts again: it takes a minute
        run = self.student_run(trial, out)
        started, world = time.process_time(), World(0, 1, 0)
        prepared = prepare(run, world, resume=False)
        source = self._source(trial, prepared.source)
        starting = time.process_time()
        train_prepared(run, replace(prepared, source=source), world)
        cpu_s = {"prepare": starting - started, "train": time.process_time() - starting}
        measured = self.measure(out / "model", trial.arm.pipeline) | {"cpu_s": cpu_s}
        shutil.rmtree(out / "model")
        file.write_text(json.dumps(measured) + "\n", encoding="utf-8")
        return json.loads(file.read_text(encoding="utf-8"))  # lists, as whoever reads it later gets

    def measure(self, model: Path, pipeline: Pipeline) -> dict[str, Any]:
        """Return held-out NLL and accuracy by t on validation and on test rows, and the share of right numbers."""
        tokenizer = TextTokenizer.load(str(self.material.tokenizer(pipeline)))
        trained = TrainedModel(read_checkpoint(str(model)), tokenizer, BLOCK_SIZE, device=self.size.device)
        measured = {"parameters": sum(weight.numel() for weight in trained.backbone.model.parameters())}
        for part in ("validation", "test"):
            pairs = self.pairs(part, tokenizer, pipeline)
            report = measure(trained, pairs, times=TIMES, by_row=part == "test").nll
            measured[part] = {
                "nll": report.mean_nll,
                "accuracy": report.mean_accuracy,
                "times": [asdict(entry) for entry in report.times],
                "nats_per_byte": report.nats_per_byte,
            }
            if report.rows is not None:
                measured[part]["rows"] = asdict(report.rows)
        measured["test"]["exact_match"] = self._exact_match(trained)
        return measured

    def _exact_match(self, trained: TrainedModel) -> float:
        """Answer the test problems and give the share of answers that end with the right number."""
        lines = self.material.rows("test").read_text(encoding="utf-8").splitlines()
        problems = [row for row in map(json.loads, lines) if FINAL in row["answer"]]
        answers = generate_text(
            trained.backbone,
            trained.tokenizer,
            [[Message("user", row["question"])] for row in problems],
            block_size=BLOCK_SIZE,
            max_new_tokens=_MAX_ANSWER,
            steps_per_block=BLOCK_SIZE // 2,
        )
        pairs = zip(problems, answers, strict=True)
        right = [text.partition(FINAL)[2].strip() == row["answer"].partition(FINAL)[2].strip() for row, text in pairs]
        return sum(right) / max(len(right), 1)

    def pairs(self, part: str, tokenizer: TextTokenizer, pipeline: Pipeline) -> tuple[SamplePair, ...]:
        """Return held-out rows in a student's tokens."""
        rows = list(open_corpus(str(self.material.rows(part)), folder=self.root))
        length = MAX_LENGTH[pipeline]
        return encode_student(rows, tokenizer, max_length=length, block_size=BLOCK_SIZE, fill_last_block=True).pairs

    def _source(self, trial: Trial, source: TeacherSource) -> TeacherSource:
        if trial.arm.source == "certain":
            return CertainTeacher(source)
        if trial.arm.source == "live":
            run = self._build_run(trial.arm, trial.samples, ["plain"])
            build = prepare_build(run)
            pairs = build.pairer.pair_many(list(build.corpus)).pairs
            teacher = load_teacher(run, build, self.size.device)
            return _Grouped(LiveTeacher(pairs, build.views, teacher, fresh_masks=True), source.groups)
        return source

    def _build_run(self, arm: TunedArm, samples: int | None, passes: list[str]) -> BuildRun:
        limit = f"[train:{samples}]" if samples else ""
        kinds = ("truth", "topk", "chunks") if arm.pipeline == "shared" else ("truth", "chunks")
        signals = {"kinds": kinds, "top_k": 64, "top_p": 0.99, "temperatures": TEMPERATURES} | dict(arm.signals)
        values = {
            "corpus": {"spec": f"{self.material.rows('train')}{limit}"},
            "teacher": {
                "model": str(self.teacher / "model"),
                "block_size": BLOCK_SIZE,
                "max_length": MAX_LENGTH["shared"],
                "dtype": "float32",
                "device": self.size.device,
            },
            "student": {
                "tokenizer": {"path": str(self.material.tokenizer(arm.pipeline))},
                "max_length": MAX_LENGTH[arm.pipeline],
                "block_size": BLOCK_SIZE,
            },
            "views": {"num_views": self._num_views(samples)},
            "signals": signals,
            "build": {"out": str(self.cache(arm, samples)), "samples_per_shard": 128, "passes": passes},
        }
        return BuildRun.model_validate(values)

    def student_run(self, trial: Trial, out: Path) -> TrainRun:
        """Return the run file of a student."""
        arm, size = trial.arm, self.size
        weight, share = (trial.value, 1.0) if arm.tunes == "weight" else (1.0, trial.value)
        steps = max(1, round(share * (size.student_steps if trial.samples else size.all_steps)))
        views = arm.views_per_step or size.student_views
        values = {
            "student": {"model": str(self.make_student_start(arm.pipeline))},
            "data": {
                "cache": str(self.cache(arm, trial.samples)),
                "num_views": min(arm.num_views, self._num_views(trial.samples)),
                "signal_pass": arm.signal_pass,
                "seed": trial.seed,
            },
            "objective": arm.objectives(weight),
            "optimizer": {"lr": size.student_rate, "weight_decay": 0.01},
            "train": self._train_section(out, steps, size.student_batch, views, checkpoint_every=0, seed=trial.seed),
        }
        return TrainRun.model_validate(values)

    def _train_section(self, out: Path, steps: int, batch: int, views: int, **more: Any) -> dict[str, Any]:
        of_size = {"precision": self.size.precision, "device": self.size.device}
        batches = {"global_batch": batch, "micro_batch": batch, "views_per_step": views}
        return {"out": str(out), "steps": steps, **batches, **of_size, **more}


def cache_name(arm: TunedArm, samples: int | None) -> str:
    """Return the folder name of the cache that an arm learns from."""
    values = {key: "-".join(value) if key == "kinds" else f"{value:g}" for key, value in arm.signals}
    variant = "".join(f"-{key}-{value}" for key, value in values.items())
    return f"{arm.pipeline}-{samples or 'all'}{variant}"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class CertainTeacher(RecordSource):
    """A source whose teacher is sure of the true text: the losses over chunks stay, no teacher is left."""

    def __init__(self, source: TeacherSource):
        self._source = source

    @property
    def groups(self) -> Groups:
        """Those of the source."""
        return self._source.groups

    def records(self, samples: Any, epoch: int) -> list[ViewRecord]:
        """Return the source's records; each chunk that had candidates has its own text alone, with probability 1."""
        return [_certain(record) for record in self._source.records(samples, epoch)]


def _certain(record: ViewRecord) -> ViewRecord:
    signal = record.signal
    assert signal is not None, "a corpus has no teacher to replace"
    truth_N = np.zeros_like(signal.truth_logprobs_N)
    chunks = None if signal.chunks is None else _certain_chunks(record.pair, signal.chunks)
    return replace(record, signal=replace(signal, truth_logprobs_N=truth_N, topk=None, chunks=chunks))


def _certain_chunks(pair: SamplePair, chunks: ChunkCandidates) -> ChunkCandidates:
    has_A = chunks.counts_A > 0
    spans = pair.chunks_C4[chunks.chunks_A[has_A], 2:]
    texts = [pair.student_ids_L[start:end] for start, end in spans]
    return ChunkCandidates(
        chunks_A=chunks.chunks_A,
        counts_A=has_A.astype(np.int32),
        ids_F=np.concatenate(texts).astype(np.uint32) if texts else np.zeros(0, np.uint32),
        logprobs_J=np.zeros(len(texts), np.float32),
        log_tail_AT=np.full_like(chunks.log_tail_AT, -np.inf),
        log_partition_AT=np.zeros_like(chunks.log_partition_AT),
    )


class _Grouped:
    """A live teacher in a cache's groups, so that both visit the samples in the same order."""

    def __init__(self, live: LiveTeacher, groups: Groups):
        self.groups, self.records, self.ready = groups, live.records, live.ready
