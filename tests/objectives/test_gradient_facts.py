"""Gradients of the chunk objectives and of TIDAL: whose coefficient, how large, where it vanishes, what carries none.

`s` and `p` are the student's and the teacher's probabilities exp(log-likelihood / T) of a chunk's true tokens.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.target_examples import changed
from tide_cache.objectives.base import MAX_PROB, MIN_PROB, ids_to_gather
from tide_cache.objectives.calm import Calm, ReverseCalm
from tide_cache.objectives.tidal import Tidal
from tide_cache.student.row_statistics import row_statistics

LEAST, MOST = -15.95, 16.12
"""Reverse CALM's coefficient lies between: log((1 - p)/p) at p = 1 - 2^-23 and at p = 1e-7."""
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def clamped(probs):
    return probs.clamp(MIN_PROB, MAX_PROB)


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


@quick
@given(seed=st.integers(0, 99), temperature=st.sampled_from([1.0, 2.0, 5.0]), scale=st.sampled_from([0.1, 1.0]))
def test_the_reverse_coefficient_is_the_teachers_alone_and_bounded(example, seed, temperature, scale):
    first = example(seed, num_samples=6)
    second = example(seed, num_samples=6, student=lambda teacher: scale * teacher.roll(1, dims=1))
    of_first, of_second = (coefficients(ReverseCalm(temperature), case)[0] for case in (first, second))
    teacher_C = clamped((first.targets.truth.chunk_logprob_C / temperature).exp())
    torch.testing.assert_close(of_first, torch.log1p(-teacher_C) - teacher_C.log(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(of_first, of_second, rtol=1e-3, atol=1e-4)
    assert LEAST <= of_first.min() <= of_first.max() <= MOST


@pytest.mark.parametrize(("sure", "sign"), [(True, -1), (False, 1)])
def test_the_reverse_coefficient_is_bounded_even_for_a_teacher_that_is_sure(example, sure, sign):
    """p = 1 - 2^-23 gives -15.94 and p = 1e-7 gives 16.12, whatever lies beyond."""
    case = example(0)
    logprob_C = torch.full_like(case.targets.truth.chunk_logprob_C, 0.0 if sure else -400.0)
    case = replace(case, targets=changed(case.targets, chunk_logprob_C=logprob_C))
    coefficient_N, _ = coefficients(ReverseCalm(1.0), case)
    expected = math.log(2.0**-23) if sure else -math.log(MIN_PROB)
    assert math.copysign(1, expected) == sign
    assert LEAST < expected < MOST
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
        teacher_C = case.targets.truth.chunk_logprob_C.exp()
        expected_N = -(teacher_C / student_N - (1 - teacher_C) / (1 - student_N))
        torch.testing.assert_close(coefficient_N, expected_N, rtol=1e-3, atol=1e-3)
        largest.append(float(coefficient_N.abs().max()))
    assert all(later > 20 * earlier for earlier, later in pairwise(largest))
    assert largest[-1] > 1e4 > MOST


def test_calm_vanishes_where_the_student_equals_the_teacher_and_reverse_calm_does_not(example):
    case = example(0, student=lambda teacher: teacher)
    calm_N, _ = coefficients(Calm(2.0), case)
    reverse_N, _ = coefficients(ReverseCalm(2.0), case)
    assert calm_N.abs().max() < 1e-3
    assert reverse_N.abs().max() > 0.1


def test_reverse_calm_vanishes_where_the_teacher_says_one_half(example):
    case = example(0)
    half_C = torch.full_like(case.targets.truth.chunk_logprob_C, 2 * math.log(0.5))
    case = replace(case, targets=changed(case.targets, chunk_logprob_C=half_C))
    torch.testing.assert_close(case.gradient(ReverseCalm(2.0)), torch.zeros_like(case.logits_NV), atol=1e-6, rtol=0)
    assert case.gradient(Calm(2.0)).abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", [Calm, ReverseCalm])
def test_as_published_a_chunk_below_a_log_likelihood_of_minus_16_1_T_gets_no_gradient(example, kind, temperature):
    """s is clamped at 1e-7 = exp(-16.118), as in the reference: 16.1 nats at T = 1, 32.2 at 2, 80.6 at 5."""
    true_id_N = example(0).targets.true_id_N
    above, below = (example(0, student=unlikely_truth(true_id_N, temperature * nats)) for nats in (-16.10, -16.13))
    published = kind(temperature, clamp_student=True)
    assert (above.gradient(published)[torch.arange(len(true_id_N)), true_id_N] != 0).all()
    torch.testing.assert_close(below.gradient(published), torch.zeros_like(below.logits_NV), atol=0, rtol=0)
    assert below.loss(published).isfinite()


@pytest.mark.parametrize("nats", [-34.0, -60.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_without_the_clamp_calm_pulls_hardest_at_what_the_student_has_given_up(example, temperature, nats):
    """The right value, in float64: in the log-likelihood CALM's gradient tends to -p / T, and does not stop at 16.1 T.

    So the published loss is silent where the student is most wrong. Reverse CALM loses nothing by its clamp: its
    gradient is gone by then.
    """
    true_id_N = example(0).targets.true_id_N
    case = example(0, student=unlikely_truth(true_id_N, nats))
    logits_NV = case.logits_NV.detach().double().requires_grad_()
    loglik_N = logits_NV.log_softmax(dim=1).gather(1, true_id_N[:, None]).squeeze(1) / temperature
    p_N = (case.targets.truth.chunk_logprob_C.double() / temperature).exp()
    right = -(p_N * loglik_N + (1 - p_N) * torch.log1p(-loglik_N.exp())).sum()
    assert case.loss(Calm(temperature)).item() == pytest.approx(right.item(), rel=1e-5)
    (gradient_NV,) = torch.autograd.grad(right, logits_NV)
    torch.testing.assert_close(case.gradient(Calm(temperature)), gradient_NV.float(), rtol=1e-4, atol=1e-6)
    at_truth_N = case.gradient(Calm(temperature)).gather(1, true_id_N[:, None]).squeeze(1)
    torch.testing.assert_close(at_truth_N, -(p_N / temperature).float(), rtol=1e-3, atol=1e-6)
    assert case.gradient(ReverseCalm(temperature)).abs().max() < MIN_PROB * MOST / temperature


def kl_in_float64(case, logits_NV, trust_N, is_target_constant):
    """T^2 KL(r || q_T) over the kept ids and the rest, by plain sums of probabilities."""
    kept_NK = case.targets.topk.kept_ids_NK
    q_NV, p_NV = ((logits.double() / 2).softmax(dim=1) for logits in (logits_NV, case.teacher_logits_NV))
    q_NG, p_NG = (
        torch.cat([of_ids, 1 - of_ids.sum(dim=1, keepdim=True)], dim=1)
        for of_ids in (x_NV.gather(1, kept_NK) for x_NV in (q_NV, p_NV))
    )
    mixed_NG = q_NG ** (1 - trust_N[:, None]) * p_NG ** trust_N[:, None]
    r_NG = mixed_NG / mixed_NG.sum(dim=1, keepdim=True)
    r_NG = r_NG.detach() if is_target_constant else r_NG
    return 4 * (r_NG * (r_NG / q_NG).log()).sum()


def calm_in_float64(case, logits_NV, trust_N, is_target_constant):
    """Binary cross-entropy against (1-l) s + l p; chunks of one token, in the order of their rows."""
    ids_N1 = case.targets.true_id_N[:, None]
    s_N, p_N = (
        (logits.double().log_softmax(dim=1).gather(1, ids_N1)[:, 0] / 2).exp()
        for logits in (logits_NV, case.teacher_logits_NV)
    )
    r_N = (1 - trust_N) * s_N + trust_N * p_N
    r_N = r_N.detach() if is_target_constant else r_N
    return -(r_N * s_N.log() + (1 - r_N) * (1 - s_N).log()).sum()


@pytest.mark.parametrize(("over", "formula"), [("kl", kl_in_float64), ("calm", calm_in_float64)])
@pytest.mark.parametrize("lambda_max", [0.3, 0.9])
def test_tidals_target_carries_no_gradient(example, over, formula, lambda_max):
    """The gradient is that of the same target given as a constant; through the target it would be another one."""
    case = example(0, num_samples=3)
    tidal = Tidal(over, 2.0, axes="timestep_only", lambda_max=lambda_max)
    trust_N = lambda_max * (1 - case.targets.t_N.double())
    constant, moving = (
        torch.autograd.grad(formula(case, case.logits_NV, trust_N, is_constant), case.logits_NV)[0]
        for is_constant in (True, False)
    )
    torch.testing.assert_close(case.gradient(tidal), constant, rtol=1e-4, atol=1e-6)
    assert (moving - constant).norm() > 0.1 * constant.norm()
