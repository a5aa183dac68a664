"""KL between teacher and student over whole chunks: candidate chunks, and one outcome for all other texts.

Shape suffixes: N masked rows, K gathered ids but the true one, J candidates, F candidate tokens, C active chunks.
"""

from dataclasses import dataclass

import torch

from tide_cache.config.objectives import ChunkKLConfig
from tide_cache.objectives.base import Needs, Objective, has_candidates
from tide_cache.records import RowStatistics, Targets

_LEAST_REST = 1e-15
"""A student's rest below this is not told from none: what is left of 1 in float64."""


@dataclass(frozen=True)
class ChunkKL(ChunkKLConfig, Objective):
    """Sum T^2 KL(p_T || q_T) over the teacher's candidates for each chunk and the rest.

    Both models predict masked tokens independently, so a candidate's probability is a product over its tokens; the
    student's is over its own tokens for the same bytes. The rest holds every other text. With the true chunk as the
    only candidate this is CALM at the same T, up to the teacher's entropy: their gradients are equal at T = 1.

    Source: ours; the step from one candidate to k is docs/objectives.md, `chunk_kl`.
    """

    @property
    def needs(self) -> Needs:
        """Candidate chunks of the teacher, at T on both sides."""
        at = frozenset({self.temperature})
        return Needs(frozenset({"chunks"}), student_temperatures=at, teacher_temperatures=at)

    def count(self, targets: Targets) -> float:
        """Return the number of active chunks that have candidates."""
        return float(has_candidates(targets).sum())

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the sum in nats; its gradient in a candidate's log-prob is T^2 (q_c p_rest / q_rest - p_c)."""
        index = targets.temperatures.index(self.temperature)
        log_partition_C = targets.chunks.log_partition_CT[:, index].double()
        p_J = (
            targets.chunks.candidate_logprob_J.double() / self.temperature
            - log_partition_C[targets.chunks.candidate_chunk_J]
        )
        p_rest_C = targets.chunks.log_tail_CT[:, index].double() - log_partition_C
        q_J = candidate_logprobs(student, targets, self.temperature)
        q_rest_C = torch.ones_like(p_rest_C).index_add(0, targets.chunks.candidate_chunk_J, -q_J.exp())
        q_rest_C = q_rest_C.clamp_min(_LEAST_REST).log()
        has_rest_C = has_candidates(targets) & (p_rest_C > -torch.inf)
        of_rest_C = torch.where(has_rest_C, p_rest_C.exp() * (torch.where(has_rest_C, p_rest_C, 0) - q_rest_C), 0)
        total: torch.Tensor = self.temperature**2 * ((p_J.exp() * (p_J - q_J)).sum() + of_rest_C.sum())
        return total.to(student.log_z_NT.dtype)


def candidate_logprobs(student: RowStatistics, targets: Targets, temperature: float) -> torch.Tensor:
    """Return the student's log-prob at T of each candidate chunk, in nats, float64 [J].

    The partition of each row is formed anew, in float64, from what was gathered and the rest: then candidates and
    rest sum to one to 1e-16, and the rest of a chunk can be taken from 1.
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
