"""Everything of a build that can be known, and found wrong, before the teacher's weights are loaded."""

from dataclasses import dataclass
from pathlib import Path

from tide_cache.config.build import BuildRun
from tide_cache.config.common import PassName, TokenizerConfig
from tide_cache.corpus import Corpus, open_corpus
from tide_cache.errors import RunFileError, fault_list
from tide_cache.manifest import (
    CacheIdentity,
    PairingIdentity,
    ShardPlan,
    SignalsIdentity,
    StudentIdentity,
    ViewsIdentity,
    VocabSizes,
)
from tide_cache.modeling.backbone import CheckpointInfo, read_checkpoint, unsupported_loading
from tide_cache.modeling.fingerprint import checkpoint_fingerprint, local_folder, resolved_commit
from tide_cache.pairing import SamplePairer, Spelling, TextTokenizer, shared_vocab_size
from tide_cache.teacher.capture import CapturePlan
from tide_cache.teacher.statistics import SignalPlan
from tide_cache.views import ViewPlan


@dataclass(frozen=True, eq=False)
class PreparedBuild:
    """A checked build; all that a worker needs besides the teacher's weights.

    Attributes:
        corpus: The rows.
        pairer: Turns them into samples.
        checkpoint: Of the teacher.
        identity: What the cache will hold.
        plan: How it is cut into shards.
        views: How views are drawn.
        demo_ratio: How the views of the compdemo pass are split.
        passes: What is captured.
        capture: How the teacher is run.
    """

    corpus: Corpus
    pairer: SamplePairer
    checkpoint: CheckpointInfo
    identity: CacheIdentity
    plan: ShardPlan
    views: ViewPlan
    demo_ratio: float
    passes: tuple[PassName, ...]
    capture: CapturePlan

    def spelling(self) -> Spelling | None:
        """Spell the teacher's vocabulary for the student, where candidate chunks are wanted; takes seconds."""
        if not self.capture.signals.chunk_k:
            return None
        return self.pairer.spelling(self.checkpoint.vocab_size)


def prepare_build(run: BuildRun) -> PreparedBuild:
    """Check a build and open its corpus.

    Raises:
        RunFileError: Something in the run file cannot work; lists every fault.
        TideCacheError: Corpus, tokenizer or checkpoint cannot be read.
    """
    folder = local_folder(run.teacher.model, run.teacher.revision)
    checkpoint = read_checkpoint(str(folder))
    section = run.teacher.tokenizer or TokenizerConfig(path=str(folder))
    teacher = TextTokenizer.load(**dict(section), mask_id=checkpoint.mask_id)
    student = TextTokenizer.load(**dict(run.student.tokenizer))
    shared = shared_vocab_size(teacher, student)
    faults = checkpoint.require_fits(teacher.vocab_size, run.teacher.max_length, "teacher")
    faults += checkpoint.mask_faults(teacher.mask_id, teacher.mask_token, "teacher.tokenizer")
    faults += unsupported_loading(checkpoint, run.teacher.quantisation, run.teacher.device_map)
    faults += _setting_faults(run, checkpoint, shared)
    if faults:
        raise RunFileError(fault_list("The build cannot start:", faults, "Nothing was loaded or written."))
    corpus = open_corpus(**dict(run.corpus))
    if run.pairing.shared_vocab_size is not None:
        shared = run.pairing.shared_vocab_size
    commit = resolved_commit(run.teacher.model, folder, run.teacher.revision)
    fingerprint = {"revision": commit, **checkpoint_fingerprint(folder)}
    return PreparedBuild(
        corpus=corpus,
        pairer=SamplePairer(
            teacher,
            student,
            teacher_max_length=run.teacher.max_length,
            student_max_length=run.student.max_length,
            student_block_size=run.student.block_size,
            fill_last_block=run.student.fill_last_block,
            aligner=run.pairing.aligner,
        ),
        checkpoint=checkpoint,
        identity=_identity(run, corpus, checkpoint, fingerprint, teacher, student, shared),
        plan=ShardPlan(
            num_rows=len(corpus),
            samples_per_shard=run.build.samples_per_shard,
            batch_tokens=run.build.batch_tokens,
            head_rows=run.build.head_rows,
            views_per_forward=run.build.views_per_forward,
        ),
        views=ViewPlan(**run.views.model_dump(exclude={"demo_ratio"})),
        demo_ratio=run.views.demo_ratio,
        passes=run.build.passes,
        capture=CapturePlan(
            context=run.teacher.context,
            block_size=run.teacher.block_size,
            mask_id=teacher.mask_id,
            shared_vocab_size=shared,
            views_per_forward=run.build.views_per_forward,
            batch_tokens=run.build.batch_tokens,
            head_rows=run.build.head_rows,
            signals=_signal_plan(run),
            seed=run.views.seed,
        ),
    )


def _signal_plan(run: BuildRun) -> SignalPlan:
    has_topk, has_chunks = ("topk" in run.signals.kinds, "chunks" in run.signals.kinds)
    return SignalPlan(
        temperatures=run.signals.temperatures,
        top_k=run.signals.top_k if has_topk or has_chunks else 0,
        top_p=run.signals.top_p,
        tail_samples=run.signals.tail_samples,
        has_topk=has_topk,
        chunk_k=run.signals.chunk_k if has_chunks else 0,
    )


def _setting_faults(run: BuildRun, checkpoint: CheckpointInfo, shared: int) -> list[str]:
    faults = []
    if _signal_plan(run).top_k > checkpoint.vocab_size:
        faults.append(f"signals.top_k: found {run.signals.top_k}, the teacher has {checkpoint.vocab_size} ids")
    if run.pairing.shared_vocab_size is not None and run.pairing.shared_vocab_size > shared:
        faults.append(
            f"pairing.shared_vocab_size: found {run.pairing.shared_vocab_size}, but the tokenizers differ "
            f"at id {shared}; leave it out to have it found by comparison"
        )
    if isinstance(run.build.out, Path) and run.build.out.exists() and not run.build.out.is_dir():
        faults.append(f"build.out: {run.build.out} is a file; give an empty or new folder")
    return faults


def _identity(
    run: BuildRun,
    corpus: Corpus,
    checkpoint: CheckpointInfo,
    fingerprint: dict[str, str | None],
    teacher: TextTokenizer,
    student: TextTokenizer,
    shared: int,
) -> CacheIdentity:
    return CacheIdentity(
        corpus_hash=corpus.content_hash,
        num_rows=len(corpus),
        teacher={
            "model_type": checkpoint.model_type,
            **fingerprint,
            **run.teacher.model_dump(include={"context", "block_size", "max_length", "dtype"}),
            # Unwritten when there is none, so that a cache from before it could be chosen keeps its id.
            **({} if run.teacher.quantisation == "none" else {"quantisation": run.teacher.quantisation}),
        },
        teacher_tokenizer=teacher.fingerprint(),
        student_tokenizer=student.fingerprint(),
        vocab_sizes=VocabSizes(student=student.vocab_size, teacher=checkpoint.vocab_size),
        student=StudentIdentity(**run.student.model_dump(exclude={"tokenizer"})),
        pairing=PairingIdentity(aligner=run.pairing.aligner, shared_vocab_size=shared),
        views=ViewsIdentity(**run.views.model_dump()),
        signals=SignalsIdentity(**run.signals.model_dump() | {"chunk_k": _signal_plan(run).chunk_k}),
    )
