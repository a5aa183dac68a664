"""Chunk likelihoods across tokenizers: CALM, Reverse CALM and the true KL, on two outcomes per active chunk."""

from dataclasses import dataclass

import torch

from tide_cache.config.objectives import BernoulliKLConfig, CalmConfig, ReverseCalmConfig
from tide_cache.objectives.base import Needs, Objective, binary_cross_entropy, chunk_likelihoods, has_candidates
from tide_cache.records import RowStatistics, Targets


class _ChunkLikelihood(Objective):
    temperature: float
    clamp_student: bool | None

    @property
    def needs(self) -> Needs:
        """The teacher's log-probs of the true tokens; T is applied to sums over chunks, so any T will do."""
        return Needs(frozenset({"truth"}))

    def count(self, targets: Targets) -> float:
        """Return the number of active chunks."""
        return float(len(targets.truth.chunk_logprob_C))

    def _likelihoods(self, student: RowStatistics, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        return chunk_likelihoods(student, targets, self.temperature, bool(self.clamp_student))


@dataclass(frozen=True)
class Calm(CalmConfig, _ChunkLikelihood):
    """Sum -[p log s + (1 - p) log(1 - s)]: teacher's chunk probability p as target, student's s as prediction.

    The gradient in s is p/s - (1 - p)/(1 - s), which is not bounded as s goes to 0. With `without_candidates` it
    compares only the chunks that `chunk_kl` cannot: this is the second half of TIDE-Chunk.

    Source: CALM in TIDE, arXiv:2604.26951, section 2.3; after ALM, arXiv:2503.20083.
    """

    @property
    def needs(self) -> Needs:
        """As for all chunk likelihoods; together with `chunk_kl`, also which chunks have candidates."""
        return Needs(frozenset({"truth"} if self.chunks == "all" else {"truth", "chunks"}))

    def count(self, targets: Targets) -> float:
        """Return the number of active chunks that are compared."""
        num_chunks = len(targets.truth.chunk_logprob_C)
        return float(num_chunks if self.chunks == "all" else num_chunks - int(has_candidates(targets).sum()))

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the sum in nats."""
        student_C, teacher_C = self._likelihoods(student, targets)
        loss_C = binary_cross_entropy(teacher_C, student_C)
        return (loss_C if self.chunks == "all" else loss_C.masked_fill(has_candidates(targets), 0)).sum()


@dataclass(frozen=True)
class ReverseCalm(ReverseCalmConfig, _ChunkLikelihood):
    """Sum -[s log p + (1 - s) log(1 - p)]: linear in s, so the coefficient log((1 - p)/p) is the teacher's alone.

    It is not KL(Bern(s) || Bern(p)), as the paper says: it lacks the entropy of s, its minimum lies at s = 0 or 1, and
    chunks with p below one half are pushed towards zero, against the cross-entropy.

    Source: Reverse CALM, arXiv:2604.26951, section 2.3.
    """

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the sum in nats."""
        student_C, teacher_C = self._likelihoods(student, targets)
        return binary_cross_entropy(student_C.exp(), teacher_C.log()).sum()


@dataclass(frozen=True)
class BernoulliKL(BernoulliKLConfig, _ChunkLikelihood):
    """Sum KL(Bern(s) || Bern(p)), which Reverse CALM equals according to the paper, but does not.

    Reverse CALM lacks the entropy of s. With it the gradient in s is logit(s) - logit(p), so the minimum lies at s = p.

    Source: ours; the claim is in arXiv:2604.26951, section 2.3.
    """

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the sum in nats."""
        student_C, teacher_C = self._likelihoods(student, targets)
        prob_C = student_C.exp()
        return (binary_cross_entropy(prob_C, teacher_C.log()) - binary_cross_entropy(prob_C, student_C)).sum()
