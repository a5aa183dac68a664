"""Laws of the KL over candidate chunks: zero for equals, exact when every text is a candidate, CALM when one is."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.target_examples import changed
from tide_cache.objectives.base import has_candidates, ids_to_gather
from tide_cache.objectives.calm import Calm
from tide_cache.objectives.chunk_kl import ChunkKL, candidate_logprobs
from tide_cache.objectives.kl import ForwardKL
from tide_cache.student.row_statistics import row_statistics

VOCAB = 6
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 99)
temperatures = st.sampled_from([0.5, 1.0, 2.0])


def make(example, seed, chunk_size, chunk_k=VOCAB**2, top_k=VOCAB, temperature=1.0, **options):
    options = {"vocab": VOCAB, "length": 8, "temperatures": tuple({1.0, temperature})} | options
    return example(seed, chunk_size=chunk_size, chunk_k=chunk_k, top_k=top_k, **options)


def full_kl(case, temperature):
    """KL of the product distributions of all active chunks: the sum of the KLs at their positions, in float64."""
    rows = case.targets.truth.chunk_of_row_N >= 0
    teacher_RV, student_RV = (
        (x.double()[rows] / temperature).log_softmax(dim=1) for x in (case.teacher_logits_NV, case.logits_NV)
    )
    return temperature**2 * (teacher_RV.exp() * (teacher_RV - student_RV)).sum()


@pytest.mark.parametrize("chunk_size", [1, 2])
@quick
@given(seed=seeds, temperature=temperatures)
def test_it_is_the_whole_kl_when_every_text_is_a_candidate(example, chunk_size, seed, temperature):
    case = make(example, seed, chunk_size, temperature=temperature)
    whole = full_kl(case, temperature)
    assert case.loss(ChunkKL(temperature)).item() == pytest.approx(whole.item(), rel=1e-4, abs=1e-4)
    (expected,) = torch.autograd.grad(whole, case.logits_NV)
    torch.testing.assert_close(case.gradient(ChunkKL(temperature)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
@quick
@given(seed=seeds, chunk_k=st.integers(1, 5), temperature=temperatures)
def test_equals_have_no_kl_and_no_gradient(example, chunk_size, seed, chunk_k, temperature):
    case = make(
        example, seed, chunk_size, chunk_k, top_k=4, temperature=temperature, student=lambda teacher: teacher + 3.5
    )
    assert case.loss(ChunkKL(temperature)).item() == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(case.gradient(ChunkKL(temperature)), torch.zeros_like(case.logits_NV), atol=2e-5, rtol=0)


@quick
@given(seed=seeds, temperature=temperatures)
def test_more_candidates_bring_it_closer_to_the_whole_from_below(example, seed, temperature):
    losses = [
        make(example, seed, 2, chunk_k, temperature=temperature).loss(ChunkKL(temperature)).item()
        for chunk_k in (1, 3, 9, VOCAB**2)
    ]
    assert losses[0] >= -1e-4
    assert all(more >= less - 1e-4 for less, more in pairwise(losses))


@quick
@given(seed=seeds, top_k=st.integers(1, VOCAB), temperature=temperatures)
def test_on_chunks_of_one_shared_token_it_is_the_kl(example, seed, top_k, temperature):
    case = make(example, seed, 1, top_k=top_k, temperature=temperature)
    assert case.loss(ChunkKL(temperature)).item() == pytest.approx(
        case.loss(ForwardKL(temperature)).item(), rel=1e-4, abs=1e-4
    )


@quick
@given(seed=seeds)
def test_with_the_true_chunk_alone_its_gradient_is_calms(example, seed):
    case = make(example, seed, 2)
    targets = case.targets
    rows_F, columns_F, candidate_F = (
        targets.chunks.token_row_F,
        targets.chunks.token_column_F,
        targets.chunks.token_candidate_F,
    )
    ids_NK = torch.cat([targets.true_id_N[:, None], targets.topk.kept_ids_NK, targets.extra_ids_NX], dim=1)
    is_right_F = ids_NK[rows_F, columns_F] == targets.true_id_N[rows_F]
    is_true_J = torch.ones(len(targets.chunks.candidate_chunk_J), dtype=torch.bool).index_put(
        (candidate_F[~is_right_F],), torch.tensor(False)
    )
    new_number_J = is_true_J.cumsum(0) - 1
    is_kept_F = is_true_J[candidate_F]
    log_tail_CT = torch.log1p(-targets.truth.chunk_logprob_C.exp())[:, None].expand_as(targets.chunks.log_tail_CT)
    alone = replace(
        case,
        targets=changed(
            targets,
            candidate_chunk_J=targets.chunks.candidate_chunk_J[is_true_J],
            candidate_logprob_J=targets.chunks.candidate_logprob_J[is_true_J],
            token_candidate_F=new_number_J[candidate_F[is_kept_F]],
            token_row_F=rows_F[is_kept_F],
            token_column_F=columns_F[is_kept_F],
            log_tail_CT=log_tail_CT,
        ),
    )
    assert has_candidates(alone.targets).all()
    torch.testing.assert_close(alone.gradient(ChunkKL(1.0)), alone.gradient(Calm(1.0)), rtol=1e-3, atol=1e-5)


def test_the_students_candidates_and_rest_sum_to_one_when_all_texts_are_candidates(example):
    case = make(example, 3, 2)
    ids_NK = torch.cat(
        [case.targets.true_id_N[:, None], case.targets.topk.kept_ids_NK, case.targets.extra_ids_NX], dim=1
    )
    is_kept_NK = ids_NK >= 0
    is_kept_NK[:, 0] = False
    student = row_statistics(case.logits_NV.detach(), torch.eye(VOCAB), ids_NK, (1.0,), is_kept_NK)
    logprob_J = candidate_logprobs(student, case.targets, 1.0)
    mass_C = torch.zeros(len(case.targets.truth.chunk_logprob_C), dtype=torch.float64).index_add(
        0, case.targets.chunks.candidate_chunk_J, logprob_J.exp()
    )
    torch.testing.assert_close(mass_C, torch.ones_like(mass_C), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_a_student_that_is_sure_of_something_else_has_a_finite_gradient(example, scale):
    case = make(example, 5, 2, chunk_k=3, top_k=4, student=lambda teacher: -scale * teacher)
    assert torch.isfinite(case.loss(ChunkKL(1.0)))
    assert torch.isfinite(case.gradient(ChunkKL(1.0))).all()


def test_calm_beside_it_takes_the_chunks_without_candidates(example):
    case = make(example, 7, 2, chunk_k=2)
    rest = Calm(1.0, chunks="without_candidates")
    assert ChunkKL().count(case.targets) == Calm(1.0).count(case.targets) > 2
    assert rest.count(case.targets) == 0
    assert case.loss(rest).item() == 0
    nothing = torch.zeros(0, dtype=torch.int64)
    none = replace(
        case,
        targets=changed(
            case.targets, candidate_chunk_J=nothing, candidate_logprob_J=torch.zeros(0), token_candidate_F=nothing,
            token_row_F=nothing, token_column_F=nothing,
            log_tail_CT=torch.zeros_like(case.targets.chunks.log_tail_CT),
        ),
    )  # fmt: skip
    assert (ChunkKL().count(none.targets), none.loss(ChunkKL()).item()) == (0, 0)
    assert none.loss(rest).item() == pytest.approx(none.loss(Calm(1.0)).item())


@pytest.mark.parametrize("tail", ["rest", "renormalise", "fits"])
@quick
@given(seed=seeds, chunk_k=st.integers(1, 5))
def test_kept_at_temperature_one_is_the_captured_one(example, tail, seed, chunk_k):
    case = make(example, seed, 2, chunk_k, top_k=4)
    kept, captured = (ChunkKL(1.0, tail=tail, temperature_mode=mode) for mode in ("kept", "captured"))
    assert case.loss(kept).item() == pytest.approx(case.loss(captured).item(), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(case.gradient(kept), case.gradient(captured), rtol=1e-4, atol=1e-5)


@quick
@given(seed=seeds, temperature=st.sampled_from([0.5, 2.0, 3.0]))
def test_kept_needs_no_captured_temperature_and_is_the_dense_one_when_every_text_is_a_candidate(
    example, seed, temperature
):
    case = make(example, seed, 2, temperature=1.0)
    assert case.targets.temperatures == (1.0,)
    kept = ChunkKL(temperature, temperature_mode="kept")
    assert case.loss(kept).item() == pytest.approx(full_kl(case, temperature).item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("tail", ["renormalise", "fits"])
@quick
@given(seed=seeds, temperature=temperatures)
def test_without_a_rest_every_text_being_a_candidate_it_is_the_whole_kl(example, tail, seed, temperature):
    case = make(example, seed, 2, temperature=temperature)
    loss = case.loss(ChunkKL(temperature, tail=tail)).item()
    assert loss == pytest.approx(full_kl(case, temperature).item(), rel=1e-4, abs=1e-4)


@quick
@given(seed=seeds, chunk_k=st.integers(1, 4), temperature=temperatures)
def test_each_tail_is_what_it_says_over_the_candidates(example, seed, chunk_k, temperature):
    """Written out chunk by chunk: `renormalise` conditions both sides, `fits` the teacher alone."""
    case = make(example, seed, 2, chunk_k, top_k=4, temperature=temperature)
    ids_NK, is_kept_NK = ids_to_gather(case.targets)
    statistics = row_statistics(case.logits_NV, torch.eye(VOCAB), ids_NK, [temperature], is_kept_NK)
    q_J = candidate_logprobs(statistics, case.targets, temperature).exp()
    p_J = (case.targets.chunks.candidate_logprob_J.double() / temperature).exp()
    found = {"renormalise": 0.0, "fits": 0.0}
    for chunk in case.targets.chunks.candidate_chunk_J.unique():
        of_chunk = case.targets.chunks.candidate_chunk_J == chunk
        p, q = p_J[of_chunk] / p_J[of_chunk].sum(), q_J[of_chunk]
        found["fits"] += temperature**2 * (p * (p / q).log()).sum().item()
        found["renormalise"] += temperature**2 * (p * (p / (q / q.sum())).log()).sum().item()
    for tail, expected in found.items():
        assert case.loss(ChunkKL(temperature, tail=tail)).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_elsewhere_the_truth_is_taught_and_every_masked_row_counts_once(example):
    """Nine tokens in chunks of two: the last one is in none."""
    case = make(example, 1, 2, 3, length=9)
    told, alone = (ChunkKL(elsewhere=where) for where in ("truth", "nothing"))
    truth_N = case.logits_NV.log_softmax(dim=1).gather(1, case.targets.true_id_N[:, None]).squeeze(1)
    is_untold_N = case.targets.truth.chunk_of_row_N < 0
    assert 0 < is_untold_N.sum() < len(is_untold_N)
    assert case.loss(told).item() == pytest.approx((case.loss(alone) - truth_N[is_untold_N].sum()).item(), rel=1e-5)
    assert told.count(case.targets) == len(is_untold_N)
