"""From whole samples to the samples of a cache: cut to length, filled, and counted, or left out with a reason.

Shape suffixes: N tokens of the batch, L student tokens of a sample, M teacher tokens, C chunks.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tide_cache.arrays import sums_before
from tide_cache.pairing.report import Dropped, Lengths, PairedRows, PairingReport
from tide_cache.records import Bools, Int32s, SampleId, SamplePair

HOLDS_MASK = "the text contains the mask token"
NOT_SUPERVISED = "no supervised student token within max_length"
NO_TEACHER_TOKEN = "no teacher token"

Values = TypeVar("Values", Int32s, Bools)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a sample may be, and what fills its last block; a block of one token needs no filling."""

    teacher_max_length: int
    student_max_length: int
    block_size: int
    eos_id: int

    def cut(self, whole: SamplePair) -> SamplePair:
        """Cut both sides, keep the chunks wholly inside both, and fill the student's last block."""
        student_ids_L = whole.student_ids_L[: self.student_max_length]
        teacher_ids_M = whole.teacher_ids_M[: self.teacher_max_length]
        is_inside_C = (whole.chunks_C4[:, 1] <= len(teacher_ids_M)) & (whole.chunks_C4[:, 3] <= len(student_ids_L))
        num_filled = self._num_filled(len(student_ids_L))
        return SamplePair(
            whole.sample_id,
            _filled(student_ids_L, num_filled, self.eos_id),
            _filled(whole.is_supervised_L[: self.student_max_length], num_filled, True),
            teacher_ids_M.copy(),
            whole.chunks_C4[is_inside_C],
        )

    def cut_same(self, whole: SamplePair) -> SamplePair:
        """Cut and fill both sides alike, when they are equal; every token that both have is a chunk."""
        cut = self.cut(whole)
        teacher_ids_M = cut.teacher_ids_M
        if len(teacher_ids_M) == len(whole.teacher_ids_M):  # both end with the text, so both may be filled
            longest = min(max(len(cut.student_ids_L), len(teacher_ids_M)), self.teacher_max_length)
            teacher_ids_M = _filled(teacher_ids_M, longest - len(teacher_ids_M), self.eos_id)
        at_C = np.arange(min(len(cut.student_ids_L), len(teacher_ids_M)), dtype=np.int32)
        chunks_C4 = np.stack([at_C, at_C + 1, at_C, at_C + 1], axis=1)
        return SamplePair(whole.sample_id, cut.student_ids_L, cut.is_supervised_L, teacher_ids_M, chunks_C4)

    def _num_filled(self, length: int) -> int:
        return min(-length % self.block_size, self.student_max_length - length)


class Collected:
    """The rows paired and dropped so far."""

    def __init__(self) -> None:
        self._pairs: list[SamplePair] = []
        self._dropped: list[Dropped] = []
        self._counts: Counter[str] = Counter()
        self._num_truncated = 0
        self._lengths: dict[str, Counter[Any]] = {"student": Counter(), "teacher": Counter(), "unwritten": Counter()}

    def drop(self, sample_id: SampleId, reason: str, fault: str = "") -> None:
        """Count a row that yields no sample."""
        self._dropped.append(Dropped(sample_id, reason, fault))

    def note_unwritten(self, names: Iterable[str]) -> None:
        """Count fields of a conversation that a template does not write."""
        self._lengths["unwritten"].update(set(names))

    def add(self, whole: SamplePair, cut: SamplePair, mask_id: int, counts: Counter[str] | None = None) -> None:
        """Keep a sample, unless the student has nothing to learn from what was left of it by cutting.

        Args:
            whole: The sample before it was cut.
            cut: What is kept.
            mask_id: The student's mask token.
            counts: Numbers of `PairingReport` about its contents.
        """
        if (whole.student_ids_L == mask_id).any():
            return self.drop(whole.sample_id, HOLDS_MASK)
        self._lengths["student"][len(whole.student_ids_L)] += 1
        if len(whole.teacher_ids_M):
            self._lengths["teacher"][len(whole.teacher_ids_M)] += 1
        if not whole.is_supervised_L[: len(cut.student_ids_L)].any():
            return self.drop(whole.sample_id, NOT_SUPERVISED)
        self._pairs.append(cut)
        is_cut = len(cut.student_ids_L) < len(whole.student_ids_L) or len(cut.teacher_ids_M) < len(whole.teacher_ids_M)
        self._num_truncated += is_cut
        self._counts.update(counts or {})

    def result(self) -> PairedRows:
        """Return the samples, the rows left out, and the report."""
        reasons = Counter(dropped.reason for dropped in self._dropped)
        counts = {"truncated": self._num_truncated, **_tally(self._pairs), **self._counts}
        report = PairingReport(dropped=dict(reasons), **counts)
        return PairedRows(self._pairs, self._dropped, report, Lengths(**self._lengths))


def teacher_fault(whole: SamplePair, mask_id: int) -> str | None:
    """Return why the teacher cannot be asked about a sample; None if it can.

    Args:
        whole: The sample before it is cut.
        mask_id: The teacher's mask token.
    """
    if len(whole.teacher_ids_M) == 0:
        return NO_TEACHER_TOKEN
    return HOLDS_MASK if (whole.teacher_ids_M == mask_id).any() else None


def _tally(pairs: Sequence[SamplePair]) -> dict[str, int]:
    """Count tokens and chunks of all samples at once."""
    if not pairs:
        return {}
    is_supervised_N = np.concatenate([pair.is_supervised_L for pair in pairs])
    first = sums_before([len(pair.is_supervised_L) for pair in pairs])[:-1]
    chunks_C4 = np.concatenate([pair.chunks_C4 for pair in pairs])
    bases_C = np.repeat(first, [len(pair.chunks_C4) for pair in pairs])
    num_before_N = sums_before(is_supervised_N)
    teacher_start_C, teacher_end_C, student_start_C, student_end_C = chunks_C4.T
    widths_C = student_end_C - student_start_C
    num_supervised_C = num_before_N[student_end_C + bases_C] - num_before_N[student_start_C + bases_C]
    return {
        "samples": len(pairs),
        "supervised_tokens": int(num_before_N[-1]),
        "covered_tokens": int(widths_C[num_supervised_C == widths_C].sum()),
        "chunks": len(chunks_C4),
        "pairs_one_to_one": int(np.count_nonzero((widths_C == 1) & (teacher_end_C - teacher_start_C == 1))),
    }


def _filled(values: Values, num_filled: int, value: int) -> Values:
    return np.concatenate([values, np.full(num_filled, value, values.dtype)])
