"""What a cache is made of, from the parts of a build; its hash is the cache's id."""

import datetime
from dataclasses import asdict
from typing import Any, Literal

from tide_cache.config.build import BuildRun
from tide_cache.corpus import Corpus
from tide_cache.manifest import (
    CacheIdentity,
    PairingIdentity,
    SignalsIdentity,
    StudentIdentity,
    ViewsIdentity,
    VocabSizes,
)
from tide_cache.manifest.identity import Scalar, version_for
from tide_cache.modeling.backbone import CheckpointInfo, fetch_weights
from tide_cache.modeling.fingerprint import checkpoint_fingerprint, stated_fingerprint
from tide_cache.pairing import TextTokenizer

Weights = Literal["hashed", "stated", "unread"]


def cache_identity(
    run: BuildRun,
    corpus: Corpus[Any],
    checkpoint: CheckpointInfo,
    said: dict[str, Scalar],
    teacher: TextTokenizer,
    student: TextTokenizer,
    shared: int,
    day: datetime.date | None,
) -> CacheIdentity:
    """Return what the cache of a build is made of.

    Args:
        run: The run file, with what is captured of an engine's answers in place of what was asked for.
        corpus: Its rows.
        checkpoint: The teacher's.
        said: What the identity says of the teacher.
        teacher: Its tokenizer.
        student: The student's tokenizer.
        shared: Number of leading ids that stand for the same tokens in both.
        day: What chat templates write as today's date, None where none writes one.
    """
    return CacheIdentity(
        format_version=version_for(run.teacher.context, run.signals.kinds, run.views.source, run.signals.chunk_passes),
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


def loaded_teacher(run: BuildRun, checkpoint: CheckpointInfo, fingerprint: dict[str, str | None]) -> dict[str, Scalar]:
    """Return what the identity says of a teacher with weights: its checkpoint, and how it is shown views."""
    return {
        "model_type": checkpoint.model_type,
        **fingerprint,
        **run.teacher.model_dump(include={"context", "block_size", "max_length", "dtype"}),
        # Unwritten when there is none, so that a cache from before it could be chosen keeps its id.
        **({} if run.teacher.quantisation == "none" else {"quantisation": run.teacher.quantisation}),
    }


def weights_hash(checkpoint: CheckpointInfo, weights: Weights) -> dict[str, str | None]:
    """Fetch and hash the teacher's weights, or ask the hub for their hash; None where it cannot say."""
    if weights == "unread":
        return {"weights_sha256": None}
    if weights == "stated" and checkpoint.repository is not None and checkpoint.commit is not None:
        return stated_fingerprint(checkpoint.repository)
    fetch_weights(checkpoint)
    return {**checkpoint_fingerprint(checkpoint.folder)}
