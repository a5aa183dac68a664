"""What a cache is made of, from the parts of a build; its hash is the cache's id."""

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

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


@dataclass(frozen=True)
class TokensIdentity:
    """What the identity says of both tokenizers.

    Attributes:
        teacher: Fingerprint of the teacher's.
        student: Fingerprint of the student's.
        student_vocab_size: Ids of the student's.
        shared_vocab_size: Number of leading ids that stand for the same tokens in both.
        date: What chat templates write as today's date, None where none writes one.
    """

    teacher: dict[str, str]
    student: dict[str, str]
    student_vocab_size: int
    shared_vocab_size: int
    date: str | None

    @classmethod
    def of(cls, teacher: TextTokenizer, student: TextTokenizer, shared: int, day: datetime.date | None) -> Self:
        """Ask the tokenizers; their hashes take a second each."""
        date = None if day is None else day.isoformat()
        return cls(teacher.fingerprint(), student.fingerprint(), student.vocab_size, shared, date)

    @classmethod
    def of_cache(cls, identity: CacheIdentity) -> Self:
        """Return what the identity of a cache says of them."""
        pairing = identity.pairing
        tokenizers = identity.teacher_tokenizer, identity.student_tokenizer
        return cls(*tokenizers, identity.vocab_sizes.student, pairing.shared_vocab_size, pairing.date)

    @property
    def mask_id(self) -> int:
        """The teacher's mask token."""
        return int(self.teacher["mask_token_id"])


def cache_identity(
    run: BuildRun,
    corpus: Corpus[Any],
    checkpoint: CheckpointInfo,
    said: dict[str, Scalar],
    tokens: TokensIdentity,
) -> CacheIdentity:
    """Return what the cache of a build is made of.

    Args:
        run: The run file, with what is captured of an engine's answers in place of what was asked for.
        corpus: Its rows.
        checkpoint: The teacher's.
        said: What the identity says of the teacher.
        tokens: What it says of the tokenizers.
    """
    return CacheIdentity(
        format_version=version_for(run.teacher.context, run.signals.kinds, run.views.source, run.signals.chunk_passes),
        corpus_hash=corpus.content_hash,
        num_rows=len(corpus),
        teacher=said,
        teacher_tokenizer=tokens.teacher,
        student_tokenizer=tokens.student,
        vocab_sizes=VocabSizes(student=tokens.student_vocab_size, teacher=checkpoint.vocab_size),
        student=StudentIdentity(**run.student.model_dump(exclude={"tokenizer"})),
        pairing=PairingIdentity(
            # A preprocessed set was not tokenised here, and its own spans were checked against the bytes.
            aligner=run.pairing.aligner if run.corpus.format == "chat" else run.corpus.format,
            shared_vocab_size=tokens.shared_vocab_size,
            date=tokens.date,
        ),
        views=ViewsIdentity(**asdict(run.views)),
        signals=SignalsIdentity(**asdict(run.signals) | {"chunk_k": run.signals.tuples_per_chunk}),
    )


def loaded_teacher(
    run: BuildRun, checkpoint: CheckpointInfo, hashes: Mapping[str, str | None] = MappingProxyType({})
) -> dict[str, Scalar]:
    """Return what the identity says of a teacher with weights: its checkpoint, and how it is shown views.

    Args:
        run: The run file.
        checkpoint: The teacher's.
        hashes: From `weights_hash`; none before it is known.
    """
    return {
        "model_type": checkpoint.model_type,
        "revision": checkpoint.commit or run.teacher.revision,  # for a folder as given: nothing resolves it
        "config_sha256": None,
        "weights_sha256": None,
        **hashes,
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
