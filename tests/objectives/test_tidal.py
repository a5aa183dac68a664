"""TIDAL's target: no gradient, between student and teacher, trust as the schedule says; and the true Bernoulli KL."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from helpers.target_examples import leaves
from tide_cache.config.train import read_objectives
from tide_cache.objectives.base import binary_cross_entropy, student_logprobs, teacher_logprobs
from tide_cache.objectives.calm import BernoulliKL, Calm, ReverseCalm
from tide_cache.objectives.kl import ForwardKL
from tide_cache.objectives.tidal import Tidal, mixture
from tide_cache.student.row_statistics import row_statistics


def test_the_trust_equals_the_reference_at_every_step_axis_and_growth(shared):
    recorded = np.load(shared / "golden/schedule.npz")
    t = torch.from_numpy(recorded["t"])
    for row, (step, steps) in enumerate(zip(recorded["step"], recorded["max_steps"], strict=True)):
        tidal = Tidal(
            axes=str(recorded["axis"][row]), growth=str(recorded["decay"][row]),
            time_weight=str(recorded["weight"][row]),
        )  # fmt: skip
        progress = step / max(steps, 1)
        np.testing.assert_allclose(tidal._weight(t), recorded["w"][row], rtol=1e-5)
        if progress <= 1:
            np.testing.assert_allclose(tidal.trust(t, progress), recorded["lambda_t"][row], rtol=1e-5)
        else:  # the reference lets trust grow past its maximum, or fall again; ours stays at the end of the run
            torch.testing.assert_close(tidal.trust(t, progress), tidal.trust(t, 1.0))


@pytest.mark.parametrize(("over", "t_of"), [("kl", "t_N"), ("calm", "chunk_t_C")])
def test_the_divisor_is_the_sum_of_the_weights_or_as_published_their_number(example, over, t_of):
    case = example(0, num_samples=6)
    t = leaves(case.targets)[t_of].double()
    weights = torch.exp(-((t - 0.5) ** 2) / 0.045)
    of_weights, of_count = (
        Tidal(over, 2.0, time_weight="midrange", normalise=normalise) for normalise in ("weights", "count")
    )
    assert of_weights.count(case.targets) == pytest.approx(float(weights.sum()), rel=1e-6)
    assert of_count.count(case.targets) == len(t) > 1.2 * float(weights.sum())
    uniform = Tidal(over, 2.0, normalise="weights")
    assert uniform.count(case.targets) == len(t), "without weights both are the same"
    torch.testing.assert_close(case.loss(of_weights), case.loss(of_count), msg="the sum does not depend on it")


def test_the_divisor_of_nothing_is_zero(example):
    empty = example(0, is_supervised=False).targets
    assert [Tidal(over, time_weight="midrange").count(empty) for over in ("kl", "calm")] == [0, 0]


def test_at_full_trust_tidal_over_kl_is_kl_and_over_calm_is_calm(example):
    case = example(top_k=4)
    full = {"axes": "training_only", "lambda_init": 1.0, "lambda_max": 1.0}
    torch.testing.assert_close(case.loss(Tidal("kl", 2.0, **full)), case.loss(ForwardKL(2.0)))
    torch.testing.assert_close(case.gradient(Tidal("kl", 2.0, **full)), case.gradient(ForwardKL(2.0)))
    torch.testing.assert_close(case.gradient(Tidal("calm", 5.0, **full)), case.gradient(Calm(5.0)))


def test_without_trust_the_target_is_the_student_and_nothing_pulls(example):
    case = example()
    none = Tidal("kl", 2.0, axes="training_only", lambda_init=0.0, lambda_max=0.0)
    assert case.loss(none).item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(case.gradient(none), torch.zeros_like(case.logits_NV), atol=1e-6, rtol=0)


def test_the_target_carries_no_gradient_and_sums_to_one(example):
    case = example()
    logits_NV = case.logits_NV
    ids_NK = torch.cat([case.targets.true_id_N[:, None], case.targets.topk.kept_ids_NK], dim=1)
    is_kept_NK = (ids_NK >= 0) & (torch.arange(ids_NK.shape[1]) > 0)
    statistics = row_statistics(logits_NV, torch.eye(logits_NV.shape[1]), ids_NK, (1.0, 2.0), is_kept_NK)
    q, p = student_logprobs(statistics, case.targets, 2.0), teacher_logprobs(case.targets, 2.0)
    r = mixture(q, p, torch.linspace(0, 1, len(q.rest_R)))
    assert not r.kept_RK.requires_grad
    assert not r.rest_R.requires_grad
    torch.testing.assert_close(r.kept_RK.exp().sum(1) + r.rest_R.exp(), torch.ones(len(q.rest_R)))


def test_with_the_whole_vocabulary_the_target_is_the_softmax_of_mixed_logits(example):
    case = example(top_k=12)
    tidal = Tidal("kl", 2.0, axes="training_only", lambda_init=0.3, lambda_max=0.3)
    mixed_NV = torch.softmax((0.7 * case.logits_NV.detach() + 0.3 * case.teacher_logits_NV) / 2, dim=1)
    student_NV = torch.log_softmax(case.logits_NV / 2, dim=1)
    expected = 4 * (mixed_NV * (mixed_NV.log() - student_NV)).sum()
    torch.testing.assert_close(case.loss(tidal), expected)
    (gradient,) = torch.autograd.grad(expected, case.logits_NV)
    torch.testing.assert_close(case.gradient(tidal), gradient, atol=1e-6, rtol=1e-4)


def test_tidal_over_a_reverse_objective_is_refused_with_the_papers_reason():
    with pytest.raises(ValidationError, match=r"TIDAL does not go with a reverse objective: .*counterproductive"):
        read_objectives([{"kind": "tidal", "over": "reverse_calm"}], "paper")


def test_the_bernoulli_kl_is_least_where_student_and_teacher_agree(example):
    equal = example(student=lambda teacher: teacher)
    assert equal.loss(BernoulliKL(1.0)).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(equal.gradient(BernoulliKL(1.0)), torch.zeros_like(equal.logits_NV), atol=1e-5, rtol=0)
    assert equal.gradient(ReverseCalm(1.0)).abs().max() > 1e-2  # Reverse CALM has no such minimum
    other = example()
    assert other.loss(BernoulliKL(1.0)) > 0


def test_the_bernoulli_kls_gradient_in_s_is_the_difference_of_the_logits():
    s = torch.tensor([0.2, 0.5, 0.9], requires_grad=True)
    p = torch.tensor([0.3, 0.1, 0.9])
    kl = (binary_cross_entropy(s, p.log()) - binary_cross_entropy(s, s.log())).sum()
    torch.testing.assert_close(kl, (s * (s / p).log() + (1 - s) * ((1 - s) / (1 - p)).log()).sum())
    (gradient,) = torch.autograd.grad(kl, s)
    torch.testing.assert_close(gradient, torch.logit(s.detach()) - torch.logit(p))
