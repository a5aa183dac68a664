"""CALM and Reverse CALM against plain formulas, chunk by chunk; their gradients: test_gradient_facts.py."""

from dataclasses import replace

import pytest
import torch

from helpers.target_examples import changed
from tide_cache.objectives.base import MAX_PROB, MIN_PROB
from tide_cache.objectives.calm import Calm, ReverseCalm


def clamped(probs):
    return probs.clamp(MIN_PROB, MAX_PROB)


def by_hand(case, temperature):
    """Chunk probabilities (student's, teacher's), one chunk at a time, from the full distributions."""
    student_NV, teacher_NV = (
        logits.detach().double().log_softmax(dim=1) for logits in (case.logits_NV, case.teacher_logits_NV)
    )
    truth_N2 = torch.stack([x.gather(1, case.targets.true_id_N[:, None])[:, 0] for x in (student_NV, teacher_NV)], 1)
    num_chunks = len(case.targets.truth.chunk_logprob_C)
    sums = [truth_N2[case.targets.truth.chunk_of_row_N == chunk].sum(dim=0) for chunk in range(num_chunks)]
    probs_C2 = clamped((torch.stack(sums) / temperature).exp())
    return probs_C2[:, 0], probs_C2[:, 1]


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", [Calm, ReverseCalm])
def test_the_sum_equals_the_formula_chunk_by_chunk(example, kind, temperature, chunk_size):
    case = example(0, length=12, chunk_size=chunk_size)
    assert len(case.targets.truth.chunk_logprob_C) > 1
    student_C, teacher_C = by_hand(case, temperature)
    target_C, prediction_C = (teacher_C, student_C) if kind is Calm else (student_C, teacher_C)
    expected = -(target_C * prediction_C.log() + (1 - target_C) * (1 - prediction_C).log()).sum()
    assert case.loss(kind(temperature, clamp_student=True)).item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", [Calm, ReverseCalm])
def test_rows_outside_chunks_get_no_gradient(example, kind):
    case = example(0, chunk_size=1)
    is_in_chunk_N = torch.arange(len(case.logits_NV)) % 2 == 0
    chunk_of_row_N = torch.where(is_in_chunk_N, is_in_chunk_N.cumsum(0) - 1, -1)
    logprob_C = case.targets.truth.chunk_logprob_C[: int(is_in_chunk_N.sum())]
    case = replace(case, targets=changed(case.targets, chunk_of_row_N=chunk_of_row_N, chunk_logprob_C=logprob_C))
    gradient_NV = case.gradient(kind(5.0))
    assert (gradient_NV[~is_in_chunk_N] == 0).all()
    assert (gradient_NV[is_in_chunk_N].abs().sum(dim=1) > 0).all()
