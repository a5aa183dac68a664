"""Everything that can be found wrong before a model is loaded: checkpoint, tokenizer, cache, objectives, folders."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, Qwen3Config

from tide_cache import __version__
from tide_cache.config.common import TokenizerConfig
from tide_cache.config.train import StudentConfig, TrainRun
from tide_cache.corpus import open_corpus
from tide_cache.errors import CacheMismatchError, PairingError, RunFileError, fault_list
from tide_cache.loading.cache import CacheSource, cache_collate_plan
from tide_cache.loading.collate import CollatePlan
from tide_cache.loading.source import PlainSource, TeacherSource
from tide_cache.manifest import Manifest
from tide_cache.manifest.identity import SignalsIdentity
from tide_cache.modeling.backbone import CheckpointInfo, read_checkpoint, student_faults
from tide_cache.objectives import OBJECTIVES, Needs, Objective, union_of_needs
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.training.checkpoints import CHECKPOINTS, Checkpoint, as_json, committed_checkpoints, find_checkpoint
from tide_cache.training.distributed import World
from tide_cache.training.step import WeightedObjective
from tide_cache.views import ViewPlan

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
        data_key: Name of the data, keys the order.
        collate_plan: How records become batches.
        remarks: What was left out of the data, and why; empty for a cache, whose build said it.
        objectives: With weights.
        steps: Optimizer steps of the whole run.
        continuity: What must be equal when the run is resumed.
        resumed: The checkpoint to go on from; None to start anew.
        provenance: What the student learned from, saved beside it.
    """

    tokenizer: TextTokenizer
    checkpoint: CheckpointInfo | None
    model_config: PretrainedConfig
    source: TeacherSource
    data_key: str
    collate_plan: CollatePlan
    remarks: tuple[str, ...]
    objectives: tuple[WeightedObjective, ...]
    steps: int
    continuity: dict[str, Any]
    resumed: Checkpoint | None
    provenance: dict[str, Any]


def prepare(run: TrainRun, world: World, resume: bool) -> Prepared:
    """Check a run and open its data.

    Args:
        run: The run file.
        world: This process.
        resume: Whether an existing output folder is meant to be continued.

    Raises:
        RunFileError: Something in the run file cannot work; lists every fault.
        CacheMismatchError: The cache lacks what the run needs.
        CheckpointError: There is no checkpoint to resume, or it belongs to another run.
    """
    tokenizer = TextTokenizer.load(**dict(student_tokenizer_config(run.student)))
    checkpoint = read_checkpoint(run.student.model, run.student.revision) if run.student.model else None
    config = checkpoint.config if checkpoint else _new_config(run.student, tokenizer)
    objectives = tuple(WeightedObjective(_objective(entry), entry.weight) for entry in run.objective)
    needs = union_of_needs(entry.objective.needs for entry in objectives)
    manifest = Manifest.load(run.data.cache) if run.data.cache else None
    faults = [*_batch_faults(run, world), *_out_faults(run.train.out, resume)]
    if checkpoint:
        faults += checkpoint.require_fits(tokenizer.vocab_size, _longest(run, manifest), "student")
        faults += student_faults(checkpoint)
    if manifest is None and needs.signals:
        kinds = ", ".join(entry.kind for entry in run.objective if entry.kind != "ce")
        faults.append(f"objective: {kinds} needs a teacher's signals, data.corpus has none; give data.cache, or use ce")
    of_cache = cache_faults(run, manifest, tokenizer, needs) if manifest is not None else []
    if faults:
        raise RunFileError(fault_list("The run cannot start:", [*faults, *of_cache], "Nothing was loaded or written."))
    if of_cache:
        way_out = (
            "Build another cache: `tide-cache build-teacher-shards RUN.toml --out FOLDER`, or change the run file."
        )
        raise CacheMismatchError(fault_list(f"{run.data.cache} does not fit this run:", of_cache, way_out))
    data = _open_data(run, manifest, tokenizer)
    num_samples = sum(data.source.group_sizes)
    steps = run.train.steps or max(1, math.ceil((run.train.epochs or 0) * num_samples / run.train.global_batch))
    continuity = _continuity(run, data, steps)
    return Prepared(
        tokenizer, checkpoint, config, data.source, data.key, data.collate_plan, data.remarks, objectives, steps,
        continuity,
        resumed=find_checkpoint(run.train.out / CHECKPOINTS, continuity, world) if resume else None,
        provenance=_provenance(run, data, manifest, steps),
    )  # fmt: skip


def student_tokenizer_config(student: StudentConfig) -> TokenizerConfig:
    """Give the student's tokenizer section, by default the one beside its checkpoint."""
    if student.tokenizer is not None:
        return student.tokenizer
    assert student.model is not None, "the run-file model requires one of the two"
    return TokenizerConfig(path=student.model, revision=student.revision)


def cache_faults(run: TrainRun, manifest: Manifest, tokenizer: TextTokenizer, needs: Needs) -> list[str]:
    """List where a cache does not fit: another tokenizer, block size or length; a signal, T or view it lacks.

    Args:
        run: The run file.
        manifest: Of the cache.
        tokenizer: The student's.
        needs: What the objectives need together.
    """
    identity = manifest.identity
    faults = []
    fingerprint = tokenizer.fingerprint()
    for name in sorted(fingerprint.keys() | identity.student_tokenizer.keys()):
        found, expected = identity.student_tokenizer.get(name), fingerprint.get(name)
        if found != expected:
            faults.append(f"student tokenizer, {name}: cache has {found}, the student's is {expected}")
    if faults:
        faults[-1] += f"; build with --student {tokenizer.name}, or train with the tokenizer of the cache"
    for name in ("block_size", "max_length"):
        wanted, built = getattr(run.student, name), getattr(identity.student, name)
        if wanted not in (None, built):
            faults.append(f"student.{name}: found {wanted}, the cache was built for {built}; leave it out to use that")
    if run.data.signal_pass not in manifest.passes:
        passes = ",".join([*manifest.passes, run.data.signal_pass])
        faults.append(
            f"data.signal_pass: found {run.data.signal_pass}, cache has {list(manifest.passes)}; add it: "
            f"tide-cache build-teacher-shards RUN.toml --out {run.data.cache} --passes {passes}"
        )
    faults += _lacking_signals(needs, identity.signals)
    if lacking := needs.teacher_temperatures - set(identity.signals.temperatures):
        every = sorted(needs.teacher_temperatures | set(identity.signals.temperatures))
        faults.append(
            f"temperatures: cache has {list(identity.signals.temperatures)}, objectives also need {sorted(lacking)}; "
            f"build with --set 'signals.temperatures={every}'"
        )
    if run.data.num_views and run.data.num_views > identity.views.num_views:
        faults.append(f"data.num_views: found {run.data.num_views}, cache has {identity.views.num_views}")
    if needs.signals >= {"topk"} and not identity.pairing.shared_vocab_size:
        faults.append(
            "kl, reverse_kl and tidal over kl compare equal tokens, and the two tokenizers share none; use "
            "chunk_kl, calm or reverse_calm"
        )
    return faults


def _lacking_signals(needs: Needs, signals: SignalsIdentity) -> list[str]:
    """List signals that objectives need and the cache lacks, with what adds them to another build of it."""
    faults = []
    if missing := needs.signals - {"tail"} - set(signals.kinds):
        every = [kind for kind in ("truth", "topk", "chunks") if kind in {*signals.kinds, *missing}]
        faults.append(
            f"signals: cache has {list(signals.kinds)}, objectives also need {sorted(missing)}; build with "
            f"--set 'signals.kinds={every}'"
        )
    if "tail" in needs.signals and not signals.tail_samples:
        faults.append(
            "signals.tail_samples: cache has 0, an objective has tail = 'sampled'; build with --set "
            "signals.tail_samples=16, or use tail = 'rest'"
        )
    return faults


def _objective(entry: Any) -> Objective:
    return OBJECTIVES[entry.kind](**entry.model_dump(exclude={"kind", "weight"}))


def _new_config(student: StudentConfig, tokenizer: TextTokenizer) -> PretrainedConfig:
    shape = student.shape
    assert shape is not None, "the run-file model requires one of the two"
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


def _longest(run: TrainRun, manifest: Manifest | None) -> int:
    return manifest.identity.student.max_length if manifest else run.student.max_length or MAX_LENGTH


def _batch_faults(run: TrainRun, world: World) -> list[str]:
    share = run.train.micro_batch * world.size
    if run.train.global_batch % share == 0:
        return []
    return [
        f"train.global_batch: found {run.train.global_batch}, expected a multiple of micro_batch x processes = "
        f"{run.train.micro_batch} x {world.size} = {share}"
    ]


def _out_faults(out: Path, resume: bool) -> list[str]:
    if out.exists() and not out.is_dir():
        return [f"train.out: {out} is a file; give a new folder"]
    if resume or not out.exists() or not any(out.iterdir()):
        return []
    if committed_checkpoints(out / CHECKPOINTS):
        return [f"train.out: {out} is not empty; add --resume to continue the run in it, or give a new folder"]
    return [f"train.out: {out} is not empty and holds no checkpoint to resume; give a new folder, or remove it"]


@dataclass(frozen=True, eq=False)
class _OpenedData:
    source: TeacherSource
    collate_plan: CollatePlan
    key: str
    remarks: tuple[str, ...]


def _open_data(run: TrainRun, manifest: Manifest | None, tokenizer: TextTokenizer) -> _OpenedData:
    if manifest is not None:
        assert run.data.cache is not None
        source = CacheSource(run.data.cache, manifest, run.data.num_views, signal_pass=run.data.signal_pass)
        plan = cache_collate_plan(manifest, tokenizer.mask_id, tokenizer.pad_id, manifest.identity.student.block_size)
        return _OpenedData(source, plan, manifest.identity.cache_id, ())
    assert run.data.corpus is not None
    block_size = run.student.block_size or BLOCK_SIZE
    corpus = open_corpus(**dict(run.data.corpus))
    paired = encode_student(
        list(corpus), tokenizer, max_length=_longest(run, None), block_size=block_size, fill_last_block=True
    )
    if not paired.pairs:
        reasons = [f"{reason}: {count}" for reason, count in paired.report.dropped.items()]
        title = f"{run.data.corpus.spec}: no row of the corpus became a sample:"
        raise PairingError(fault_list(title, reasons, "Raise student.max_length, or mend the corpus."))
    views = ViewPlan(**run.data.views.model_dump())
    plan = CollatePlan(tokenizer.mask_id, tokenizer.pad_id, block_size, schedule=views.schedule)
    return _OpenedData(
        PlainSource(paired.pairs, views), plan, corpus.content_hash, paired.report.remarks(corpus.skipped)
    )


def _continuity(run: TrainRun, data: _OpenedData, steps: int) -> dict[str, Any]:
    student = run.student.model_dump(mode="json", exclude={"tokenizer", "block_size", "max_length"})
    values = {
        "data": data.key,
        "student.block_size": data.collate_plan.block_size,
        "student.max_length": _longest(run, None) if run.data.corpus else None,
        "data.seed": run.data.seed,
        "data.num_views": run.data.num_views,
        "data.signal_pass": run.data.signal_pass if run.data.signal_pass != "plain" else None,
        "data.views": run.data.views.model_dump(mode="json") if run.data.corpus else None,
        **{f"student.{name}": value for name, value in student.items()},
        "objective": [entry.model_dump(mode="json") for entry in run.objective],
        "optimizer": run.optimizer.model_dump(mode="json"),
        "train.steps": steps,
        **{f"train.{name}": getattr(run.train, name) for name in ("global_batch", "precision", "zero_stage", "seed")},
    }
    content: dict[str, Any] = as_json(values)
    return content


def _provenance(run: TrainRun, data: _OpenedData, manifest: Manifest | None, steps: int) -> dict[str, Any]:
    return {
        "tide_cache_version": __version__,
        "data": {"kind": "cache" if manifest else "corpus", "id": data.key},
        "cache_identity": manifest.identity.model_dump(mode="json") if manifest else None,
        "signal_pass": run.data.signal_pass if manifest else None,
        "objective": [entry.model_dump(mode="json") for entry in run.objective],
        "steps": steps,
        "global_batch": run.train.global_batch,
        "seed": run.train.seed,
        "block_size": data.collate_plan.block_size,
        "started_from": Path(run.student.model).name if run.student.model else "random weights",
    }
