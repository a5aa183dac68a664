"""The result of pairing: the samples, the rows left out and why, and counts of how much was aligned."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from tide_cache.records import SampleId, SamplePair


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that yields no sample, and why.

    Attributes:
        sample_id: Of the row.
        reason: The kind of reason, to be counted.
        fault: Where the row is and what is wrong with it; empty if the row itself is fine.
    """

    sample_id: SampleId
    reason: str
    fault: str = ""


@dataclass(frozen=True)
class PairingReport:
    """Counts over some rows; reports of parts add up to the report of the whole.

    Attributes:
        samples: Rows that became samples; the other counts, but for `dropped`, are about these.
        dropped: Rows left out, by reason.
        truncated: Samples cut at the longest length on either side.
        supervised_tokens: Student tokens that may be masked, filled ones included.
        covered_tokens: Supervised tokens inside chunks that can be distilled.
        chunks: Chunks, supervised or not.
        pairs_one_to_one: Chunks of one token on each side.
        spans_resynchronised: Contents whose bytes a tokenizer changed (a normaliser), aligned by characters.
        spans_dropped: Contents, or spans of a preprocessed set, that could not be aligned at all.
        chunks_rejected: Chunks dropped because the two sides do not say the same after Unicode normalisation, or
            because another aligner's chunk did not cover the same bytes on both.
    """

    samples: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0
    supervised_tokens: int = 0
    covered_tokens: int = 0
    chunks: int = 0
    pairs_one_to_one: int = 0
    spans_resynchronised: int = 0
    spans_dropped: int = 0
    chunks_rejected: int = 0

    def __add__(self, other: "PairingReport") -> "PairingReport":
        """Add the counts."""
        names = [f.name for f in fields(self) if f.name != "dropped"]
        counts = {name: getattr(self, name) + getattr(other, name) for name in names}
        return PairingReport(dropped=dict(Counter(self.dropped) + Counter(other.dropped)), **counts)


@dataclass(frozen=True)
class Lengths:
    """How long conversations are before they are cut, and which of their fields no template wrote.

    Attributes:
        student: Conversations by their number of student tokens.
        teacher: The same in teacher tokens; empty without a teacher.
        unwritten: Conversations by field: `reasoning_content`, `tools`.
    """

    student: Mapping[int, int] = field(default_factory=dict)
    teacher: Mapping[int, int] = field(default_factory=dict)
    unwritten: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Lengths") -> "Lengths":
        """Add the counts."""
        return Lengths(
            dict(Counter(self.student) + Counter(other.student)),
            dict(Counter(self.teacher) + Counter(other.teacher)),
            dict(Counter(self.unwritten) + Counter(other.unwritten)),
        )


@dataclass(frozen=True)
class PairedRows:
    """Rows after pairing, in their order."""

    pairs: list[SamplePair]
    dropped: list[Dropped]
    report: PairingReport
    lengths: "Lengths" = field(default_factory=lambda: Lengths())

    @property
    def faults(self) -> list[str]:
        """Rows that are bad, each with its place and fault."""
        return [dropped.fault for dropped in self.dropped if dropped.fault]
