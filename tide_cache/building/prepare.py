"""Everything about a build that can be checked before the teacher's weights are loaded."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from tide_cache.building.engine_topk import (
    described_teacher,
    kept_signals,
    open_topk,
    teacher_identity,
    topk_remarks,
    with_vocabulary,
)
from tide_cache.building.faults import build_faults
from tide_cache.building.identity import TokensIdentity, Weights, cache_identity, loaded_teacher, weights_hash
from tide_cache.building.prepared_build import PreparedBuild, capture_settings
from tide_cache.building.rows import build_remarks, pair_all, rows_and_pairer
from tide_cache.building.run_record import begun_on, require_same_tokens
from tide_cache.building.shard_size import require_openable, samples_per_shard
from tide_cache.building.trajectories import require_given_steps
from tide_cache.config.build import BuildRun
from tide_cache.corpus.stamps import stamps_of
from tide_cache.corpus.unread import KnownCorpus, UnreadCorpus
from tide_cache.errors import RunFileError, TideCacheError, fault_list
from tide_cache.manifest import CacheFolder, ShardPlan
from tide_cache.manifest.manifest import read_plan
from tide_cache.modeling.backbone import CheckpointInfo, read_checkpoint, resolve_device
from tide_cache.pairing import TextTokenizer, shared_vocab_size
from tide_cache.pairing.dates import today
from tide_cache.teacher.capture import require_prefixes


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
    models = _read_models(run)
    checkpoint, teacher = models.checkpoint, models.teacher
    stamps = stamps_of(run.corpus.spec, run.corpus.folder)  # before it is read: it may be changed meanwhile
    corpus, pairer = rows_and_pairer(run, teacher, models.student, known)
    plan = _plan_shards(run, checkpoint, len(corpus))
    paired = pair_all(run, corpus, pairer, plan) if pairs_all and known is None else None
    notes: tuple[str, ...] = ()
    if paired is not None:
        require_given_steps(run, corpus, teacher, paired)
        if run.teacher.context == "causal":
            require_prefixes(paired.pairs())
        notes = build_remarks(run, corpus, paired.report, paired.lengths, paired.faults)
    topk = None
    if run.teacher.topk is not None and reads_topk:
        topk = open_topk(run, run.teacher.topk.path, teacher, checkpoint.vocab_size)
        if paired is not None:
            topk.require(paired.pairs())
            notes += topk_remarks(run.signals, topk)
        run = run.model_copy(update={"signals": kept_signals(run.signals, topk)})
    is_imported = run.teacher.topk is not None
    described = teacher_identity(run, checkpoint, topk) if is_imported else loaded_teacher(run, checkpoint)
    tokens = TokensIdentity.of(teacher, models.student, models.shared_vocab_size, models.day)
    build = PreparedBuild(
        corpus=corpus,
        make_pairer=lambda: pairer,
        checkpoint=checkpoint,
        identity=cache_identity(run, corpus, checkpoint, described, tokens),
        plan=plan,
        views=run.views,
        passes=run.build.passes,
        capture=capture_settings(run, tokens),
        special_tokens={"teacher": teacher.special_tokens, "student": models.student.special_tokens},
        paired=paired,
        stamps=stamps,
        published=None if known is None else CacheFolder(run.build.out),
        remarks=notes,
        topk=topk,
    )
    if before_weights is not None:
        before_weights(build)
    if is_imported:
        return build
    described = loaded_teacher(run, checkpoint, weights_hash(checkpoint, weights))
    return replace(build, identity=build.identity.model_copy(update={"teacher": described}))


def published_build(run: BuildRun, folder: CacheFolder, known: KnownCorpus) -> PreparedBuild:
    """Return what a worker needs of a build that was begun, whose pairs are all published.

    No row is read, and no tokenizer before the pairer is asked for: what is captured of `truth` and `topk` depends on
    neither. Loading, listing and hashing a vocabulary of 150,000 takes seconds.

    Args:
        run: The run file.
        folder: The cache.
        known: Its corpus.

    Raises:
        CacheMismatchError: The run, or the teacher that lies here, is not what the build began with.
        TideCacheError: The checkpoint cannot be read.
    """
    begun = folder.plan_document.identity

    @cache
    def read() -> PreparedBuild:
        build = prepare_build(run, "unread", pairs_all=False, known=known)
        found = build.identity.model_copy(update={"teacher": begun.teacher})  # its weights are compared below
        folder.require_fits(found, build.plan)
        require_same_tokens(run, build)
        return build

    checkpoint = read_checkpoint(run.teacher.model, run.teacher.revision)
    described = loaded_teacher(run, checkpoint, weights_hash(checkpoint, "hashed"))
    corpus, tokens = UnreadCorpus(known, lambda: read().corpus), TokensIdentity.of_cache(begun)
    build = PreparedBuild(
        corpus=corpus,
        make_pairer=lambda: read().pairer,
        checkpoint=checkpoint,
        identity=cache_identity(run, corpus, checkpoint, described, tokens),
        plan=_plan_shards(run, checkpoint, known.num_rows),
        views=run.views,
        passes=run.build.passes,
        capture=capture_settings(run, tokens),
        special_tokens={},
        published=folder,
    )
    folder.require_fits(build.identity, build.plan)
    return build


@dataclass(frozen=True, eq=False)
class _Models:
    """What a build needs of its models before any weights are read.

    Attributes:
        checkpoint: The teacher's.
        teacher: Its tokenizer.
        student: The student's tokenizer.
        shared_vocab_size: Number of leading ids that stand for the same tokens in both.
        day: What all chat templates write as today's date, None where none writes one.
    """

    checkpoint: CheckpointInfo
    teacher: TextTokenizer
    student: TextTokenizer
    shared_vocab_size: int
    day: datetime.date | None


def _read_models(run: BuildRun) -> _Models:
    """Read the checkpoint's settings and both tokenizers, and list every fault of the run file at once."""
    is_imported, is_causal = run.teacher.topk is not None, run.teacher.context == "causal"
    checkpoint = described_teacher(run) if is_imported else read_checkpoint(run.teacher.model, run.teacher.revision)
    section = run.teacher.tokenizer_in(checkpoint.folder)
    teacher = TextTokenizer.load(**dict(section), mask_id=checkpoint.mask_id)
    is_same = section == run.student.tokenizer and (
        checkpoint.mask_id is None or section.mask_token is not None or section.add_mask_token
    )  # loading, listing and hashing a vocabulary of 150,000 takes seconds in every worker
    student = teacher if is_same else TextTokenizer.load(**dict(run.student.tokenizer))
    own_ids = teacher.vocab_size - (is_causal and teacher.is_mask_added)
    if is_imported:
        checkpoint = with_vocabulary(checkpoint, own_ids)
    shared = shared_vocab_size(teacher, student)
    faults = build_faults(run, checkpoint, teacher, own_ids, shared)
    day, day_faults = _fix_day(run, teacher, student)
    if faults := faults + day_faults:
        raise RunFileError(fault_list("The build cannot start:", faults, "Nothing was loaded or written."))
    if run.pairing.shared_vocab_size is not None:
        shared = run.pairing.shared_vocab_size
    return _Models(checkpoint, teacher, student, shared, day)


def _plan_shards(run: BuildRun, checkpoint: CheckpointInfo, num_rows: int) -> ShardPlan:
    """Choose the size of shards; refuses a cache that could not be opened."""
    # Only `auto` asks this machine: a plan is made, and a Ray cluster is driven, where no GPU is.
    device = resolve_device("auto") if run.teacher.device == "auto" else run.teacher.device
    size = samples_per_shard(run, checkpoint.config, device, num_rows)
    require_openable(num_rows, size, 1 if run.teacher.context == "causal" else run.views.num_views)
    return ShardPlan(
        num_rows=num_rows,
        samples_per_shard=size,
        batch_tokens=run.build.batch_tokens,
        head_rows=run.build.head_rows,
        views_per_forward=run.build.views_per_forward,
    )


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
