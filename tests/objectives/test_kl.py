"""Laws of the KL over kept ids and a rest: zero for equals, a lower bound, exact at K = V."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.target_examples import changed
from tide_cache.objectives.kl import ForwardKL, ReverseKL

BOTH = (ForwardKL, ReverseKL)
VOCAB = 12
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
temperatures = st.sampled_from([0.5, 1.0, 2.0, 5.0])


def full_kl(first_NV, second_NV, temperature):
    """The textbook KL over the whole vocabulary, T^2 sum p (log p - log q), in float64."""
    first_NV, second_NV = ((x.double() / temperature).log_softmax(dim=1) for x in (first_NV, second_NV))
    return temperature**2 * (first_NV.exp() * (first_NV - second_NV)).sum()


def full_kl_of(kind, case, temperature):
    sides = (case.teacher_logits_NV, case.logits_NV.detach())
    return float(full_kl(*(sides if kind is ForwardKL else sides[::-1]), temperature))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("top_k", [1, 5, VOCAB])
@quick
@given(temperature=temperatures, seed=st.integers(0, 99))
def test_equals_have_no_kl_and_no_gradient(example, kind, top_k, temperature, seed):
    shift = 3.5  # logits are equal up to a constant
    case = example(seed, top_k=top_k, temperatures=(1.0, temperature), student=lambda teacher: teacher + shift)
    objective = kind(temperature)
    assert case.loss(objective).item() == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(case.gradient(objective), torch.zeros_like(case.logits_NV), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", BOTH)
@quick
@given(temperature=temperatures, seed=st.integers(0, 99), top_k=st.integers(1, VOCAB))
def test_grouping_never_raises_a_kl_and_never_makes_it_negative(example, kind, temperature, seed, top_k):
    case = example(seed, top_k=top_k, temperatures=(1.0, temperature))
    whole = full_kl_of(kind, case, temperature)
    assert -1e-4 <= case.loss(kind(temperature)).item() <= whole * (1 + 1e-5) + 1e-4


@pytest.mark.parametrize("kind", BOTH)
@quick
@given(temperature=temperatures, seed=st.integers(0, 99))
def test_more_kept_ids_bring_it_closer_to_the_whole(example, kind, temperature, seed):
    losses = [
        example(seed, top_k=top_k, temperatures=(1.0, temperature)).loss(kind(temperature)).item()
        for top_k in (1, 3, 6, VOCAB)
    ]
    assert all(more >= less - 1e-4 for less, more in pairwise(losses))
    whole = full_kl_of(kind, example(seed, temperatures=(1.0, temperature)), temperature)
    assert losses[-1] == pytest.approx(whole, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kind", BOTH)
@quick
@given(temperature=temperatures, seed=st.integers(0, 99))
def test_at_all_ids_the_gradient_is_that_of_the_whole(example, kind, temperature, seed):
    case = example(seed, top_k=VOCAB, temperatures=(1.0, temperature))
    logits_NV = case.logits_NV.detach().double().requires_grad_()
    sides = (case.teacher_logits_NV, logits_NV)
    loss = full_kl(*(sides if kind is ForwardKL else sides[::-1]), temperature)
    (expected_NV,) = torch.autograd.grad(loss, logits_NV)
    torch.testing.assert_close(case.gradient(kind(temperature)), expected_NV.float(), atol=2e-5, rtol=2e-5)


@quick
@given(temperature=temperatures, seed=st.integers(0, 99))
def test_the_gradient_of_the_forward_kl_is_t_times_the_difference(example, temperature, seed):
    case = example(seed, top_k=VOCAB, temperatures=(1.0, temperature))
    student_NV, teacher_NV = (
        (logits / temperature).softmax(dim=1) for logits in (case.logits_NV.detach(), case.teacher_logits_NV)
    )
    expected_NV = temperature * (student_NV - teacher_NV)
    torch.testing.assert_close(case.gradient(ForwardKL(temperature)), expected_NV, atol=2e-5, rtol=0)


@quick
@given(temperature=temperatures, seed=st.integers(0, 99))
def test_with_a_rest_the_kept_ids_have_the_same_gradient_and_the_rest_shares_its_own(example, temperature, seed):
    """Inside the rest the student keeps its own proportions: nothing is pulled towards a guess of the tail."""
    case = example(seed, top_k=4, temperatures=(1.0, temperature))
    student_NV, teacher_NV = (
        (logits / temperature).softmax(dim=1) for logits in (case.logits_NV.detach(), case.teacher_logits_NV)
    )
    is_kept_NV = torch.zeros_like(student_NV, dtype=torch.bool).scatter(1, case.targets.topk.kept_ids_NK, True)
    rest_N1 = [(probs * ~is_kept_NV).sum(dim=1, keepdim=True) for probs in (student_NV, teacher_NV)]
    target_NV = torch.where(is_kept_NV, teacher_NV, student_NV / rest_N1[0] * rest_N1[1])
    expected_NV = temperature * (student_NV - target_NV)
    torch.testing.assert_close(case.gradient(ForwardKL(temperature)), expected_NV, atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", BOTH)
def test_extreme_logits_stay_finite(example, kind):
    case = example(0, top_k=3, student=lambda teacher: -200 * teacher)
    assert case.loss(kind(2.0)).isfinite()
    assert case.gradient(kind(2.0)).isfinite().all()


def with_extra_ids(teacher_NV, mass):
    """Equal to the teacher, but for two ids of their own that hold a share of the probability."""
    extra_N1 = teacher_NV.logsumexp(dim=1, keepdim=True) + math.log(mass / (1 - mass) / 2)
    return torch.cat([teacher_NV, extra_N1, extra_N1], dim=1)


def test_forward_kl_where_the_teacher_has_no_rest_is_that_of_a_teacher_without_those_ids(example):
    case = example(0, top_k=VOCAB, student=lambda teacher: with_extra_ids(teacher, 0.25))
    assert case.loss(ForwardKL(1.0)).item() == pytest.approx(-math.log(0.75) * len(case.logits_NV), rel=1e-4)
    assert (case.gradient(ForwardKL(1.0))[:, VOCAB:] > 0).all()


def test_reverse_kl_where_the_teacher_has_no_rest_drives_the_student_out_of_it(example):
    losses = []
    for mass in (0.01, 0.25, 0.6):
        case = example(0, top_k=VOCAB, student=lambda teacher, mass=mass: with_extra_ids(teacher, mass))
        losses.append(case.loss(ReverseKL(1.0)).item())
        assert case.gradient(ReverseKL(1.0)).isfinite().all()
        assert (case.gradient(ReverseKL(1.0))[:, VOCAB:] > 0).all(), "gradient descent lowers them"
    assert 0 < losses[0] < losses[1] < losses[2]


def test_forward_kl_where_the_student_has_no_rest_is_finite_and_pulls_towards_the_kept_ids(example):
    """The teacher has ids that the student cannot say; they have become its rest, and the student has none."""
    sayable = VOCAB - 2
    case = example(0, top_k=VOCAB, student=lambda teacher: torch.zeros(len(teacher), sayable))
    is_said_NK = case.targets.topk.kept_ids_NK < sayable
    probs_NV = case.teacher_logits_NV.softmax(dim=1)
    rest_N = probs_NV[:, sayable:].sum(dim=1)
    targets = changed(
        case.targets,
        true_id_N=torch.zeros_like(case.targets.true_id_N),
        kept_ids_NK=case.targets.topk.kept_ids_NK.masked_fill(~is_said_NK, -1),
        kept_logprobs_NK=case.targets.topk.kept_logprobs_NK.masked_fill(~is_said_NK, -torch.inf),
        log_tail_NT=rest_N.log()[:, None].expand(-1, 2),
    )
    case = replace(case, targets=targets)
    assert case.loss(ForwardKL(1.0)).isfinite()
    said_N1 = 1 - rest_N[:, None]
    expected_NV = said_N1 / sayable - probs_NV[:, :sayable]
    torch.testing.assert_close(case.gradient(ForwardKL(1.0)), expected_NV, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tail", ["rest", "renormalise"])
def test_kept_at_temperature_one_is_the_captured_one(example, tail):
    case = example(3, top_k=4)
    kept, captured = (ForwardKL(1.0, tail=tail, temperature_mode=mode) for mode in ("kept", "captured"))
    assert case.loss(kept).item() == pytest.approx(case.loss(captured).item(), rel=1e-5)
    torch.testing.assert_close(case.gradient(kept), case.gradient(captured), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 3.0])
def test_kept_is_the_whole_kl_at_any_temperature_when_all_is_kept_and_none_was_captured(example, temperature):
    case = example(4, vocab=8, top_k=8, temperatures=(1.0,))
    objective = ForwardKL(temperature, temperature_mode="kept")
    teacher_NV, student_NV = (
        (x.double() / temperature).log_softmax(dim=1) for x in (case.teacher_logits_NV, case.logits_NV)
    )
    whole = temperature**2 * (teacher_NV.exp() * (teacher_NV - student_NV)).sum()
    assert case.loss(objective).item() == pytest.approx(whole.item(), rel=1e-4)
    (expected,) = torch.autograd.grad(whole, case.logits_NV)
    torch.testing.assert_close(case.gradient(objective), expected, rtol=1e-3, atol=1e-4)


def test_kept_compares_the_mass_of_the_kept_at_one_and_the_kept_at_the_temperature(example):
    case = example(5, vocab=10, top_k=3, temperatures=(1.0,))
    p_NV, q_NV = case.teacher_logits_NV.double().softmax(dim=1), case.logits_NV.double().softmax(dim=1)
    expected = 0.0
    for row, ids_K in enumerate(case.targets.topk.kept_ids_NK):
        p_K, q_K = p_NV[row, ids_K], q_NV[row, ids_K]
        p, q = p_K.sum(), q_K.sum()
        soft_p, soft_q = p_K.sqrt() / p_K.sqrt().sum(), q_K.sqrt() / q_K.sqrt().sum()
        expected += (
            p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log() + 4 * p * (soft_p * (soft_p / soft_q).log()).sum()
        )
    assert case.loss(ForwardKL(2.0, temperature_mode="kept")).item() == pytest.approx(expected.item(), rel=1e-4)


def test_draws_from_tails_do_not_go_with_kept():
    with pytest.raises(ValueError, match="temperature_mode = 'kept'"):
        ForwardKL(2.0, tail="sampled", temperature_mode="kept")


def test_with_one_vocabulary_what_is_projected_is_what_is_shared(example):
    shared, projected = (example(6, chunk_k=1, kinds=("truth", kind)) for kind in ("topk", "projected"))
    for objective in (ForwardKL(1.0), ForwardKL(2.0), ReverseKL(2.0)):
        assert projected.loss(objective).item() == pytest.approx(shared.loss(objective).item(), rel=1e-5)


def test_elsewhere_the_truth_is_taught_and_every_masked_row_counts_once(example):
    case = example(7, chunk_size=2)  # chunks of two have no rows of their own
    whole = example(7)
    for one in (case, whole):
        told, alone = (ForwardKL(1.0, elsewhere=where) for where in ("truth", "nothing"))
        truth_N = one.logits_NV.log_softmax(dim=1).gather(1, one.targets.true_id_N[:, None]).squeeze(1)
        expected = one.loss(alone) - truth_N[~one.targets.topk.has_topk_N].sum()
        assert one.loss(told).item() == pytest.approx(expected.item(), rel=1e-5)
        assert told.count(one.targets) == len(one.targets.true_id_N)
    assert not case.targets.topk.has_topk_N.any()
    assert whole.targets.topk.has_topk_N.all()


def test_x_token_renormalises_over_the_kept_and_averages_over_a_chunk(example):
    """arXiv:2605.21699, with the teacher in the student's vocabulary: a mean over each chunk's rows."""
    case = example(8, chunk_size=3, chunk_k=4, length=12, kinds=("truth", "projected"))
    topk, chunk_N = case.targets.topk, case.targets.truth.chunk_of_row_N
    objective = ForwardKL(1.0, tail="renormalise", per="chunk")
    chunks = chunk_N[topk.rows_R].unique()
    assert objective.count(case.targets) == len(chunks) > 1
    p_RK = topk.kept_logprobs_NK[topk.rows_R].softmax(dim=1)
    kept_RK = topk.kept_ids_NK[topk.rows_R]
    q_RK = (
        case.logits_NV[topk.rows_R].gather(1, kept_RK.clamp_min(0)).masked_fill(kept_RK < 0, -torch.inf).log_softmax(1)
    )
    kl_R = torch.where(p_RK > 0, p_RK * (p_RK.log() - q_RK), 0).sum(dim=1)
    expected = sum(kl_R[chunk_N[topk.rows_R] == chunk].mean() for chunk in chunks)
    torch.testing.assert_close(case.loss(objective), expected)
    torch.testing.assert_close(case.gradient(objective), torch.autograd.grad(expected, case.logits_NV)[0])


def test_where_chunks_are_single_tokens_a_chunk_is_a_row(example):
    case = example(6)
    for how in ({}, {"temperature_mode": "kept"}):
        row, chunk = (ForwardKL(2.0, per=per, **how) for per in ("row", "chunk"))
        assert row.count(case.targets) == chunk.count(case.targets)
        torch.testing.assert_close(case.loss(row), case.loss(chunk))
