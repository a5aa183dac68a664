"""The three weights of the cross-entropy against plain formulas, row by row."""

import pytest
import torch

from tide_cache.objectives.ce import CrossEntropy


def negative_log_likelihoods(case):
    logprobs_NV = case.logits_NV.detach().double().log_softmax(dim=1)
    return [-float(logprobs_NV[n, i]) for n, i in enumerate(case.targets.true_id_N.tolist())]


def rows_of(case):
    """Sample of each row."""
    return [b for b, view in enumerate(case.views) for _ in range(int(view.is_student_masked_L.sum()))]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scheduler_divides_by_t(example, seed):
    case = example(seed, num_samples=3)
    terms = [
        nll / (case.views[b].t + 1e-6) for nll, b in zip(negative_log_likelihoods(case), rows_of(case), strict=True)
    ]
    assert case.loss(CrossEntropy("scheduler")).item() == pytest.approx(sum(terms), rel=1e-5)
    assert CrossEntropy("scheduler").count(case.targets) == 27


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_realised_ratio_divides_single_tokens_by_the_share_that_is_masked(example, seed):
    """With one more token than there are, since a view may mask none: (L + 1) / m, here 10 / m."""
    case = example(seed, num_samples=3)
    masked = [view.is_student_masked_L.sum() for view in case.views]
    terms = [10 / masked[b] * nll for nll, b in zip(negative_log_likelihoods(case), rows_of(case), strict=True)]
    assert case.loss(CrossEntropy("realised_ratio")).item() == pytest.approx(sum(terms), rel=1e-4)
    assert CrossEntropy("realised_ratio").count(case.targets) == 27


@pytest.mark.parametrize("seed", [0, 1])
def test_uniform_is_a_mean_over_masked_tokens(example, seed):
    case = example(seed)
    nlls = negative_log_likelihoods(case)
    assert case.loss(CrossEntropy("uniform")).item() == pytest.approx(sum(nlls), rel=1e-5)
    assert CrossEntropy("uniform").count(case.targets) == len(nlls)


def test_the_gradient_is_the_weighted_difference_to_the_truth(example):
    case = example(0)
    one_hot_NV = torch.nn.functional.one_hot(case.targets.true_id_N, case.logits_NV.shape[1])
    expected_NV = (case.logits_NV.detach().softmax(dim=1) - one_hot_NV) * case.targets.time_weight_N[:, None]
    torch.testing.assert_close(case.gradient(CrossEntropy("scheduler")), expected_NV, rtol=1e-4, atol=1e-5)
