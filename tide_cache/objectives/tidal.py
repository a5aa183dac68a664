"""TIDAL: the target is a mixture of student and teacher that trusts the teacher by training progress and noise level.

At the start of training, and when much is masked, the target stays near the student. It moves to the teacher during
the run, and when the teacher sees more. The mixture has no gradient.
"""

import math
from dataclasses import dataclass

import torch

from tide_cache.config.objectives import TidalConfig
from tide_cache.objectives.base import (
    MAX_PROB,
    MIN_PROB,
    Needs,
    Objective,
    RowLogProbs,
    among_kept,
    binary_cross_entropy,
    chunk_likelihoods,
    grouped_kl,
    student_logprobs,
    teacher_logprobs,
)
from tide_cache.records import RowStatistics, Targets


@dataclass(frozen=True)
class Tidal(TidalConfig, Objective):
    """Sum w(t) * loss(target, student), over rows with candidates (`over` = kl) or active chunks (`over` = calm).

    kl: T^2 KL(r || q_T), with r proportional to q_T^(1-l) p_T^l over the kept ids and the rest: logits are mixed, as in
    the paper; the rest outcome is q_rest^(1-l) p_rest^l. calm: the target probability is (1-l) s + l p.
    l = lambda_train * (1 - t) on both axes, lambda_train alone, or lambda_max * (1 - t) alone.
    The sum is divided by the sum of w(t), or by the number of rows or chunks (`normalise` = count), as published.

    Source: TIDAL, arXiv:2604.26951, section 2.1; `midrange` from its Table 5; the rest, docs/decisions/rest-outcome.md;
    the divisor, docs/decisions/semantics.md.
    """

    @property
    def needs(self) -> Needs:
        """Candidates at T over kl, the true tokens' log-probs over calm."""
        if self.over == "calm":
            return Needs(frozenset({"truth"}))
        at = frozenset({self.temperature})
        return Needs(frozenset({"topk"}), student_temperatures=at, teacher_temperatures=at)

    def count(self, targets: Targets) -> float:
        """Return the sum of the weights of rows with candidates, or of active chunks; or their number, as published."""
        t = targets.t_N[targets.topk.rows_R] if self.over == "kl" else targets.truth.chunk_t_C
        return float(len(t)) if self.normalise == "count" else float(self._weight(t.double()).sum())

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the weighted sum in nats."""
        if self.over == "calm":
            return (self._weight(targets.truth.chunk_t_C) * self._calm_C(student, targets, progress)).sum()
        t_R = targets.t_N[targets.topk.rows_R]
        return self.temperature**2 * (self._weight(t_R) * self._kl_R(student, targets, t_R, progress)).sum()

    def trust(self, t: torch.Tensor, progress: float) -> torch.Tensor:
        """Return l, the share of the teacher in the target, for each t.

        Args:
            t: Diffusion times.
            progress: Share of the training already done; more than 1 counts as 1.
        """
        if self.axes == "timestep_only":
            return self.lambda_max * (1 - t)
        done = min(max(progress, 0.0), 1.0)
        grown = (1 - math.cos(math.pi * done)) / 2 if self.growth == "cosine" else done
        lambda_train = self.lambda_init + (self.lambda_max - self.lambda_init) * grown
        return lambda_train * (1 - t) if self.axes == "both" else torch.full_like(t, lambda_train)

    def _weight(self, t: torch.Tensor) -> torch.Tensor:
        return torch.exp(-((t - 0.5) ** 2) / (2 * 0.15**2)) if self.time_weight == "midrange" else torch.ones_like(t)

    def _kl_R(self, student: RowStatistics, targets: Targets, t_R: torch.Tensor, progress: float) -> torch.Tensor:
        q, p = student_logprobs(student, targets, self.temperature), teacher_logprobs(targets, self.temperature)
        if self.tail == "renormalise":
            q, p = among_kept(q), among_kept(p)
        return grouped_kl(mixture(q, p, self.trust(t_R, progress)), q)

    def _calm_C(self, student: RowStatistics, targets: Targets, progress: float) -> torch.Tensor:
        student_C, teacher_C = chunk_likelihoods(student, targets, self.temperature, bool(self.clamp_student))
        trust_C = self.trust(targets.truth.chunk_t_C, progress)
        target_C = ((1 - trust_C) * student_C.detach().exp() + trust_C * teacher_C).clamp(MIN_PROB, MAX_PROB)
        return binary_cross_entropy(target_C, student_C)


def mixture(student: RowLogProbs, teacher: RowLogProbs, trust_R: torch.Tensor) -> RowLogProbs:
    """Return r proportional to q^(1-l) p^l over the kept ids and the rest, detached.

    At k = V this is the softmax of mixed logits. If one side has no rest, the mixture has none.

    Args:
        student: q.
        teacher: p.
        trust_R: l of each row.
    """
    l_R1 = trust_R[:, None]
    kept_RK = (1 - l_R1) * student.kept_RK.detach() + l_R1 * teacher.kept_RK
    kept_RK = torch.where(student.is_kept_RK, kept_RK, -torch.inf)
    has_rest_R = (student.rest_R > -torch.inf) & (teacher.rest_R > -torch.inf)
    rest_R = (1 - trust_R) * student.rest_R.detach() + trust_R * teacher.rest_R
    rest_R = torch.where(has_rest_R, rest_R, -torch.inf)
    log_z_R = torch.cat([kept_RK, rest_R[:, None]], dim=1).logsumexp(dim=1)
    return RowLogProbs(kept_RK - log_z_R[:, None], rest_R - log_z_R, student.is_kept_RK)
