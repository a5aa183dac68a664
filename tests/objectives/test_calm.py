"""Facts about chunk likelihoods: whose coefficient, how large, and where it vanishes."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tide_cache.objectives.base import MAX_PROB, MIN_PROB, ids_to_gather
from tide_cache.objectives.calm import Calm, ReverseCalm
from tide_cache.student.row_statistics import row_statistics

BOUND = math.log(1 / MIN_PROB)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def clamped(probs):
    return probs.clamp(MIN_PROB, MAX_PROB)


def by_hand(case, temperature):
    """Chunk probabilities (student's, teacher's), one chunk at a time, from the full distributions."""
    student_NV, teacher_NV = (
        logits.detach().double().log_softmax(dim=1) for logits in (case.logits_NV, case.teacher_logits_NV)
    )
    truth_N2 = torch.stack([x.gather(1, case.targets.true_id_N[:, None])[:, 0] for x in (student_NV, teacher_NV)], 1)
    num_chunks = len(case.targets.chunk_logprob_C)
    sums = [truth_N2[case.targets.chunk_of_row_N == chunk].sum(dim=0) for chunk in range(num_chunks)]
    probs_C2 = clamped((torch.stack(sums) / temperature).exp())
    return probs_C2[:, 0], probs_C2[:, 1]


def coefficients(objective, case):
    """d loss / d s for every chunk; chunks of one token, so that s depends on one gathered logit."""
    logits_NV = case.logits_NV.detach()
    ids_NK, is_kept_NK = ids_to_gather(case.targets)
    statistics = row_statistics(logits_NV, torch.eye(logits_NV.shape[1]), ids_NK, (1.0,), is_kept_NK)
    gathered_NK = statistics.gathered_NK.clone().requires_grad_()
    loss = objective.total(replace(statistics, gathered_NK=gathered_NK), case.targets)
    slope_N = torch.autograd.grad(loss, gathered_NK)[0][:, 0]
    student_N = ((statistics.gathered_NK[:, 0] - statistics.log_z_NT[:, 0]) / objective.temperature).exp()
    return slope_N * objective.temperature / student_N, student_N


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", [Calm, ReverseCalm])
def test_the_sum_equals_the_formula_chunk_by_chunk(example, kind, temperature, chunk_size):
    case = example(0, length=12, chunk_size=chunk_size)
    assert len(case.targets.chunk_logprob_C) > 1
    student_C, teacher_C = by_hand(case, temperature)
    target_C, prediction_C = (teacher_C, student_C) if kind is Calm else (student_C, teacher_C)
    expected = -(target_C * prediction_C.log() + (1 - target_C) * (1 - prediction_C).log()).sum()
    assert case.loss(kind(temperature)).item() == pytest.approx(float(expected), rel=1e-5)


@quick
@given(seed=st.integers(0, 99), temperature=st.sampled_from([1.0, 2.0, 5.0]), scale=st.sampled_from([0.1, 1.0]))
def test_the_reverse_coefficient_is_the_teachers_alone_and_bounded(example, seed, temperature, scale):
    first = example(seed, num_samples=6)
    second = example(seed, num_samples=6, student=lambda teacher: scale * teacher.roll(1, dims=1))
    of_first, of_second = (coefficients(ReverseCalm(temperature), case)[0] for case in (first, second))
    teacher_C = clamped((first.targets.chunk_logprob_C / temperature).exp())
    torch.testing.assert_close(of_first, torch.log1p(-teacher_C) - teacher_C.log(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(of_first, of_second, rtol=1e-3, atol=1e-4)
    assert of_first.abs().max() <= BOUND + 1e-3


@pytest.mark.parametrize(("sure", "sign"), [(True, -1), (False, 1)])
def test_the_reverse_coefficient_is_bounded_even_for_a_teacher_that_is_sure(example, sure, sign):
    """p = 1 - 2^-23 gives -15.94 and p = 1e-7 gives 16.12, whatever lies beyond."""
    case = example(0)
    logprob_C = torch.full_like(case.targets.chunk_logprob_C, 0.0 if sure else -400.0)
    case = replace(case, targets=replace(case.targets, chunk_logprob_C=logprob_C))
    coefficient_N, _ = coefficients(ReverseCalm(1.0), case)
    expected = math.log(2.0**-23) if sure else -math.log(MIN_PROB)
    assert math.copysign(1, expected) == sign
    torch.testing.assert_close(coefficient_N, torch.full_like(coefficient_N, expected), rtol=1e-3, atol=0)


def unlikely_truth(true_id_N, logprob):
    """Make logits under which the true id has about this log-prob."""

    def student(teacher_NV):
        return torch.zeros_like(teacher_NV).scatter(1, true_id_N[:, None], logprob + math.log(teacher_NV.shape[1] - 1))

    return student


def test_the_calm_coefficient_grows_without_bound_as_the_student_doubts(example):
    true_id_N = example(0).targets.true_id_N
    largest = []
    for logprob in (-2.0, -6.0, -10.0, -14.0):
        case = example(0, student=unlikely_truth(true_id_N, logprob))
        coefficient_N, student_N = coefficients(Calm(1.0), case)
        teacher_C = case.targets.chunk_logprob_C.exp()
        expected_N = -(teacher_C / student_N - (1 - teacher_C) / (1 - student_N))
        torch.testing.assert_close(coefficient_N, expected_N, rtol=1e-3, atol=1e-3)
        largest.append(float(coefficient_N.abs().max()))
    assert all(later > 20 * earlier for earlier, later in pairwise(largest))
    assert largest[-1] > 1e4 > BOUND


def test_calm_vanishes_where_the_student_equals_the_teacher_and_reverse_calm_does_not(example):
    case = example(0, student=lambda teacher: teacher)
    calm_N, _ = coefficients(Calm(2.0), case)
    reverse_N, _ = coefficients(ReverseCalm(2.0), case)
    assert calm_N.abs().max() < 1e-3
    assert reverse_N.abs().max() > 0.1


def test_reverse_calm_vanishes_where_the_teacher_says_one_half(example):
    case = example(0)
    half_C = torch.full_like(case.targets.chunk_logprob_C, 2 * math.log(0.5))
    case = replace(case, targets=replace(case.targets, chunk_logprob_C=half_C))
    torch.testing.assert_close(case.gradient(ReverseCalm(2.0)), torch.zeros_like(case.logits_NV), atol=1e-6, rtol=0)
    assert case.gradient(Calm(2.0)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [Calm, ReverseCalm])
def test_beyond_the_clamp_there_is_no_gradient_and_nothing_infinite(example, kind):
    """As in the reference: a chunk with s below 1e-7 is given up."""
    case = example(0, student=unlikely_truth(example(0).targets.true_id_N, -60.0))
    assert case.loss(kind(1.0)).isfinite()
    torch.testing.assert_close(case.gradient(kind(1.0)), torch.zeros_like(case.logits_NV))


@pytest.mark.parametrize("kind", [Calm, ReverseCalm])
def test_rows_outside_chunks_get_no_gradient(example, kind):
    case = example(0, chunk_size=1)
    is_in_chunk_N = torch.arange(len(case.logits_NV)) % 2 == 0
    chunk_of_row_N = torch.where(is_in_chunk_N, is_in_chunk_N.cumsum(0) - 1, -1)
    logprob_C = case.targets.chunk_logprob_C[: int(is_in_chunk_N.sum())]
    case = replace(case, targets=replace(case.targets, chunk_of_row_N=chunk_of_row_N, chunk_logprob_C=logprob_C))
    gradient_NV = case.gradient(kind(5.0))
    assert (gradient_NV[~is_in_chunk_N] == 0).all()
    assert (gradient_NV[is_in_chunk_N].abs().sum(dim=1) > 0).all()
