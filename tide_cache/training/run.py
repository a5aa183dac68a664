"""Stage 2 as a whole: compose data, student, objectives and engine, and step until done."""

import datetime
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tide_cache.config.train import TrainRun
from tide_cache.disk import new_folder, write_whole
from tide_cache.errors import DeviceMemoryError, WriteError, fault_list, first_line
from tide_cache.interruption import StopRequest
from tide_cache.loading.micro_batches import step_micro_batches
from tide_cache.loading.prefetch import Prefetcher
from tide_cache.modeling.backbone import DTYPES, Backbone, load_backbone, new_backbone, resolve_device
from tide_cache.modeling.checkpoint import save_student
from tide_cache.modeling.moving import pinned
from tide_cache.objectives import Objective
from tide_cache.objectives.tidal import Tidal
from tide_cache.pairing.dates import today
from tide_cache.progress import doing, tell
from tide_cache.records import StudentBatch, Targets
from tide_cache.student.model import Student
from tide_cache.training.checkpoints import CHECKPOINTS, save_checkpoint
from tide_cache.training.company import keep_company
from tide_cache.training.distributed import World, device_name, find_world, rank_device
from tide_cache.training.ema import EMA
from tide_cache.training.engine import effective_stage, make_engine, set_learning_rate
from tide_cache.training.kernels import choose_kernels
from tide_cache.training.lora import add_adapters, merged
from tide_cache.training.meeting import join, wait_for_all
from tide_cache.training.metrics import OnStep, StepMetrics, objective_names
from tide_cache.training.prepare import Prepared, prepare
from tide_cache.training.reporters import Reporter, open_reporters
from tide_cache.training.room import save_finished
from tide_cache.training.schedule import learning_rate
from tide_cache.training.state import SavedState, gathered_weights, save_state
from tide_cache.training.step import StepSums, train_step
from tide_cache.training.window import Window, WindowFigures

SECONDS_BETWEEN_SHOWN = 10.0
"""The caller hears of a step at least this often, however long until the next line of metrics."""


@dataclass(frozen=True)
class TrainSummary:
    """What a finished run leaves behind; `remarks` say what was left out of its data."""

    model: Path
    metrics: Path
    steps: int
    last: StepMetrics | None
    remarks: tuple[str, ...]


def train(
    run: TrainRun,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    on_prepared: Callable[[Prepared], None] | None = None,
) -> TrainSummary:
    """Train a student; every rank calls this.

    Args:
        run: The run file.
        resume: Continue the run in `train.out` from its last committed checkpoint.
        on_step: Called on rank 0 with the figures of the first step, of logged steps, and of others where those are
            more than ten seconds apart.
        on_prepared: Called once everything is checked, before the model is loaded.

    Raises:
        Interrupted: A stop was asked for; a checkpoint was committed first.
        RankError: Another rank failed or died; ranks that wait in a collective meanwhile are ended.
        TideCacheError: See `prepare`.
    """
    world = find_world()
    with keep_company(world) as company:
        device = rank_device(world, resolve_device(run.train.device))
        day = datetime.date.fromisoformat(company.from_first("today", today().isoformat()))
        prepared = prepare(run, world, resume, day)
        company.agree(device_name(device))
        company.require_shared(run.train.out)
        if on_prepared is not None:
            on_prepared(prepared)
        return train_prepared(run, prepared, world, on_step=on_step)


def train_prepared(run: TrainRun, prepared: Prepared, world: World, *, on_step: OnStep | None = None) -> TrainSummary:
    """Train on what `prepare` opened; a caller may have replaced the source.

    Args:
        run: The run file.
        prepared: From `prepare`.
        world: This process.
        on_step: As for `train`.
    """
    device = rank_device(world, resolve_device(run.train.device))
    join(world, device)
    try:
        with StopRequest() as stop:
            loop = _Loop(run, prepared, world, device, on_step)
            loop.run(stop)
            return loop.finish()
    except torch.OutOfMemoryError as error:
        raise no_room(run, device, error) from None


def no_room(run: TrainRun, device: str, error: Exception) -> DeviceMemoryError:
    """Return the error for a run that needs more memory than its device has, with the settings that lower it."""
    train, stage = run.train, effective_stage(run.train)
    ways = [f"train.micro_batch (found {train.micro_batch}; global_batch may stay)"] if train.micro_batch > 1 else []
    ways += ["train.activation_checkpointing = true"] if not train.activation_checkpointing else []
    ways += [f"train.head_rows (found {train.head_rows})"] if train.head_rows > 1 else []
    ways += [f"train.zero_stage = 3 (found {stage}), with several processes"] if stage < 3 else []
    ways += [f"train.offload (found {train.offload!r})"] if train.offload != "optimizer+parameters" else []
    ways += ["[student.lora]"] if run.student.lora is None else []
    reason = first_line(error)
    return DeviceMemoryError(fault_list(f"No room on {device}: {reason} What lowers the need:", ways))


class _Loop:
    """The state of a run between steps: the engine, and how many steps it has taken."""

    def __init__(self, run: TrainRun, prepared: Prepared, world: World, device: str, on_step: OnStep | None):
        self._run, self._prepared, self._world, self._on_step = run, prepared, world, on_step
        self._backbone = _backbone(run, prepared, "cpu" if effective_stage(run.train) == 3 else device)
        self._remarks = (*prepared.remarks, *choose_kernels(run, self._backbone, device))
        self._engine = self._make_engine()
        self._names = objective_names([entry.kind for entry in run.objective])
        self._out = run.train.out
        self._steps_done = prepared.resumed.step if prepared.resumed is not None else 0
        self._started_s = self._shown_s = time.monotonic()
        self._shown_step: int | None = None
        self._last: StepMetrics | None = None
        if world.is_first:
            with new_folder(self._out):
                write_whole(self._out / "run.json", run.model_dump_json(indent=2) + "\n")

    def _make_engine(self) -> Any:
        run, prepared = self._run, self._prepared
        if run.student.lora is not None:
            add_adapters(self._backbone.model, run.student.lora, run.train.seed)
        if run.train.activation_checkpointing:
            _checkpoint_activations(self._backbone.model)
        student = Student(self._backbone, prepared.layout.block_size, run.train.head_rows, run.train.head).train()
        saved = SavedState(prepared.resumed.path, student) if prepared.resumed is not None else None
        if saved is not None:
            with doing(f"Reading checkpoint of step {saved.steps}"):
                saved.load_weights(student)
        with doing("Building the training engine"):
            engine = make_engine(student, run.train, run.optimizer, self._world.size)
        if saved is not None:
            with doing("Reading the optimizer's state"):
                saved.load_optimizer(engine)
        return engine

    def run(self, stop: StopRequest) -> None:
        """Take the remaining steps."""
        steps = range(self._steps_done, self._prepared.steps)
        with Prefetcher(self._micro_batches, steps, self._run.train.prefetch, self._engine.device) as self._prefetcher:
            self._take_steps(stop)

    def _take_steps(self, stop: StopRequest) -> None:
        reporters = open_reporters(self._run, self._steps_done) if self._world.is_first else []
        with ExitStack() as stack:
            for reporter in reporters:
                stack.callback(_close, reporter)
            self._take_reported_steps(stop, reporters)

    def _take_reported_steps(self, stop: StopRequest, reporters: Sequence[Reporter]) -> None:
        train, is_alone = self._run.train, self._world.size == 1
        window = Window(len(self._names), self._engine.device)
        while self._steps_done < self._prepared.steps:
            is_due, is_told_to_stop = self._is_due(), False
            sums, num_tokens, stalled_s = self._step(() if is_alone else (stop.is_set, is_due))
            window.add(sums, num_tokens, stalled_s)
            if not is_alone:
                is_told_to_stop, is_due = (note > 0 for note in sums.notes.read())
            is_last = self._steps_done == self._prepared.steps
            if self._steps_done % train.log_every == 0 or is_last:
                self._last = self._metrics(window.close())
                for reporter in reporters:
                    reporter.write(self._last)
                self._show(self._last)
            elif is_due:
                self._show(self._metrics(window.figures()))
            if (stop.is_set if is_alone else is_told_to_stop) and not is_last:
                self._save_checkpoint()
                stop.raise_interrupted(
                    f"Stopped after step {self._steps_done} of {self._prepared.steps}; a checkpoint is committed. "
                    "Run the same command with --resume to continue."
                )
            if train.checkpoint_every and self._steps_done % train.checkpoint_every == 0 and not is_last:
                self._save_checkpoint_if_there_is_room()

    def finish(self) -> TrainSummary:
        """Save the final model, and the running mean of its weights where there is one."""
        model = self._out / "model"
        self._save_model(model)
        if self._run.train.ema_decay:
            wait_for_all(self._world)  # the first rank writes; what follows is a collective
            self._save_model(self._out / "model-ema", EMA)
        return TrainSummary(model, self._out / "metrics.jsonl", self._prepared.steps, self._last, self._remarks)

    def _save_model(self, folder: Path, kind: str | None = None) -> None:
        with doing(f"Saving {folder}"):
            self._write_model(folder, kind)

    def _write_model(self, folder: Path, kind: str | None) -> None:
        weights = gathered_weights(self._engine, self._backbone.model, kind)
        if self._world.is_first:
            lora = self._run.student.lora
            provenance = {**self._prepared.provenance, "run": self._prepared.continuity}
            tensors = weights if lora is None else merged(weights, lora)
            save_finished(
                lambda where: save_student(where, tensors, self._backbone.config, self._prepared.tokenizer, provenance),
                folder,
                sum(tensor.nbytes for tensor in tensors.values()),
            )

    def _step(self, notes: Sequence[float]) -> tuple[StepSums, int, float]:
        """Take a step, and give the other ranks this one's notes: what they hear of each other is one step old."""
        stalled_s = self._prefetcher.stall_s
        batches = self._prefetcher.take()
        set_learning_rate(self._engine, self._rate(self._steps_done))
        progress = self._steps_done / self._prepared.steps
        sums = train_step(self._engine, batches, self._prepared.objectives, self._world, progress, notes)
        self._steps_done += 1
        num_tokens = sum(int(batch.is_real_BL.sum()) for batch, _ in batches)
        return sums, num_tokens, self._prefetcher.stall_s - stalled_s

    def _rate(self, step: int) -> float:
        optimizer = self._run.optimizer
        return learning_rate(
            step,
            steps=self._prepared.steps,
            peak=optimizer.lr,
            warmup_ratio=optimizer.warmup_ratio,
            schedule=optimizer.schedule,
        )

    def _micro_batches(self, step: int) -> list[tuple[StudentBatch, Targets]]:
        """Load this rank's share of a step; called from the prefetch thread."""
        train, world, prepared = self._run.train, self._world, self._prepared
        where = prepared.source, prepared.order, prepared.layout
        batches = list(step_micro_batches(*where, train, step, world.rank, world.size))
        if self._engine.device.type == "cuda":
            return [(pinned(batch), pinned(targets)) for batch, targets in batches]
        return batches

    def _show(self, metrics: StepMetrics) -> None:
        self._shown_s, self._shown_step = time.monotonic(), self._steps_done
        if self._world.is_first and self._on_step is not None:
            self._on_step(metrics, self._prepared.steps)

    def _metrics(self, figures: WindowFigures) -> StepMetrics:
        objectives = self._prepared.objectives
        norm = self._engine.get_global_grad_norm()
        done = self._steps_done
        return StepMetrics(
            step=done,
            epoch=done * self._run.train.global_batch / self._prepared.order.num_samples,
            loss=sum(entry.weight * mean for entry, mean in zip(objectives, figures.means, strict=True)),
            losses=dict(zip(self._names, figures.means, strict=True)),
            nll_by_t=figures.nll_by_t,
            learning_rate=self._rate(done - 1),
            gradient_norm=None if norm is None else float(norm),
            trust=_trust(objectives, (done - 1) / self._prepared.steps),
            tokens_per_s=figures.tokens_per_s,
            stall_share=figures.stall_share,
            peak_memory_bytes=figures.peak_memory_bytes,
            elapsed_s=time.monotonic() - self._started_s,
        )

    def _is_due(self) -> bool:
        """Whether the step that begins is shown: the first one, and the next one where steps are slow."""
        if self._shown_step is None:
            return True
        waited_s = time.monotonic() - self._shown_s
        step_s = waited_s / (self._steps_done - self._shown_step) if self._steps_done > self._shown_step else 0.0
        return waited_s + step_s >= SECONDS_BETWEEN_SHOWN or step_s >= SECONDS_BETWEEN_SHOWN / 2

    def _save_checkpoint_if_there_is_room(self) -> None:
        """Save a checkpoint; a full disk costs this checkpoint, not the run, which may never need it."""
        try:
            self._save_checkpoint()
        except WriteError as error:
            if self._world.size > 1:
                raise
            tell(f"No checkpoint after step {self._steps_done}, the run goes on: {error}")

    def _save_checkpoint(self) -> None:
        folder, step = self._out / CHECKPOINTS, self._steps_done
        with doing(f"Saving a checkpoint of step {step}"):
            save_checkpoint(
                lambda target: save_state(self._engine, target), folder, step, self._prepared.continuity, self._world
            )


def _close(reporter: Reporter) -> None:
    """Close a reporter; figures that cannot be written must not cost the weights."""
    try:
        reporter.close()
    except (OSError, WriteError) as error:
        tell(f"The last figures are lost: {error}")


def _checkpoint_activations(model: Any) -> None:
    """Compute activations again in backward instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.23
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _trust(objectives: Sequence[Objective], progress: float) -> float | None:
    tidal = next((objective for objective in objectives if isinstance(objective, Tidal)), None)
    return None if tidal is None else float(tidal.trust(torch.tensor(0.5), progress))


def _backbone(run: TrainRun, prepared: Prepared, device: str) -> Backbone:
    dtype = DTYPES[run.train.precision]
    if prepared.checkpoint is not None:
        return load_backbone(prepared.checkpoint, dtype, device)
    assert run.student.shape is not None, "the run-file model requires one of the two"
    return new_backbone(prepared.model_config, dtype, device, run.student.shape.init_seed)
