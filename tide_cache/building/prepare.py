"""Everything about a build that can be checked before the teacher's weights are loaded."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tide_cache.building.engine_topk import (
    described_teacher,
    kept_signals,
    open_topk,
    teacher_identity,
    topk_faults,
    topk_remarks,
    with_vocabulary,
)
from tide_cache.building.paired_corpus import PairedCorpus, pair_corpus
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.run_record import begun_on
from tide_cache.building.shard_size import require_openable, samples_per_shard
from tide_cache.building.trajectories import require_given_steps, trajectories_wanted, trajectory_faults
from tide_cache.config.build import BuildRun
from tide_cache.config.common import TokenizerConfig
from tide_cache.corpus import Corpus, open_corpus, open_preprocessed
from tide_cache.corpus.stamps import stamps_of
from tide_cache.corpus.unread import KnownCorpus, UnreadCorpus
from tide_cache.errors import CorpusError, RunFileError, TideCacheError, fault_list
from tide_cache.families import FAMILIES
from tide_cache.manifest import (
    CacheFolder,
    CacheIdentity,
    PairingIdentity,
    ShardPlan,
    SignalsIdentity,
    StudentIdentity,
    ViewsIdentity,
    VocabSizes,
)
from tide_cache.manifest.identity import Scalar, version_for
from tide_cache.manifest.manifest import read_plan
from tide_cache.modeling.backbone import (
    CheckpointInfo,
    fetch_weights,
    read_checkpoint,
    resolve_device,
    unsupported_loading,
)
from tide_cache.modeling.fingerprint import checkpoint_fingerprint, stated_fingerprint
from tide_cache.pairing import (
    Lengths,
    Pairer,
    PairingReport,
    PreprocessedPairer,
    SamplePairer,
    TextTokenizer,
    shared_vocab_size,
)
from tide_cache.pairing.checking import LengthLimit, remarks, require_samples, require_usable
from tide_cache.pairing.dates import today
from tide_cache.teacher.capture import CaptureSettings, require_prefixes

ROWS_CHECKED_FIRST = 64

Weights = Literal["hashed", "stated", "unread"]


def prepare_build(
    run: BuildRun,
    weights: Weights = "hashed",
    pairs_all: bool = True,
    before_weights: Callable[[PreparedBuild], None] | None = None,
    reads_topk: bool = True,
    known: KnownCorpus | None = None,
) -> PreparedBuild:
    """Check a build, open its corpus, and pair every row; the teacher's weights are looked at last.

    Args:
        run: The run file.
        weights: What is needed of the teacher's weights. `hashed` fetches those of a hub; `stated` trusts the hub for
            their hash; `unread` leaves the hash out, so that the identity names no cache.
        pairs_all: False for a worker of a build whose rows were paired where it began, and for whoever pairs some.
        before_weights: Called with all but the weights' hash, before they are fetched and hashed, which takes minutes.
        reads_topk: False where an engine has yet to write `teacher.topk`.
        known: The corpus, where its samples are published in `build.out`; no row is read then.

    Raises:
        RunFileError: Something in the run file cannot work; lists every fault.
        EngineFileError: What an engine wrote cannot be used, or is about other texts.
        PairingError: Rows cannot be rendered, or none becomes a sample.
        TideCacheError: Corpus, tokenizer or checkpoint cannot be read.
    """
    is_imported = run.teacher.topk is not None
    checkpoint = described_teacher(run) if is_imported else read_checkpoint(run.teacher.model, run.teacher.revision)
    section = run.teacher.tokenizer or TokenizerConfig(path=str(checkpoint.folder))
    if run.teacher.context == "causal" and section.mask_token is None:  # it never sees one, so that any will do
        section = section.model_copy(update={"add_mask_token": True})
    teacher = TextTokenizer.load(**dict(section), mask_id=checkpoint.mask_id)
    student = TextTokenizer.load(**dict(run.student.tokenizer))
    shared = shared_vocab_size(teacher, student)
    is_mask_alone = run.teacher.context == "causal" and teacher.is_mask_added
    if is_imported:
        checkpoint = with_vocabulary(checkpoint, teacher.vocab_size - is_mask_alone)
    faults = _context_faults(run, checkpoint) + trajectory_faults(run)
    faults += checkpoint.fit_faults(teacher.vocab_size - is_mask_alone, run.teacher.max_length, "teacher")
    if run.teacher.context != "causal":
        faults += checkpoint.mask_faults(teacher.mask_id, teacher.mask_token, "teacher.tokenizer")
    if run.teacher.context == "block":
        faults += checkpoint.block_faults(run.teacher.block_size, "teacher")
    faults += topk_faults(run) if is_imported else unsupported_loading(checkpoint, run.teacher.loading)
    faults += _setting_faults(run, checkpoint, shared) + _untrained_faults(run, checkpoint)
    day, day_faults = _fix_day(run, teacher, student)
    faults += day_faults
    if faults:
        raise RunFileError(fault_list("The build cannot start:", faults, "Nothing was loaded or written."))
    stamps = stamps_of(run.corpus.spec, run.corpus.folder)  # before it is read: it may be changed meanwhile
    corpus, pairer = _rows_and_pairer(run, teacher, student, known)
    if run.pairing.shared_vocab_size is not None:
        shared = run.pairing.shared_vocab_size
    # Only `auto` asks this machine: a plan is made, and a Ray cluster is driven, where no GPU is.
    device = resolve_device("auto") if run.teacher.device == "auto" else run.teacher.device
    size = samples_per_shard(run, checkpoint.config, device, len(corpus))
    require_openable(len(corpus), size, 1 if run.teacher.context == "causal" else run.views.num_views)
    plan = ShardPlan(
        num_rows=len(corpus),
        samples_per_shard=size,
        batch_tokens=run.build.batch_tokens,
        head_rows=run.build.head_rows,
        views_per_forward=run.build.views_per_forward,
    )
    paired = _paired(run, corpus, pairer, plan) if pairs_all and known is None else None
    if paired is not None:
        require_given_steps(run, corpus, teacher)
    if run.teacher.context == "causal" and paired is not None:
        for shard in range(plan.num_shards):
            require_prefixes(paired.shard(shard).pairs)
    topk, topk_notes = None, tuple[str, ...]()
    if run.teacher.topk is not None and reads_topk:
        topk = open_topk(run, run.teacher.topk.path, teacher, checkpoint.vocab_size)
        if paired is not None:
            for shard in range(plan.num_shards):
                topk.require(paired.shard(shard).pairs)
        topk_notes = topk_remarks(run.signals, topk)
        run = run.model_copy(update={"signals": kept_signals(run.signals, topk)})

    def said(fingerprint: dict[str, str | None]) -> dict[str, Scalar]:
        return teacher_identity(run, checkpoint, topk) if is_imported else _loaded_teacher(run, checkpoint, fingerprint)

    # For a folder `revision` is as given, since nothing resolves it.
    unknown = {"revision": checkpoint.commit or run.teacher.revision, "config_sha256": None, "weights_sha256": None}
    build = PreparedBuild(
        corpus=corpus,
        pairer=pairer,
        checkpoint=checkpoint,
        identity=_identity(run, corpus, checkpoint, said(unknown), teacher, student, shared, day),
        plan=plan,
        views=run.views,
        passes=run.build.passes,
        capture=CaptureSettings(
            context=run.teacher.context,
            block_size=run.teacher.block_size,
            mask_id=teacher.mask_id,
            shared_vocab_size=shared,
            views_per_forward=run.build.views_per_forward,
            batch_tokens=run.build.batch_tokens,
            head_rows=run.build.head_rows,
            signals=run.signals,
            seed=run.views.seed,
        ),
        special_tokens={"teacher": teacher.special_tokens, "student": student.special_tokens},
        paired=paired,
        stamps=stamps,
        published=None if known is None else CacheFolder(run.build.out),
        remarks=()
        if paired is None
        else build_remarks(run, corpus, paired.report, paired.lengths, paired.faults) + topk_notes,
        topk=topk,
    )
    if before_weights is not None:
        before_weights(build)
    if is_imported:
        return build
    fingerprint = unknown | _weights_hash(checkpoint, weights)
    identity = _identity(run, corpus, checkpoint, said(fingerprint), teacher, student, shared, day)
    return replace(build, identity=identity)


def _paired(run: BuildRun, corpus: Corpus[Any], pairer: Pairer, plan: ShardPlan) -> PairedCorpus:
    """Pair every row, and refuse those that cannot be used unless they may be left out."""
    paired = pair_corpus(corpus, pairer, plan)
    require_usable_rows(run, paired.report, paired.faults, paired.num_faults)
    return paired


def require_usable_rows(
    run: BuildRun, report: PairingReport, faults: Sequence[str], num_faults: int | None = None
) -> None:
    """Refuse rows that cannot be used, unless they may be left out; and rows of which nothing is left.

    Args:
        run: The run file.
        report: Counts of rows of its corpus.
        faults: Some or all bad rows among them.
        num_faults: How many there are; by default those given.

    Raises:
        PairingError: Lists the first rows, or the reasons.
    """
    require_usable(run.corpus.spec, faults, run.corpus.on_bad_row, "corpus.on_bad_row", num_faults)
    way_out = "Raise student.max_length and teacher.max_length, or fix the corpus. Nothing was computed."
    num_rows = report.samples + sum(report.dropped.values())
    require_samples(f"{run.corpus.spec}: none of {num_rows} rows became a sample:", report, way_out)


def build_remarks(
    run: BuildRun, corpus: Corpus[Any], report: PairingReport, lengths: Lengths, faults: Sequence[str]
) -> tuple[str, ...]:
    """Tell the user what became of the rows; arguments as for `remarks`."""
    limits = (
        LengthLimit("student.max_length", run.student.max_length),
        LengthLimit("teacher.max_length", run.teacher.max_length, "teacher"),
    )
    return remarks(report, lengths, limits, corpus.notes, corpus.skipped, faults)


def _weights_hash(checkpoint: CheckpointInfo, weights: Weights) -> dict[str, str | None]:
    """Fetch and hash the teacher's weights, or ask the hub for their hash; None where it cannot say."""
    if weights == "unread":
        return {"weights_sha256": None}
    if weights == "stated" and checkpoint.repository is not None and checkpoint.commit is not None:
        return stated_fingerprint(checkpoint.repository)
    fetch_weights(checkpoint)
    return {**checkpoint_fingerprint(checkpoint.folder)}


def _fix_day(run: BuildRun, teacher: TextTokenizer, student: TextTokenizer) -> tuple[datetime.date | None, list[str]]:
    """Make all templates that write the date write one day: the run file's, the cache's own, or today.

    Returns:
        The day, None where no template writes one; and faults.
    """
    dated = [tokenizer for tokenizer in (teacher, student) if tokenizer.writes_date]
    if run.corpus.format != "chat" or not dated:
        faults = [] if run.pairing.date is None else [
            f"pairing.date: found {run.pairing.date}, but no chat template of this build writes the date; leave it out"
        ]  # fmt: skip
        return None, faults
    day = run.pairing.date or _day_begun(run) or today()
    for tokenizer in dated:
        tokenizer.show_day(day)
    return day, []


def _day_begun(run: BuildRun) -> datetime.date | None:
    """Return the day of an existing cache; faults of the cache are reported by whoever reads more of it."""
    try:
        day = read_plan(run.build.out).identity.pairing.date
    except TideCacheError:
        return begun_on(run.build.out)
    return datetime.date.fromisoformat(day) if day else None


def _rows_and_pairer(
    run: BuildRun, teacher: TextTokenizer, student: TextTokenizer, known: KnownCorpus | None
) -> tuple[Corpus[Any], Pairer]:
    """Open the corpus, unless it is known, and choose the pairer for its rows."""
    lengths = {
        "teacher_max_length": run.teacher.max_length,
        "student_max_length": run.student.max_length,
        "student_block_size": run.student.block_size,
    }
    fills = run.student.fill_last_block
    if run.corpus.format == "chat":
        pairer = SamplePairer(teacher, student, **lengths, fill_last_block=fills, aligner=run.pairing.aligner)
        read = partial(open_corpus, **dict(run.corpus), trajectories=trajectories_wanted(run))
        return (read() if known is None else UnreadCorpus(known, read)), pairer
    read_preprocessed = partial(
        open_preprocessed,
        **dict(run.corpus),
        student_vocab_size=student.vocab_size,
        teacher_vocab_size=teacher.vocab_size,
    )
    preprocessed = PreprocessedPairer(teacher, student, **lengths, fill_last_block=fills)
    if known is not None:
        return UnreadCorpus(known, read_preprocessed), preprocessed
    corpus = read_preprocessed()
    report = preprocessed.pair_many(list(corpus.rows(0, ROWS_CHECKED_FIRST))).report
    if report.spans_dropped and not report.chunks:
        raise CorpusError(
            f"{run.corpus.spec}: in its first {min(len(corpus), ROWS_CHECKED_FIRST)} rows none of "
            f"{report.spans_dropped} spans has the same bytes on both sides; expected tokens of {teacher.name} for the "
            f"teacher and of {student.name} for the student.\nGive the tokenizers that the set was made with as "
            "teacher.tokenizer and student.tokenizer."
        )
    return corpus, preprocessed


def _context_faults(run: BuildRun, checkpoint: CheckpointInfo) -> list[str]:
    """List a causal context for a model that is none, and what has no meaning under it."""
    if run.teacher.context != "causal":
        return []
    faults, family = [], FAMILIES.get(checkpoint.model_type)
    if run.teacher.topk is None and family is not None and "causal" not in family.contexts:
        way_out = f"use teacher.context = {family.native!r}"
        if checkpoint.converted_from is not None:
            way_out = f"give the causal model that it was converted from ({checkpoint.converted_from})"
        faults.append(
            f"teacher.context: found 'causal', but {checkpoint.location} ({checkpoint.model_type}) is a masked "
            f"diffusion model, which sees both sides; {way_out}"
        )
    if "compdemo" in run.build.passes:
        faults.append(
            "build.passes: found 'compdemo' with teacher.context = 'causal': it shows parts of what is masked, and a "
            "causal teacher sees every true token before the one it predicts; leave compdemo out"
        )
    return faults


def _untrained_faults(run: BuildRun, checkpoint: CheckpointInfo) -> list[str]:
    if checkpoint.converted_from is None or run.teacher.allow_untrained or run.teacher.context == "causal":
        return []
    return [
        f"teacher.model: {checkpoint.location} was converted from {checkpoint.converted_from} and never trained to "
        "denoise, so it predicts nothing useful; train it first (tide-cache train --student), or say "
        "--allow-untrained (teacher.allow_untrained). Or take the causal model that it was made of, with "
        "teacher.context = 'causal'. If it was trained elsewhere, remove its tide_cache.json"
    ]


def _setting_faults(run: BuildRun, checkpoint: CheckpointInfo, shared: int) -> list[str]:
    faults = []
    if run.signals.ids_per_row > checkpoint.vocab_size:
        faults.append(f"signals.top_k: found {run.signals.top_k}, the teacher has {checkpoint.vocab_size} ids")
    if run.pairing.shared_vocab_size is not None and run.pairing.shared_vocab_size > shared:
        faults.append(
            f"pairing.shared_vocab_size: found {run.pairing.shared_vocab_size}, but the tokenizers differ "
            f"at id {shared}; leave it out to have it found by comparison"
        )
    if run.corpus.format != "chat" and run.pairing.aligner != "bytes":
        faults.append(
            f"pairing.aligner: found {run.pairing.aligner!r}, but the spans of corpus.format = {run.corpus.format!r} "
            "are cut by their bytes; leave it out"
        )
    if isinstance(run.build.out, Path) and run.build.out.exists() and not run.build.out.is_dir():
        faults.append(f"build.out: {run.build.out} is a file; give an empty or new folder")
    return faults


def _loaded_teacher(run: BuildRun, checkpoint: CheckpointInfo, fingerprint: dict[str, str | None]) -> dict[str, Scalar]:
    return {
        "model_type": checkpoint.model_type,
        **fingerprint,
        **run.teacher.model_dump(include={"context", "block_size", "max_length", "dtype"}),
        # Unwritten when there is none, so that a cache from before it could be chosen keeps its id.
        **({} if run.teacher.quantisation == "none" else {"quantisation": run.teacher.quantisation}),
    }


def _identity(
    run: BuildRun,
    corpus: Corpus[Any],
    checkpoint: CheckpointInfo,
    said: dict[str, Scalar],
    teacher: TextTokenizer,
    student: TextTokenizer,
    shared: int,
    day: datetime.date | None,
) -> CacheIdentity:
    return CacheIdentity(
        format_version=version_for(run.teacher.context, run.signals.kinds, run.views.source),
        corpus_hash=corpus.content_hash,
        num_rows=len(corpus),
        teacher=said,
        teacher_tokenizer=teacher.fingerprint(),
        student_tokenizer=student.fingerprint(),
        vocab_sizes=VocabSizes(student=student.vocab_size, teacher=checkpoint.vocab_size),
        student=StudentIdentity(**run.student.model_dump(exclude={"tokenizer"})),
        pairing=PairingIdentity(
            # A preprocessed set was not tokenised here, and its own spans were checked against the bytes.
            aligner=run.pairing.aligner if run.corpus.format == "chat" else run.corpus.format,
            shared_vocab_size=shared,
            date=None if day is None else day.isoformat(),
        ),
        views=ViewsIdentity(**asdict(run.views)),
        signals=SignalsIdentity(**asdict(run.signals) | {"chunk_k": run.signals.tuples_per_chunk}),
    )
