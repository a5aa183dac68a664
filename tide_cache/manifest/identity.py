"""What a cache is made of, by content: equal identities mean equal shards, and any difference is refused.

Paths, machines and the number of workers are not part of it; whatever changes one stored number is. So views and
signals repeat the fields of their settings (`config/sections.py`), whose defaults may change: a document states every
value, and is readable for ever. They are made from the settings by name, and a test checks that the names are equal.
"""

import hashlib
from collections.abc import Collection
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tide_cache.config.base import Frozen
from tide_cache.config.settings import CodecName, LogprobDtype, MaskSource, Schedule, TimeSampling, TrajectorySource
from tide_cache.errors import CacheMismatchError
from tide_cache.locations import CachePath
from tide_cache.shards import (
    CONDITIONAL_VERSION,
    FORMAT_VERSION,
    NEWEST_VERSION,
    PROJECTED_VERSION,
    SHARED_VIEWS_VERSION,
    TRAJECTORY_VERSION,
    ShardRules,
    canonical_json,
)

ABSENT = "(absent)"

UNWRITTEN: dict[str, Any] = {
    "demo_ratio": 0.5, "tail_samples": 0, "chunk_k": 0, "chunk_passes": 0, "codec": "plain", "date": None,
    "source": "random", "trajectory": "decode", "steps_per_block": None, "threshold": None,
}  # fmt: skip
"""Values left out of documents, so that a cache from before these fields keeps its id, and can get another pass."""

Scalar = str | int | float | bool | None


class StudentIdentity(Frozen):
    """What stage 1 knows of the student besides its tokenizer."""

    max_length: int
    block_size: int
    fill_last_block: bool


class _Sparse(Frozen):
    """Written without the fields that hold their value of `UNWRITTEN`."""

    @model_serializer(mode="wrap")
    def _to_document(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = dump(self)
        return {name: value for name, value in written.items() if name not in UNWRITTEN or UNWRITTEN[name] != value}


class PairingIdentity(_Sparse):
    """How the two tokenizers were tied together, and the day that their templates wrote, where one writes it."""

    aligner: str
    shared_vocab_size: int
    date: Annotated[str | None, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = UNWRITTEN["date"]


class ViewsIdentity(_Sparse):
    """What determines every mask, together with the sample ids."""

    num_views: Annotated[int, Field(ge=1)]
    seed: int
    time_sampling: TimeSampling
    schedule: Schedule
    complementary: bool
    demo_ratio: Annotated[float, Field(ge=0, le=1)] = UNWRITTEN["demo_ratio"]
    source: MaskSource = UNWRITTEN["source"]
    trajectory: TrajectorySource = UNWRITTEN["trajectory"]
    steps_per_block: Annotated[int | None, Field(ge=1)] = UNWRITTEN["steps_per_block"]
    threshold: Annotated[float | None, Field(gt=0, le=1)] = UNWRITTEN["threshold"]


class SignalsIdentity(_Sparse):
    """What was kept of the teacher's distribution."""

    kinds: tuple[str, ...]
    top_k: int
    top_p: float
    temperatures: tuple[float, ...]
    logprob_dtype: LogprobDtype
    tail_samples: Annotated[int, Field(ge=0)] = UNWRITTEN["tail_samples"]
    chunk_k: Annotated[int, Field(ge=0)] = UNWRITTEN["chunk_k"]
    chunk_passes: Annotated[int, Field(ge=0)] = UNWRITTEN["chunk_passes"]
    codec: CodecName = UNWRITTEN["codec"]


class VocabSizes(Frozen):
    """Ids are below these: of the teacher's logits, and of the student's tokenizer with added tokens."""

    student: Annotated[int, Field(ge=1)]
    teacher: Annotated[int, Field(ge=1)]


class CacheIdentity(Frozen):
    """Everything that determines the numbers of a cache."""

    format_version: int = FORMAT_VERSION
    corpus_hash: str
    num_rows: Annotated[int, Field(ge=1)]
    teacher: dict[str, Scalar]
    teacher_tokenizer: dict[str, str]
    student_tokenizer: dict[str, str]
    vocab_sizes: VocabSizes
    student: StudentIdentity
    pairing: PairingIdentity
    views: ViewsIdentity
    signals: SignalsIdentity

    @model_validator(mode="after")
    def _is_new_enough(self) -> Self:
        expected, reason = _needed(
            self.teacher.get("context"), self.signals.kinds, self.views.source, self.signals.chunk_passes
        )
        if self.format_version < expected:
            raise ValueError(f"format_version: found {self.format_version}, {reason} needs {expected}")
        if self.format_version > NEWEST_VERSION:
            raise ValueError(f"format_version: found {self.format_version}, expected at most {NEWEST_VERSION}")
        return self

    @property
    def is_shared(self) -> bool:
        """Whether one stored view serves all views of training: a causal teacher's signals do not depend on masks."""
        return self.teacher.get("context") == "causal"

    @property
    def stored_views(self) -> int:
        """Views of each sample that the shards hold; training draws `views.num_views` in either case."""
        return 1 if self.is_shared else self.views.num_views

    @property
    def cache_id(self) -> str:
        """Hash of the identity, 16 hex digits."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()[:16]

    @property
    def shard_rules(self) -> ShardRules:
        """What the values of the shards are checked against."""
        return ShardRules(
            num_views=self.stored_views,
            student_vocab_size=self.vocab_sizes.student,
            teacher_vocab_size=self.vocab_sizes.teacher,
            temperatures=self.signals.temperatures,
            parts=frozenset(
                {
                    *self.signals.kinds,
                    *(("tail",) if self.signals.tail_samples else ()),
                    *(("steps",) if self.views.source == "trajectory" else ()),
                }
            )
            - {"truth"},
            codec=self.signals.codec,
        )

    def differences(self, other: "CacheIdentity") -> list[tuple[str, Any, Any]]:
        """Return differing fields as (dotted name, value here, value in `other`); empty if the ids are equal."""
        return differing_fields(self, other)


def version_for(context: Scalar, kinds: Collection[str], source: MaskSource = "random", chunk_passes: int = 0) -> int:
    """Return the format version of a cache with this context of the teacher, these signals and these masks."""
    return _needed(context, kinds, source, chunk_passes)[0]


def _needed(context: Scalar, kinds: Collection[str], source: MaskSource, chunk_passes: int) -> tuple[int, str]:
    """Return the version, and what needs it."""
    if chunk_passes:
        return CONDITIONAL_VERSION, "signals.chunk_passes"
    if source == "trajectory":
        return TRAJECTORY_VERSION, "views.source 'trajectory'"
    if "projected" in kinds:
        return PROJECTED_VERSION, "the signal 'projected'"
    return (SHARED_VIEWS_VERSION, "context 'causal'") if context == "causal" else (FORMAT_VERSION, "every cache")


def differing_fields(found: Frozen, expected: Frozen) -> list[tuple[str, Any, Any]]:
    """Return the leaves in which two models differ, as (dotted name, found, expected)."""
    left, right = _leaves(found), _leaves(expected)
    names = sorted(left.keys() | right.keys())
    pairs = [(name, left.get(name, ABSENT), right.get(name, ABSENT)) for name in names]
    # compared as text: 1, 1.0 and true are equal in Python, but are three identities
    return [(name, one, other) for name, one, other in pairs if canonical_json(one) != canonical_json(other)]


def require_same_identity(path: CachePath, found: Frozen, declared: Frozen) -> None:
    """Raise an error if a cache was built from other inputs than a run declares.

    Args:
        path: The document that says what the cache is, for the message.
        found: Its content: an identity, or a whole plan document.
        declared: The same, as the run declares it.

    Raises:
        CacheMismatchError: Lists every differing field with both values, and the way out.
    """
    if differing := differing_fields(found, declared):
        lines = [f"  {name}: cache has {one!r}, run declares {other!r}" for name, one, other in differing]
        raise CacheMismatchError(
            f"{path} was built from other inputs:\n" + "\n".join(lines) + "\n"
            "Run with the inputs the cache was built from, or build another cache: "
            "`tide-cache build-teacher-shards` with another build.out."
        )


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict | Frozen):
        return {name: value}
    result: dict[str, Any] = {}
    for key, inner in dict(value).items():
        result |= _leaves(inner, f"{name}.{key}" if name else key)
    return result
