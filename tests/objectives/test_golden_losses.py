"""Losses and gradients equal the reference's, through the whole chain: logits, signals, targets, statistics, objective.

To add an objective: give its mode an entry in `TERMS`, and name its file in `CASES`.
"""

import pytest
import torch

from tide_cache.objectives import Objective
from tide_cache.objectives.calm import Calm, ReverseCalm
from tide_cache.objectives.ce import CrossEntropy
from tide_cache.objectives.kl import ForwardKL, ReverseKL

TERMS = {
    "alm": lambda hyper: [(hyper["alm_weight"], Calm(hyper["alm_temperature"]))],
    "reverse_alm": lambda hyper: [(hyper["alm_weight"], ReverseCalm(hyper["alm_temperature"]))],
    "kl": lambda hyper: [(hyper["kl_weight"], ForwardKL(hyper["kl_temperature"]))],
    "reverse_kl": lambda hyper: [(hyper["kl_weight"], ReverseKL(hyper["kl_temperature"]))],
}
"""What each mode adds to the cross-entropy: (weight, objective), from the case's hyper-parameters."""

CASES = [
    (family, mode, suffix)
    for family, modes in {"alm": ["alm", "reverse_alm"], "same": ["kl", "reverse_kl"]}.items()
    for mode in modes
    for suffix in ("", "-compdemo")
]

CE = CrossEntropy("scheduler")


def assert_gradients_close(gradient, expected):
    expected = torch.from_numpy(expected)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("family", "mode", "suffix"), CASES)
def test_losses_and_gradients_equal_the_reference(golden_case, family, mode, suffix):
    case = golden_case(family, mode + suffix)
    terms: list[tuple[float, Objective]] = TERMS[mode](case.hyper)
    distilled = sum(weight * case.mean(objective) for weight, objective in terms)
    assert distilled.item() == pytest.approx(float(case.recorded["distill_weighted"]), rel=1e-5)
    total = case.mean(CE) + distilled
    assert total.item() == pytest.approx(float(case.recorded["loss_total"]), rel=1e-5)
    (gradient,) = torch.autograd.grad(total, case.student_logits_BLV)
    assert_gradients_close(gradient, case.recorded["grad_total"])


@pytest.mark.parametrize("family", ["alm", "same"])
def test_the_cross_entropy_and_its_gradient_equal_the_reference(golden_case, family):
    case = golden_case(family, {"alm": "alm", "same": "kl"}[family])
    loss = case.mean(CE)
    assert loss.item() == pytest.approx(float(case.shared["ce_loss"]), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, case.student_logits_BLV)
    assert_gradients_close(gradient, case.shared["grad_ce"])


@pytest.mark.parametrize("suffix", ["", "-compdemo"])
def test_chunk_probabilities_equal_the_reference(golden_case, suffix):
    """The teacher's chunk log-probs, one by one: a sum over wrong rows could still give a plausible loss."""
    case = golden_case("alm", f"alm{suffix}")
    recorded = torch.from_numpy(case.recorded["teacher_chunk_lp"])[torch.from_numpy(case.shared["active_chunk_mask"])]
    torch.testing.assert_close(case.targets.chunk_logprob_C, recorded, rtol=1e-5, atol=1e-5)


def test_the_cases_are_not_vacuous(golden_case):
    alm, same = golden_case("alm", "alm"), golden_case("same", "kl")
    assert len(alm.targets.chunk_logprob_C) == int(alm.shared["active_chunk_mask"].sum()) > 10
    assert int(same.targets.has_topk_N.sum()) == int(same.shared["student_mask"].sum()) > 30
    assert (same.targets.kept_ids_NK >= 0).sum(dim=1).eq(47).all()
