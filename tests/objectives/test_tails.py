"""What is done with the ids that are not kept: the three choices against the whole vocabulary."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from helpers.target_examples import changed
from tide_cache.objectives.kl import ForwardKL, ReverseKL
from tide_cache.objectives.tidal import Tidal

VOCAB = 12
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 99)
temperatures = st.sampled_from([1.0, 2.0])
every_kind = pytest.mark.parametrize("kind", [ForwardKL, ReverseKL])


def whole(kind, case, temperature):
    """The KL over the whole vocabulary and its gradient, in float64."""
    logits_NV = case.logits_NV.detach().double().requires_grad_()
    sides = [(x / temperature).log_softmax(dim=1) for x in (case.teacher_logits_NV.double(), logits_NV)]
    first_NV, second_NV = sides if kind is ForwardKL else sides[::-1]
    loss = temperature**2 * (first_NV.exp() * (first_NV - second_NV)).sum()
    return loss.item(), torch.autograd.grad(loss, logits_NV)[0].float()


@every_kind
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_its_expectation_over_the_draws_is_the_whole(example, kind, temperature):
    """With every id's share of the draws put at its probability, which is its expectation, nothing is missing."""
    case = example(1, top_k=2, temperatures=(1.0, 2.0), tail_samples=20_000)
    targets = case.targets
    is_drawn_ND = targets.topk.drawn_share_ND > 0
    assert is_drawn_ND.sum(dim=1).eq(VOCAB - 2).all()  # each id of the tail was drawn
    share_ND = (targets.topk.drawn_logprob_ND - targets.topk.log_tail_NT[:, :1]).exp() * is_drawn_ND
    torch.testing.assert_close(targets.topk.drawn_share_ND.sum(dim=1), torch.ones(len(share_ND)))
    expected = replace(case, targets=changed(targets, drawn_share_ND=share_ND))
    loss, gradient = whole(kind, case, temperature)
    assert expected.loss(kind(temperature, "sampled")).item() == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(expected.gradient(kind(temperature, "sampled")), gradient, rtol=1e-3, atol=1e-5)


def test_draws_come_in_proportion_to_the_teachers_probabilities(example):
    case = example(1, top_k=2, temperatures=(1.0, 2.0), tail_samples=20_000)
    loss, gradient = whole(ForwardKL, case, 1.0)
    sampled, rest = ForwardKL(1.0, "sampled"), ForwardKL(1.0)
    assert case.loss(sampled).item() == pytest.approx(loss, rel=0.01)
    assert case.loss(rest).item() < 0.97 * loss
    worst = float((case.gradient(sampled) - gradient).abs().max())
    assert worst < 0.02 * float(gradient.abs().max())
    assert worst < 0.5 * float((case.gradient(rest) - gradient).abs().max())


@every_kind
@quick
@given(seed=seeds, temperature=temperatures)
def test_where_nothing_is_left_all_three_are_the_same(example, kind, seed, temperature):
    case = example(seed, top_k=VOCAB, tail_samples=3)
    losses = [case.loss(kind(temperature, tail)).item() for tail in ("rest", "renormalise", "sampled")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4, abs=1e-4)


@every_kind
@quick
@given(seed=seeds, top_k=st.integers(1, VOCAB), temperature=temperatures)
def test_equals_have_no_kl_whatever_the_tail(example, kind, seed, top_k, temperature):
    case = example(seed, top_k=top_k, tail_samples=3, student=lambda teacher: teacher + 3.5)
    for tail in ("rest", "renormalise", "sampled"):
        assert case.loss(kind(temperature, tail)).item() == pytest.approx(0, abs=1e-3)


@quick
@given(seed=seeds, temperature=temperatures)
def test_renormalised_it_is_the_kl_given_that_a_kept_id_comes(example, seed, temperature):
    case = example(seed, top_k=4)
    ids_NK = case.targets.topk.kept_ids_NK
    p_NK, q_NK = (
        (x.double().gather(1, ids_NK) / temperature).log_softmax(dim=1)
        for x in (case.teacher_logits_NV, case.logits_NV)
    )
    expected = temperature**2 * (p_NK.exp() * (p_NK - q_NK)).sum().item()
    assert case.loss(ForwardKL(temperature, "renormalise")).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@quick
@given(seed=seeds)
def test_a_renormalised_student_may_put_mass_outside_at_no_cost(example, seed):
    """Why `rest` is the default: nothing tells such a student how much the teacher leaves to the other ids."""
    case = example(seed, top_k=4)
    assume(len(case.logits_NV))  # some seeds mask nothing
    is_kept_NV = torch.zeros_like(case.logits_NV, dtype=torch.bool).scatter(1, case.targets.topk.kept_ids_NK, True)
    assert case.gradient(ForwardKL(1.0, "renormalise"))[~is_kept_NV].abs().max() == pytest.approx(0, abs=1e-6)
    assert case.gradient(ForwardKL(1.0))[~is_kept_NV].abs().max() > 1e-4


@quick
@given(seed=seeds)
def test_tidal_renormalised_trusts_the_teacher_among_the_kept_ids(example, seed):
    case = example(seed, top_k=4)
    fully = Tidal(temperature=1.0, axes="training_only", lambda_init=1.0, lambda_max=1.0, tail="renormalise")
    expected = case.loss(ForwardKL(1.0, "renormalise")).item()
    assert case.loss(fully).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
