"""What every objective has in common: its requirements, its count, its sum, and the distributions it compares.

An objective gives a sum and a count. The trainer alone divides, by the count over all ranks and micro-batches of the
step; since the count depends on data only, it is known before the first forward.

Ids are asked for in a fixed order: column 0 is the true token, columns 1 to K the teacher's kept ids, then further ids
that candidate chunks and draws from tails use.

Shape suffixes: N masked rows, R rows with teacher candidates, K kept ids, X further ids, C active chunks.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from tide_cache.config.semantics import left_open
from tide_cache.records import RowStatistics, Targets

MIN_PROB, MAX_PROB = 1e-7, 1 - 2.0**-23
"""Chunk probabilities are clamped to this range, in float32, as the reference does (golden/README.md)."""


@dataclass(frozen=True)
class Needs:
    """What an objective needs of a cache and of the student's statistics.

    Attributes:
        signals: Names of teacher signals; empty when no teacher is needed.
        student_temperatures: T at which it reads the student's distribution.
        teacher_temperatures: T that must have been captured.
    """

    signals: frozenset[str] = frozenset()
    student_temperatures: frozenset[float] = frozenset({1.0})
    teacher_temperatures: frozenset[float] = frozenset()


class Objective(ABC):
    """One term of the training loss, in its own file; its fields are those of its `[[objective]]` entry.

    Fields that an entry leaves to `semantics` are filled in as `corrected` does.

    Attributes:
        kind: Its name in run files.
        weight: Its factor in the sum of the run's objectives.
    """

    kind: str
    weight: float

    def __post_init__(self) -> None:
        for name, value in left_open(self.kind, vars(self), "corrected").items():
            object.__setattr__(self, name, value)

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What must be available before training can start."""

    @abstractmethod
    def count(self, targets: Targets) -> float:
        """Return the number the sum is divided by; depends on data only."""

    @abstractmethod
    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the sum in nats, a scalar on the graph; zero if there is nothing to sum.

        Args:
            student: Statistics of the masked rows.
            targets: What they are compared with.
            progress: Share of the run's steps already taken, for objectives that change during training.
        """


@dataclass(frozen=True, eq=False)
class RowLogProbs:
    """A distribution over the K kept ids and one outcome for the rest, at each of R rows, in nats.

    Attributes:
        kept_RK: Log-probs of the kept ids; -inf at padding.
        rest_R: Log-prob of all other ids together; -inf if there are none.
        is_kept_RK: False at padding.
    """

    kept_RK: torch.Tensor
    rest_R: torch.Tensor
    is_kept_RK: torch.Tensor


def ids_to_gather(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids for which the student's statistics are needed, and which of them make up the kept set."""
    ids_NK = torch.cat([targets.true_id_N[:, None], targets.topk.kept_ids_NK, targets.extra_ids_NX], dim=1)
    is_kept_NK = ids_NK >= 0
    is_kept_NK[:, 0] = False
    return ids_NK, is_kept_NK


def student_truth(student: RowStatistics) -> torch.Tensor:
    """Return log q(true token) at T = 1 for every masked row, in nats."""
    return student.gathered_NK[:, 0] - student.log_z_NT[:, student.temperatures.index(1.0)]


def untold(student: RowStatistics, is_told_N: torch.Tensor) -> torch.Tensor:
    """Return the sum of -log q(true token) over the rows that no teacher speaks of, in nats."""
    return -student_truth(student).masked_fill(is_told_N, 0).sum()


def student_logprobs(student: RowStatistics, targets: Targets, temperature: float) -> RowLogProbs:
    """Return the student's distribution at T on the rows that carry teacher candidates."""
    index = student.temperatures.index(temperature)
    rows_R = targets.topk.rows_R
    log_z_R = student.log_z_NT[rows_R, index]
    is_kept_RK = targets.topk.kept_ids_NK[rows_R] >= 0
    num_kept = is_kept_RK.shape[1]
    logprobs_RK = student.gathered_NK[rows_R, 1:] / temperature - log_z_R[:, None]
    rest_R = student.log_rest_NT[rows_R, index] - log_z_R
    if targets.extra_ids_NX.shape[1]:  # they are outside the kept ids, and outside `log_rest` too
        extra_RX = logprobs_RK[:, num_kept:].masked_fill(targets.extra_ids_NX[rows_R] < 0, -torch.inf)
        rest_R = torch.cat([extra_RX, rest_R[:, None]], dim=1).logsumexp(dim=1)
    return RowLogProbs(logprobs_RK[:, :num_kept].masked_fill(~is_kept_RK, -torch.inf), rest_R, is_kept_RK)


def teacher_logprobs(targets: Targets, temperature: float) -> RowLogProbs:
    """Return the teacher's distribution at T on the rows that carry candidates."""
    index = targets.temperatures.index(temperature)
    rows_R = targets.topk.rows_R
    log_partition_R = targets.topk.log_partition_NT[rows_R, index]
    return RowLogProbs(
        targets.topk.kept_logprobs_NK[rows_R] / temperature - log_partition_R[:, None],
        targets.topk.log_tail_NT[rows_R, index] - log_partition_R,
        targets.topk.kept_ids_NK[rows_R] >= 0,
    )


def grouped_kl(first: RowLogProbs, second: RowLogProbs) -> torch.Tensor:
    """Return KL(first || second) of each row over the kept ids and the rest, in nats [R].

    Grouping outcomes never raises a KL: the result is at most the full-vocabulary KL, and equals it at K = V.
    If `first` has no rest, the rest contributes zero. If only `second` has none, the KL is infinite; its rest then
    counts as `MIN_PROB`, which keeps the sum finite and still moves a student away from ids that the teacher lacks.

    Source: docs/decisions/rest-outcome.md.
    """
    difference_RK = torch.where(first.is_kept_RK, first.kept_RK - second.kept_RK, 0)
    second_rest_R = torch.where(second.rest_R > -torch.inf, second.rest_R, math.log(MIN_PROB))
    difference_R = torch.where(first.rest_R > -torch.inf, first.rest_R - second_rest_R, 0)
    kept_probs_RK = torch.where(first.is_kept_RK, first.kept_RK, -torch.inf).exp()
    return (kept_probs_RK * difference_RK).sum(dim=1) + first.rest_R.exp() * difference_R


def among_kept(logprobs: RowLogProbs) -> RowLogProbs:
    """Condition on the kept ids: they sum to one, and there is no rest."""
    log_mass_R1 = logprobs.kept_RK.logsumexp(dim=1, keepdim=True)
    nothing_R = torch.full_like(logprobs.rest_R, -torch.inf)
    return RowLogProbs(logprobs.kept_RK - log_mass_R1, nothing_R, logprobs.is_kept_RK)


def decoupled_kl(first: RowLogProbs, second: RowLogProbs, temperature: float) -> torch.Tensor:
    """Return how much is kept, compared at T = 1, and what is kept, compared at T: in nats [R].

    KL(Bern(p(K)) || Bern(q(K))) + p(K) T^2 KL(p_K || q_K), where p_K and q_K are the distributions among the kept ids,
    tempered by 1/T. At T = 1 it is `grouped_kl`; without a rest it is T^2 times the KL at T.

    Args:
        first: p at T = 1.
        second: q at T = 1.
        temperature: T.

    Source: tempered, decoupled top-k of LFM2, arXiv:2511.23404.
    """
    p, q = (_mass_kept(one) for one in (first, second))
    inside_R = grouped_kl(*(among_kept(replace(one, kept_RK=one.kept_RK / temperature)) for one in (first, second)))
    return grouped_kl(p, q) + temperature**2 * p.kept_RK[:, 0].exp() * inside_R


def _mass_kept(logprobs: RowLogProbs) -> RowLogProbs:
    """Return the kept ids as one outcome."""
    mass_R1 = logprobs.kept_RK.logsumexp(dim=1, keepdim=True)
    return RowLogProbs(mass_R1, logprobs.rest_R, torch.ones_like(mass_R1, dtype=torch.bool))


def has_candidates(targets: Targets) -> torch.Tensor:
    """Return for each active chunk whether the teacher's candidates for it were captured [C]."""
    has_C = torch.zeros_like(targets.truth.chunk_logprob_C, dtype=torch.bool)
    has_C[targets.chunks.candidate_chunk_J] = True
    return has_C


def student_chunk_logprobs(student: RowStatistics, targets: Targets) -> torch.Tensor:
    """Sum the student's log-probs of the true tokens over each active chunk, in nats [C]."""
    return sum_by_chunk(student_truth(student), targets)  # float64 if the statistics are, while targets stay float32


def sum_by_chunk(values_N: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Add up the values of each active chunk's rows, [C]."""
    num_chunks, chunk_N = len(targets.truth.chunk_logprob_C), targets.truth.chunk_of_row_N
    # rows of no chunk go to an extra place: to look for the others, the host would wait for a GPU
    sums = values_N.new_zeros(num_chunks + 1).index_add(0, torch.where(chunk_N < 0, num_chunks, chunk_N), values_N)
    return sums[:num_chunks]


def chunk_likelihoods(
    student: RowStatistics, targets: Targets, temperature: float, clamp_student: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probability that each side gives to an active chunk's true tokens, at T: exp(log-likelihood / T).

    The student's is a log, so that a chunk it finds almost impossible keeps its gradient. Both stay below 1.

    Args:
        student: Statistics of the masked rows.
        targets: What they are compared with.
        temperature: T.
        clamp_student: Clamp the student's probability from below too, as published: no gradient if its
            log-likelihood is below -16.1 T.

    Returns:
        Student's log-probabilities, on the graph, and the teacher's probabilities, clamped, both [C].

    Source: CALM, arXiv:2604.26951, section 2.3.
    """
    student_C = (student_chunk_logprobs(student, targets) / temperature).clamp_max(math.log(MAX_PROB))
    if clamp_student:
        student_C = student_C.clamp_min(math.log(MIN_PROB))
    teacher_C = (targets.truth.chunk_logprob_C / temperature).exp().clamp(MIN_PROB, MAX_PROB)
    return student_C, teacher_C


def binary_cross_entropy(target_C: torch.Tensor, prediction_C: torch.Tensor) -> torch.Tensor:
    """Return -[a log b + (1 - a) log(1 - b)] of each chunk; either side may carry the gradient.

    Args:
        target_C: a, a probability.
        prediction_C: log b.
    """
    return -(target_C * prediction_C + (1 - target_C) * torch.log1p(-prediction_C.exp()))


def union_of_needs(needs: Iterable[Needs]) -> Needs:
    """Return what several objectives need together."""
    every = list(needs)
    return Needs(
        signals=frozenset().union(*(n.signals for n in every)),
        student_temperatures=frozenset({1.0}).union(*(n.student_temperatures for n in every)),
        teacher_temperatures=frozenset().union(*(n.teacher_temperatures for n in every)),
    )
