"""The estimate of a continuation's log-likelihood is unbiased, and exact where all masks can be tried."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch

from tide_cache.decoding.block_context import BlockContext
from tide_cache.evaluation.harness.likelihood import Continuation, continuation_logprobs, drawn_masks, every_mask
from tide_cache.views.random import KeyedRandom

MASK = 39


def score(backbone, context, tokens, **options):
    options = {"mask_id": MASK, "block_size": 4, "num_samples": 16, "seed": 0, **options}
    return continuation_logprobs(backbone, [Continuation(context, tokens)], **options)[0]


def any_order(backbone, context, tokens, block_size=4):
    """Reveal each block's tokens one by one, in every order, as the sampler sees them; the mean of the sums."""
    ids, total = list(context), 0.0
    edges = [len(ids), *range((len(ids) // block_size + 1) * block_size, len(ids) + len(tokens), block_size)]
    for begin, end in pairwise([*edges, len(ids) + len(tokens)]):
        block = tokens[begin - len(context) : end - len(context)]
        sums = []
        for order in permutations(range(len(block))):
            shown, logprob = dict(enumerate(ids)), 0.0
            length = -(-end // block_size) * block_size
            for place in order:
                row = [shown.get(position, MASK) for position in range(length)]
                start = length - block_size
                is_asked = torch.arange(start, length)[None] == begin + place
                with torch.no_grad():
                    clean = BlockContext(backbone, [row[:start]], block_size, use_cache=False)
                    logits = clean.masked_row_logits(torch.tensor([row[start:]]), is_asked)
                logprob += float(logits[0].log_softmax(0)[block[place]])
                shown[begin + place] = block[place]
            sums.append(logprob)
        total += float(np.mean(sums))
        ids += block
    return total


@pytest.mark.parametrize(
    ("context", "tokens"),
    [([5, 6], [7]), ([5, 6, 7, 8], [9]), ([5], [7, 8, 9]), ([5, 6, 7], [8, 9, 10, 11, 12, 13]), ([], [3, 4])],
)
def test_a_block_whose_masks_can_all_be_tried_is_exact(backbone, context, tokens):
    assert score(backbone, context, tokens) == pytest.approx(any_order(backbone, context, tokens), abs=1e-5)


def test_one_token_is_exact_whatever_the_seed_and_with_one_sample(backbone):
    values = {score(backbone, [5, 6], [7], seed=seed, num_samples=1) for seed in range(4)}
    assert values == {score(backbone, [5, 6], [7])}


def test_the_mean_of_many_draws_is_the_exact_value(backbone):
    context, tokens = [5], [7, 8, 9]
    draws = [score(backbone, context, tokens, seed=seed, num_samples=3) for seed in range(300)]
    exact = any_order(backbone, context, tokens)
    error = np.std(draws) / math.sqrt(len(draws))
    assert error > 0
    assert abs(np.mean(draws) - exact) < 4 * error
    assert error < abs(exact) / 30  # so that the line above would notice a wrong weight


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 5])
def test_drawn_masks_weigh_each_token_as_all_masks_do(num_tokens):
    """In the mean over draws a set has the weight that `every_mask` gives it, and those give each token one turn."""
    every = every_mask(num_tokens)
    np.testing.assert_allclose(every.weight_M @ every.is_masked_MN, 1)
    found = dict.fromkeys(map(tuple, every.is_masked_MN.tolist()), 0.0)
    for seed in range(4000):
        drawn = drawn_masks(num_tokens, 2, KeyedRandom("test", seed))
        assert drawn.is_masked_MN.any(axis=1).all()
        for mask, weight in zip(drawn.is_masked_MN.tolist(), drawn.weight_M, strict=True):
            found[tuple(mask)] += weight / 4000
    np.testing.assert_allclose(list(found.values()), every.weight_M, atol=0.05)


def test_texts_scored_together_get_what_each_gets_alone(backbone):
    texts = [Continuation([5] * k, [6, 7, 8, 9, 10][: k + 1]) for k in (4, 0, 3, 1, 2)] + [Continuation([1], [])]
    together = continuation_logprobs(
        backbone, texts, mask_id=MASK, block_size=4, num_samples=4, seed=1, batch_tokens=64
    )
    alone = [score(backbone, *text, num_samples=4, seed=1) for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[-1] == 0
