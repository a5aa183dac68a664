"""KL between teacher and student over whole chunks: candidate chunks, and one outcome for all other texts.

Shape suffixes: N masked rows, K gathered ids except the true one, J candidates, F candidate tokens, C active chunks.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch

from tide_cache.config.objectives import ChunkKLConfig
from tide_cache.objectives.base import Needs, has_candidates, untold
from tide_cache.objectives.steps import ByStep
from tide_cache.records import RowStatistics, Targets

_LEAST_REST = 1e-15
"""A student's rest below this counts as none: it is the resolution of 1 in float64."""


@dataclass(frozen=True)
class ChunkKL(ChunkKLConfig, ByStep):
    """Sum T^2 KL(p_T || q_T) over the teacher's candidates for each chunk and the rest.

    Both models predict masked tokens independently, so a candidate's probability is a product over its tokens; the
    student's is over its own tokens for the same bytes. The rest holds every other text. With the true chunk as the
    only candidate this is CALM at the same T, up to the teacher's entropy: their gradients are equal at T = 1.

    A candidate of another number of student tokens cannot stand in the student's masked frame, so the teacher's rest
    is mostly what no student could write there. `tail` says what becomes of it (docs/decisions/rest-outcome.md).

    Source: ours; the step from one candidate to k is docs/objectives.md, `chunk_kl`.
    """

    @property
    def needs(self) -> Needs:
        """Candidate chunks of the teacher, at T on both sides; with `kept`, at T = 1."""
        at = frozenset({self._compared_at})
        return Needs(self.step_signals | {"chunks"}, at | self.row_temperatures, teacher_temperatures=at)

    @property
    def _compared_at(self) -> float:
        return 1.0 if self.temperature_mode == "kept" else self.temperature

    def count(self, targets: Targets) -> float:
        """Return the number of active chunks that have candidates; with `truth` elsewhere, of all masked rows."""
        if self.elsewhere == "truth":
            return float(self.num_taught(targets))
        has_C = has_candidates(targets)
        return float(self.of_chunks(has_C, has_C, targets).sum())

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the sum in nats; by default a candidate's log-prob has the gradient T^2 (q_c p_rest/q_rest - p_c)."""
        both = _Both.of(student, targets, self._compared_at)
        if self.tail != "rest":
            both = both.without_rest(of_student=self.tail == "renormalise")
        if self.temperature_mode == "captured":
            kl_C = self.temperature**2 * both.kl_C()
        else:
            inside_C = both.tempered(self.temperature).kl_C()
            weight_C = self.temperature**2 * both.mass_C(both.p_J).exp()
            kl_C = both.kept_kl_C() + weight_C * inside_C
        total = self.of_chunks(kl_C, has_candidates(targets), targets, student).sum().to(student.log_z_NT.dtype)
        if self.elsewhere == "nothing":
            return total
        return total + untold(student, self.or_not_taught(_is_told(targets), targets))


@dataclass(frozen=True, eq=False)
class _Both:
    """What both say of the candidates of each chunk and of its rest, log-probs in float64.

    Attributes:
        chunk_J: Chunk of each candidate.
        p_J: Teacher's.
        q_J: Student's.
        p_rest_C: Teacher's; -inf where there is no rest, or no candidates.
        q_rest_C: Student's; finite.
    """

    chunk_J: torch.Tensor
    p_J: torch.Tensor
    q_J: torch.Tensor
    p_rest_C: torch.Tensor
    q_rest_C: torch.Tensor

    @classmethod
    def of(cls, student: RowStatistics, targets: Targets, temperature: float) -> Self:
        """Return both at T; a chunk without candidates has no rest either."""
        index, chunk_J = targets.temperatures.index(temperature), targets.chunks.candidate_chunk_J
        log_partition_C = targets.chunks.log_partition_CT[:, index].double()
        p_J = targets.chunks.candidate_logprob_J.double() / temperature - log_partition_C[chunk_J]
        p_rest_C = targets.chunks.log_tail_CT[:, index].double() - log_partition_C
        q_J = candidate_logprobs(student, targets, temperature)
        q_rest_C = torch.ones_like(p_rest_C).index_add(0, chunk_J, -q_J.exp()).clamp_min(_LEAST_REST).log()
        return cls(chunk_J, p_J, q_J, p_rest_C.masked_fill(~has_candidates(targets), -torch.inf), q_rest_C)

    def kl_C(self) -> torch.Tensor:
        """Return KL(p || q) of each chunk over its candidates and its rest, in nats."""
        return self._rest_C().index_add(0, self.chunk_J, self.p_J.exp() * (self.p_J - self.q_J))

    def kept_kl_C(self) -> torch.Tensor:
        """Return the KL of each chunk over two outcomes: its candidates together, and its rest."""
        p_C, q_C = self.mass_C(self.p_J), self.mass_C(self.q_J)
        has_C = p_C > -torch.inf
        return self._rest_C() + p_C.exp() * (torch.where(has_C, p_C, 0) - torch.where(has_C, q_C, 0))

    def without_rest(self, of_student: bool) -> Self:
        """Condition the teacher on its candidates, and the student too where that is asked for."""
        p_J, q_J = self._among(self.p_J), self._among(self.q_J) if of_student else self.q_J
        return replace(self, p_J=p_J, q_J=q_J, p_rest_C=torch.full_like(self.p_rest_C, -torch.inf))

    def tempered(self, temperature: float) -> Self:
        """Return both among the candidates, tempered by 1/T."""
        softer = replace(self, p_J=self.p_J / temperature, q_J=self.q_J / temperature)
        return softer.without_rest(of_student=True)

    def mass_C(self, logprob_J: torch.Tensor) -> torch.Tensor:
        """Return the log of what the candidates of each chunk hold together; -inf where it has none."""
        largest_C = torch.full_like(self.p_rest_C, -torch.inf)
        largest_C = largest_C.scatter_reduce(0, self.chunk_J, logprob_J.detach(), "amax")
        safe_C = torch.where(largest_C > -torch.inf, largest_C, 0)
        sum_C = torch.zeros_like(safe_C).index_add(0, self.chunk_J, (logprob_J - safe_C[self.chunk_J]).exp())
        return torch.where(sum_C > 0, sum_C.clamp_min(torch.finfo(sum_C.dtype).tiny).log() + safe_C, -torch.inf)

    def _rest_C(self) -> torch.Tensor:
        """Return the part of the rest in the KL of each chunk."""
        has_rest_C = self.p_rest_C > -torch.inf
        of_rest_C = self.p_rest_C.exp() * (torch.where(has_rest_C, self.p_rest_C, 0) - self.q_rest_C)
        return torch.where(has_rest_C, of_rest_C, 0)

    def _among(self, logprob_J: torch.Tensor) -> torch.Tensor:
        return logprob_J - self.mass_C(logprob_J)[self.chunk_J]


def _is_told(targets: Targets) -> torch.Tensor:
    """Tell for each row whether it belongs to a chunk with candidates, [N]."""
    chunk_N = targets.truth.chunk_of_row_N
    has_C1 = torch.cat([has_candidates(targets), chunk_N.new_zeros(1, dtype=torch.bool)])  # -1 is the last
    return has_C1[chunk_N]


def candidate_logprobs(student: RowStatistics, targets: Targets, temperature: float) -> torch.Tensor:
    """Return the student's log-prob at T of each candidate chunk, in nats, float64 [J].

    The partition of each row is computed again, in float64, from the gathered logits and the rest: then candidates and
    rest sum to one to 1e-16, and the rest of a chunk can be computed as 1 minus the candidates.
    """
    index = student.temperatures.index(temperature)
    is_there_NK = torch.cat([targets.topk.kept_ids_NK, targets.extra_ids_NX], dim=1) >= 0
    logits_NK = (student.gathered_NK[:, 1:].double() / temperature).masked_fill(~is_there_NK, -torch.inf)
    log_rest_N1 = student.log_rest_NT[:, index, None].double()
    log_z_N = torch.cat([logits_NK, log_rest_N1], dim=1).logsumexp(dim=1)
    token_F = (
        logits_NK[targets.chunks.token_row_F, targets.chunks.token_column_F - 1] - log_z_N[targets.chunks.token_row_F]
    )
    nothing_J = torch.zeros_like(targets.chunks.candidate_logprob_J, dtype=torch.float64)
    return nothing_J.index_add(0, targets.chunks.token_candidate_F, token_F)
