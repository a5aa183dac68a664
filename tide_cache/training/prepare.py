"""Everything that can be checked before a model is loaded: checkpoint, tokenizer, cache, objectives, folders."""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, Qwen3Config

from tide_cache.config.common import TokenizerConfig
from tide_cache.config.train import ModelShape, StudentConfig, TrainRun
from tide_cache.corpus import open_corpus
from tide_cache.errors import RunFileError, fault_list
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.fitting import cache_faults, require_fitting_caches
from tide_cache.loading.hot_cache import hot_cache_faults, open_hot_cache
from tide_cache.loading.opening import (
    OpenedCache,
    OpenedData,
    OrderSettings,
    lanes_fault,
    make_order,
    open_caches,
    open_data,
)
from tide_cache.loading.order import Order
from tide_cache.loading.source import PlainSource, TeacherSource
from tide_cache.modeling.backbone import CheckpointInfo, read_checkpoint, student_faults
from tide_cache.objectives import Objective, objective_of, union_of_needs
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.pairing.checking import LengthLimit, remarks_of, require_samples, require_usable
from tide_cache.pairing.dates import today
from tide_cache.progress import doing
from tide_cache.training.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    as_json,
    committed_checkpoints,
    find_checkpoint,
    read_marker,
)
from tide_cache.training.company import PROBE
from tide_cache.training.distributed import World
from tide_cache.training.kernels import kernel_faults
from tide_cache.training.lora import lora_faults
from tide_cache.training.reporters import reporter_faults
from tide_cache.training.room import require_room_for
from tide_cache.version import __version__

BLOCK_SIZE, MAX_LENGTH = 32, 512
"""Of the published student, where neither cache nor run file says another (Qwen3-0.6B-diffusion-bd3lm)."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checked run, ready to load its model.

    Attributes:
        tokenizer: The student's.
        checkpoint: Where weights come from; None for random ones.
        model_config: Of the student.
        source: Where records come from.
        order: Order in which samples are visited.
        layout: How records become batches.
        max_length: Of the longest sample it may meet, in tokens.
        remarks: What was left out of the data, and why; empty for a cache, whose build said it.
        objectives: With weights.
        steps: Optimizer steps of the whole run.
        continuity: Settings that must be equal when the run is resumed.
        resumed: The checkpoint to go on from; None to start anew.
        provenance: What the student learned from, saved with it.
    """

    tokenizer: TextTokenizer
    checkpoint: CheckpointInfo | None
    model_config: PretrainedConfig
    source: TeacherSource
    order: Order
    layout: BatchLayout
    max_length: int
    remarks: tuple[str, ...]
    objectives: tuple[Objective, ...]
    steps: int
    continuity: dict[str, Any]
    resumed: Checkpoint | None
    provenance: dict[str, Any]


def prepare(run: TrainRun, world: World, resume: bool, day: datetime.date | None = None) -> Prepared:
    """Check a run and open its data.

    Args:
        run: The run file.
        world: This process.
        resume: Whether an existing output folder is meant to be continued.
        day: What a template that writes the date takes for today, where the run begins; by default that of the clock.

    Raises:
        RunFileError: Something in the run file cannot work; lists every fault.
        CacheMismatchError: The cache lacks what the run needs.
        CheckpointError: There is no checkpoint to resume, or it belongs to another run.
        WriteError: The disk has no room for what the run will write.
    """
    checkpoint = read_checkpoint(run.student.model, run.student.revision) if run.student.model else None
    # A checkpoint's tokenizer may not say which mask token the checkpoint was trained with.
    mask_id = checkpoint.mask_id if checkpoint and run.student.tokenizer is None else None
    tokenizer = TextTokenizer.load(**dict(student_tokenizer_config(run.student)), mask_id=mask_id)
    config = checkpoint.config if checkpoint else _new_config(run.student, tokenizer)
    objectives = tuple(objective_of(entry) for entry in run.objective)
    needs = [objective.needs for objective in objectives]
    caches, sizes = open_caches(run.data), (run.student.block_size, run.student.max_length)
    begun = _begun(run) if resume else None
    lanes = _lanes(run, begun)
    faults = [
        *_batch_faults(run, world),
        *_lanes_faults(lanes, world),
        *(hot_cache_faults(run.data.hot_cache) if run.data.hot_cache else []),
        *_views_faults(run, caches),
        *_out_faults(run.train.out, resume),
        *kernel_faults(run),
        *_fix_day(run, tokenizer, begun, day or today()),
        *reporter_faults(run.train.report_to),
    ]
    if run.student.lora is not None:
        faults += lora_faults(run.student.lora, config)
    if checkpoint:
        faults += checkpoint.fit_faults(tokenizer.vocab_size, _longest(run, caches), "student")
        faults += student_faults(checkpoint)
        faults += checkpoint.block_faults(_block_size(run, caches, checkpoint), "student")
    if not caches and union_of_needs(needs).signals:
        kinds = ", ".join(entry.kind for entry in run.objective if entry.kind != "ce")
        faults.append(f"objective: {kinds} needs a teacher's signals, data.corpus has none; give data.cache, or use ce")
    if faults:
        faults += cache_faults(caches, tokenizer, needs, *sizes)
        raise RunFileError(fault_list("The run cannot start:", faults, "Nothing was loaded or written."))
    require_fitting_caches(caches, tokenizer, needs, *sizes)
    with doing("Opening the cache" if caches else "Pairing the corpus"):
        if caches:
            signals = union_of_needs(needs).signals
            settings = OrderSettings(run.data.seed, lanes, lanes and lanes // world.size)
            folder = run.data.hot_cache
            hot = None if folder is None else open_hot_cache(folder, run.data.hot_cache_gib)
            data = open_data(caches, tokenizer, signals, run.train.views_per_step, settings, hot)
        else:
            data = _open_corpus(run, tokenizer, _block_size(run, caches, checkpoint), lanes)
    num_turns = (run.train.epochs or 0) * data.order.num_samples
    steps = run.train.steps or max(1, math.ceil(num_turns / run.train.global_batch))
    require_room_for(run, checkpoint, config, steps)
    shown = tokenizer.today if run.data.corpus else None
    continuity = _continuity(run, data, caches, steps, lanes) | ({"data.date": shown.isoformat()} if shown else {})
    return Prepared(
        tokenizer, checkpoint, config, data.source, data.order, data.layout, _longest(run, caches), data.remarks,
        objectives, steps, continuity,
        resumed=find_checkpoint(run.train.out / CHECKPOINTS, continuity) if resume else None,
        provenance=_provenance(run, data, caches, steps) | ({"template_date": shown.isoformat()} if shown else {}),
    )  # fmt: skip


def student_tokenizer_config(student: StudentConfig) -> TokenizerConfig:
    """Return the student's tokenizer section, by default that of its checkpoint."""
    if student.tokenizer is not None:
        return student.tokenizer
    assert student.model is not None, "the run-file model requires one of the two"
    return TokenizerConfig(path=student.model, revision=student.revision)


def _new_config(student: StudentConfig, tokenizer: TextTokenizer) -> PretrainedConfig:
    assert student.shape is not None, "the run-file model requires one of the two"
    return shape_config(student.shape, tokenizer)


def shape_config(shape: ModelShape, tokenizer: TextTokenizer) -> Qwen3Config:
    """Return the configuration of a new Qwen3 with a tokenizer's vocabulary."""
    return Qwen3Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )


def _longest(run: TrainRun, caches: Sequence[OpenedCache]) -> int:
    of_caches = [cache.manifest.identity.student.max_length for cache in caches]
    return max(of_caches) if of_caches else run.student.max_length or MAX_LENGTH


def _block_size(run: TrainRun, caches: Sequence[OpenedCache], checkpoint: CheckpointInfo | None) -> int:
    """Return the tokens of a block: the caches', else the run file's, the checkpoint's, or the published student's."""
    if caches:
        return caches[0].manifest.identity.student.block_size
    return run.student.block_size or (checkpoint.block_size if checkpoint else None) or BLOCK_SIZE


def _views_faults(run: TrainRun, caches: Sequence[OpenedCache]) -> list[str]:
    wanted = run.train.views_per_step
    views = {cache.key: cache.num_views or cache.manifest.identity.views.num_views for cache in caches}
    return [
        f"train.views_per_step: found {wanted}, {key} has {found} views, and a step would show one of them twice; "
        "lower it, or build with more views"
        for key, found in views.items()
        if wanted > found
    ]


def _batch_faults(run: TrainRun, world: World) -> list[str]:
    share = run.train.micro_batch * world.size
    if run.train.global_batch % share == 0:
        return []
    return [
        f"train.global_batch: found {run.train.global_batch}, expected a multiple of micro_batch x processes = "
        f"{run.train.micro_batch} x {world.size} = {share}"
    ]


def _begun(run: TrainRun) -> Mapping[str, Any] | None:
    """Return what the last checkpoint says of its run; None where there is none."""
    last = committed_checkpoints(run.train.out / CHECKPOINTS)[-1:]
    return read_marker(last[0]).run if last else None


def _lanes(run: TrainRun, begun: Mapping[str, Any] | None) -> int | None:
    """Return the lanes of the order; None where the checkpoint that is resumed was saved before there were any."""
    return None if begun is not None and begun.get("data.lanes") is None else run.data.lanes


def _lanes_faults(lanes: int | None, world: World) -> list[str]:
    fault = None if lanes is None else lanes_fault("processes", world.size, "data.lanes", lanes)
    return [] if fault is None else [fault]


def _out_faults(out: Path, resume: bool) -> list[str]:
    if out.exists() and not out.is_dir():
        return [f"train.out: {out} is a file; give a new folder"]
    if resume or not out.exists() or all(path.name.startswith(PROBE) for path in out.iterdir()):
        return []
    if committed_checkpoints(out / CHECKPOINTS):
        return [f"train.out: {out} is not empty; add --resume to continue the run in it, or give a new folder"]
    return [f"train.out: {out} is not empty and holds no checkpoint to resume; give a new folder, or remove it"]


def _fix_day(run: TrainRun, tokenizer: TextTokenizer, begun: Mapping[str, Any] | None, now: datetime.date) -> list[str]:
    """Make a template that writes the date write one day: the run file's, the one that the run began on, or today."""
    if run.data.corpus is None or not tokenizer.writes_date:
        return [] if run.data.date is None else [
            f"data.date: found {run.data.date}, but this run renders no template that writes the date; leave it out"
        ]  # fmt: skip
    day = begun.get("data.date") if begun is not None else None
    tokenizer.show_day(run.data.date or (datetime.date.fromisoformat(day) if day else now))
    return []


def _open_corpus(run: TrainRun, tokenizer: TextTokenizer, block_size: int, lanes: int | None) -> OpenedData:
    assert run.data.corpus is not None
    corpus = open_corpus(**dict(run.data.corpus), section="data.corpus")
    paired = encode_student(
        list(corpus), tokenizer, max_length=_longest(run, ()), block_size=block_size, fill_last_block=True
    )
    section = run.data.corpus
    require_usable(section.spec, paired.faults, section.on_bad_row, "data.corpus.on_bad_row")
    title = f"{section.spec}: no row of the corpus became a sample:"
    require_samples(title, paired.report, "Raise student.max_length, or fix the corpus.")
    views = run.data.views
    ids = tokenizer.mask_id, tokenizer.pad_id
    layout = BatchLayout(*ids, block_size, schedule=views.schedule, complementary=views.complementary)
    source, key = PlainSource(paired.pairs, views), corpus.content_hash
    order = make_order(source.groups, key, run.data.seed, lanes)
    limits = (LengthLimit("student.max_length", _longest(run, ())),)
    return OpenedData(source, layout, key, order, remarks_of(paired, limits, corpus.notes, corpus.skipped))


_CONTINUED = ("global_batch", "views_per_step", "precision", "ema_decay", "seed")
"""Settings of `train` that decide what the student learns from; how micro-batches are made up is not one of them."""


def _continuity(
    run: TrainRun, data: OpenedData, caches: Sequence[OpenedCache], steps: int, lanes: int | None
) -> dict[str, Any]:
    student = run.student.model_dump(mode="json", exclude={"tokenizer", "block_size", "max_length", "attention"})
    values = {
        "data": data.key,
        "student.block_size": data.layout.block_size,
        "student.max_length": _longest(run, ()) if run.data.corpus else None,
        "data.seed": run.data.seed,
        "data.lanes": lanes,
        "data.num_views": run.data.num_views,
        "data.signal_pass": run.data.signal_pass if run.data.signal_pass != "plain" else None,
        "data.views": asdict(run.data.views) if run.data.corpus else None,
        **{f"student.{name}": value for name, value in student.items()},
        "objective": [asdict(entry) for entry in run.objective],
        "optimizer": run.optimizer.model_dump(mode="json"),
        "train.steps": steps,
        **{f"train.{name}": getattr(run.train, name) for name in _CONTINUED},
    }
    if run.data.mix:
        values["data.mix"] = [cache.use() for cache in caches]
    content: dict[str, Any] = as_json(values)
    return content


def _provenance(run: TrainRun, data: OpenedData, caches: Sequence[OpenedCache], steps: int) -> dict[str, Any]:
    identities = [cache.manifest.identity.model_dump(mode="json") for cache in caches]
    content: dict[str, Any] = {"kind": "cache" if caches else "corpus", "id": data.key}
    if run.data.mix:
        both = zip(caches, identities, strict=True)
        content = {"kind": "mix", "id": data.key, "caches": [c.use() | {"identity": identity} for c, identity in both]}
    is_alone = run.data.cache is not None
    return {
        "tide_cache_version": __version__,
        "data": content,
        "cache_identity": identities[0] if is_alone else None,
        "signal_pass": run.data.signal_pass if is_alone else None,
        "objective": [asdict(entry) for entry in run.objective],
        "steps": steps,
        "global_batch": run.train.global_batch,
        "seed": run.train.seed,
        "block_size": data.layout.block_size,
        "started_from": Path(run.student.model).name if run.student.model else "random weights",
    }
