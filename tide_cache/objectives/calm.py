"""Chunk likelihoods across tokenizers: CALM, Reverse CALM and the true KL, on two outcomes per active chunk."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tide_cache.objectives.base import Needs, binary_cross_entropy, chunk_probs
from tide_cache.records import RowStatistics, Targets


@dataclass(frozen=True)
class _ChunkLikelihood:
    temperature: float = 5.0

    @property
    def needs(self) -> Needs:
        """The teacher's log-probs of the true tokens; T is applied to chunk sums, so any T will do."""
        return Needs(frozenset({"truth"}))

    def count(self, targets: Targets) -> float:
        """Give the number of active chunks."""
        return float(len(targets.chunk_logprob_C))


@dataclass(frozen=True)
class Calm(_ChunkLikelihood):
    """Sum -[p log s + (1 - p) log(1 - s)]: teacher's chunk probability p as target, student's s as prediction.

    The gradient in s is p/s - (1 - p)/(1 - s), which is not bounded as s goes to 0.

    Source: CALM in TIDE, arXiv:2604.26951, section 2.3; after ALM, arXiv:2503.20083.
    """

    kind: ClassVar[str] = "calm"

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Give the sum in nats."""
        student_C, teacher_C = chunk_probs(student, targets, self.temperature)
        return binary_cross_entropy(teacher_C, student_C)


@dataclass(frozen=True)
class ReverseCalm(_ChunkLikelihood):
    """Sum -[s log p + (1 - s) log(1 - p)]: linear in s, so the coefficient log((1 - p)/p) is the teacher's alone.

    It is not KL(Bern(s) || Bern(p)), as the paper says: it lacks the entropy of s, its minimum lies at s = 0 or 1, and
    chunks with p below one half are pushed towards zero, against the cross-entropy.

    Source: Reverse CALM, arXiv:2604.26951, section 2.3.
    """

    kind: ClassVar[str] = "reverse_calm"

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Give the sum in nats."""
        student_C, teacher_C = chunk_probs(student, targets, self.temperature)
        return binary_cross_entropy(student_C, teacher_C)


@dataclass(frozen=True)
class BernoulliKL(_ChunkLikelihood):
    """Sum KL(Bern(s) || Bern(p)): what the paper says Reverse CALM equals, and it does not.

    Reverse CALM lacks the entropy of s. With it the gradient in s is logit(s) - logit(p), so the minimum lies at s = p.

    Source: ours; the claim is in arXiv:2604.26951, section 2.3.
    """

    kind: ClassVar[str] = "bernoulli_kl"

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Give the sum in nats."""
        student_C, teacher_C = chunk_probs(student, targets, self.temperature)
        return binary_cross_entropy(student_C, teacher_C) - binary_cross_entropy(student_C, student_C)
