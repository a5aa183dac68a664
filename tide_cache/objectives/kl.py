"""Forward and reverse KL between teacher and student on aligned pairs, over the kept ids and one rest outcome."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tide_cache.objectives.base import Needs, grouped_kl, student_logprobs, teacher_logprobs
from tide_cache.records import RowStatistics, Targets


@dataclass(frozen=True)
class _GroupedKL:
    temperature: float = 2.0

    @property
    def needs(self) -> Needs:
        """Candidates of the teacher, at T on both sides."""
        at = frozenset({self.temperature})
        return Needs(frozenset({"topk"}), student_temperatures=at, teacher_temperatures=at)

    def count(self, targets: Targets) -> float:
        """Give the number of rows that carry teacher candidates."""
        return float(targets.has_topk_N.sum())


@dataclass(frozen=True)
class ForwardKL(_GroupedKL):
    """Sum T^2 KL(p_T || q_T): the student covers what the teacher finds likely.

    Source: the KL baseline of TIDE, arXiv:2604.26951; the rest outcome, docs/decisions/rest-outcome.md.
    """

    kind: ClassVar[str] = "kl"

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Give the sum in nats; its gradient in a logit is T (q_T - p_T)."""
        teacher = teacher_logprobs(targets, self.temperature)
        return self.temperature**2 * grouped_kl(teacher, student_logprobs(student, targets, self.temperature)).sum()


@dataclass(frozen=True)
class ReverseKL(_GroupedKL):
    """Sum T^2 KL(q_T || p_T): the student avoids what the teacher finds unlikely; mode-seeking.

    Source: the shared-tokenizer TIDE-Cross row of TIDE, arXiv:2604.26951; the rest outcome, as in `ForwardKL`.
    """

    kind: ClassVar[str] = "reverse_kl"

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Give the sum in nats."""
        teacher = teacher_logprobs(targets, self.temperature)
        return self.temperature**2 * grouped_kl(student_logprobs(student, targets, self.temperature), teacher).sum()
