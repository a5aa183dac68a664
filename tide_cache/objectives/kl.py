"""Forward and reverse KL between teacher and student on aligned pairs.

The part of the distributions that is not kept is one separate outcome (`rest`), left out (`renormalise`), or estimated
from ids drawn from it (`sampled`): docs/decisions/rest-outcome.md compares them. A temperature softens the whole
distribution, or only the kept part (`decoupled_kl`).

Shape suffixes: R rows with teacher candidates, D ids drawn from a row's tail.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch

from tide_cache.config.objectives import ForwardKLConfig, ReverseKLConfig, Tail
from tide_cache.objectives.base import (
    Needs,
    RowLogProbs,
    among_kept,
    decoupled_kl,
    grouped_kl,
    student_logprobs,
    sum_by_chunk,
    teacher_logprobs,
    untold,
)
from tide_cache.objectives.steps import ByStep
from tide_cache.records import RowStatistics, Targets

Side = TypeVar("Side")


class _GroupedKL(ByStep):
    temperature: float
    tail: Tail

    @property
    def needs(self) -> Needs:
        """Candidates of the teacher, at T on both sides, and draws from their tails if `tail` is `sampled`."""
        return self._needs_at(self.temperature)

    def _needs_at(self, temperature: float) -> Needs:
        at = frozenset({temperature})
        signals = {"topk", "tail"} if self.tail == "sampled" else {"topk"}
        return Needs(self.step_signals | signals, at | self.row_temperatures, teacher_temperatures=at)

    def count(self, targets: Targets) -> float:
        """Return the number of rows that carry teacher candidates, of those that are taught."""
        return float(self.of_rows(torch.ones(len(targets.topk.rows_R)), targets.topk.rows_R, targets).sum())

    def _ordered(self, teacher: Side, student: Side) -> tuple[Side, Side]:
        """Return the two sides as (P, Q) of KL(P || Q)."""
        raise NotImplementedError

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the sum in nats; in forward KL its gradient in a logit is T (q_T - p_T)."""
        q, p = self._distributions(student, targets, self.temperature)
        kl_R = grouped_kl(*self._ordered(p, q))
        if self.tail == "sampled":
            drawn = _drawn(student, targets, self.temperature)
            p_RD, q_RD = self._ordered(drawn.teacher_RD, drawn.student_RD)
            kl_R = kl_R + (drawn.weight_RD * p_RD.exp() * (p_RD - q_RD)).sum(dim=1)
        return self.temperature**2 * self._sum(kl_R, student, targets)

    def _sum(self, values_R: torch.Tensor, student: RowStatistics, targets: Targets) -> torch.Tensor:
        """Add up what is taught."""
        return self.of_rows(values_R, targets.topk.rows_R, targets, student).sum()

    def _distributions(
        self, student: RowStatistics, targets: Targets, temperature: float
    ) -> tuple[RowLogProbs, RowLogProbs]:
        """Return the student's and the teacher's distributions over the outcomes that are compared one by one."""
        both = student_logprobs(student, targets, temperature), teacher_logprobs(targets, temperature)
        if self.tail == "rest":
            return both
        if self.tail == "renormalise":
            return among_kept(both[0]), among_kept(both[1])
        without_rest = [
            RowLogProbs(one.kept_RK, torch.full_like(one.rest_R, -torch.inf), one.is_kept_RK) for one in both
        ]
        return without_rest[0], without_rest[1]


@dataclass(frozen=True)
class ForwardKL(ForwardKLConfig, _GroupedKL):
    """Sum T^2 KL(p_T || q_T): the student covers what the teacher finds likely.

    Source: the KL baseline of TIDE, arXiv:2604.26951; the rest outcome, docs/decisions/rest-outcome.md; sampling,
    arXiv:2503.16870.
    """

    def _ordered(self, teacher: Side, student: Side) -> tuple[Side, Side]:
        return teacher, student

    @property
    def needs(self) -> Needs:
        """As all of its kind; with `kept`, T = 1 alone."""
        return super().needs if self.temperature_mode == "captured" else self._needs_at(1.0)

    def count(self, targets: Targets) -> float:
        """Return the number of rows, or chunks, that carry teacher candidates, or of all rows that are taught."""
        if self.per == "chunk":
            rows_R = targets.topk.rows_R
            return round(float(self.of_rows(_share_of_chunk(targets).double(), rows_R, targets).sum()))
        return super().count(targets) if self.elsewhere == "nothing" else float(self.num_taught(targets))

    def _sum(self, values_R: torch.Tensor, student: RowStatistics, targets: Targets) -> torch.Tensor:
        if self.per == "chunk":
            values_R = values_R * _share_of_chunk(targets)
        return super()._sum(values_R, student, targets)

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the sum in nats; without `kept` its gradient in a logit is T (q_T - p_T)."""
        if self.temperature_mode == "captured":
            total = super().total(student, targets, progress)
        else:
            q, p = self._distributions(student, targets, 1.0)
            kl_R = decoupled_kl(p, q, self.temperature)
            total = self._sum(kl_R, student, targets)
        if self.elsewhere == "nothing":
            return total
        return total + untold(student, self.or_not_taught(targets.topk.has_topk_N, targets))


def _share_of_chunk(targets: Targets) -> torch.Tensor:
    """Return 1 / (rows with candidates in the same chunk) for each row with candidates; 1 in no chunk [R]."""
    chunk_R = targets.truth.chunk_of_row_N[targets.topk.rows_R]
    size_C = sum_by_chunk(targets.topk.has_topk_N.to(targets.t_N.dtype), targets)
    return 1 / torch.cat([size_C, size_C.new_ones(1)])[chunk_R]  # in no chunk, -1: the last


@dataclass(frozen=True)
class ReverseKL(ReverseKLConfig, _GroupedKL):
    """Sum T^2 KL(q_T || p_T): the student avoids what the teacher finds unlikely; mode-seeking.

    Source: the shared-tokenizer TIDE-Cross row of TIDE, arXiv:2604.26951; the rest outcome, as in `ForwardKL`.
    """

    def _ordered(self, teacher: Side, student: Side) -> tuple[Side, Side]:
        return student, teacher


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Ids drawn from the tails: `(weight f).sum(dim=1)` estimates the sum of f over each tail without bias.

    Attributes:
        weight_RD: Share of the draws / proposal probability; 0 at padding.
        teacher_RD: Teacher's log-probs at T, over the whole vocabulary.
        student_RD: The same of the student.
    """

    weight_RD: torch.Tensor
    teacher_RD: torch.Tensor
    student_RD: torch.Tensor


def _drawn(student: RowStatistics, targets: Targets, temperature: float) -> _Drawn:
    rows_R = targets.topk.rows_R
    of_teacher, of_student = targets.temperatures.index(temperature), student.temperatures.index(temperature)
    tail_mass_R1 = targets.topk.log_tail_NT[rows_R, targets.temperatures.index(1.0)].exp()[:, None]
    logprob_RD, share_RD = targets.topk.drawn_logprob_ND[rows_R], targets.topk.drawn_share_ND[rows_R]
    column_RD = targets.topk.drawn_column_ND[rows_R].clamp_min(0)
    return _Drawn(
        # Drawn in proportion to p at T = 1, whatever T the sum is over.
        weight_RD=torch.where(share_RD > 0, share_RD * tail_mass_R1 / logprob_RD.exp(), 0),
        teacher_RD=logprob_RD / temperature - targets.topk.log_partition_NT[rows_R, of_teacher][:, None],
        student_RD=student.gathered_NK[rows_R].gather(1, column_RD) / temperature
        - student.log_z_NT[rows_R, of_student][:, None],
    )
