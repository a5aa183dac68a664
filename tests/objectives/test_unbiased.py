"""The law of the cross-entropy's weights: over views, weight times mask has the mean 1 for every token."""

import numpy as np
import pytest
import torch

from tide_cache.config.sections import ViewsConfig
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.objectives import CrossEntropy
from tide_cache.records import RowStatistics, SampleId, SamplePair, ViewRecord
from tide_cache.views import draw_view
from tide_cache.views.schedule import mask_probability

NUM_VIEWS = 1600
MIXED = [1] * 32 + [4] * 8
combinations = pytest.mark.parametrize(
    ("schedule", "sampling", "complementary"),
    [(s, d, c) for s in ("linear", "cosine") for d in ("stratified", "uniform") for c in (False, True)],
)


def pair_of(sizes):
    ends = np.cumsum(sizes)
    spans = np.stack([ends - sizes, ends], axis=1)
    num_tokens = int(ends[-1])
    chunks = np.concatenate([spans, spans], axis=1).astype(np.int32)
    ids = np.arange(num_tokens, dtype=np.int32)
    return SamplePair(SampleId("sample"), ids, np.ones(num_tokens, bool), ids, chunks)


def weights_of(objective, pair, schedule, sampling, complementary):
    """Weight of each token in each view, 0 where it is shown [V, L], as the gradient of the sum in the log-probs."""
    plan = ViewsConfig(NUM_VIEWS, 0, sampling, schedule, complementary)
    views = [draw_view(pair, number, plan) for number in range(NUM_VIEWS)]
    layout = BatchLayout(998, 999, 1, schedule=schedule, complementary=complementary)
    batch, targets = collate([ViewRecord(pair, view, None) for view in views], layout)
    logit_N1 = torch.zeros(len(targets.true_id_N), 1, requires_grad=True)
    nothing_N1 = torch.zeros(len(targets.true_id_N), 1)
    objective.total(RowStatistics(logit_N1, nothing_N1, nothing_N1, (1.0,)), targets).backward()
    weight_VL = np.zeros((NUM_VIEWS, len(pair.student_ids_L)))
    weight_VL[batch.row_sample_N, batch.row_position_N] = -logit_N1.grad[:, 0].numpy()
    return weight_VL, np.array([mask_probability(view.t, schedule) for view in views])


def parts(complementary):
    return [slice(0, None, 2), slice(1, None, 2)] if complementary else [slice(None)]


@combinations
def test_every_token_counts_once_whatever_its_chunk(schedule, sampling, complementary):
    pair = pair_of(MIXED)
    weight_VL, _ = weights_of(CrossEntropy("realised_ratio"), pair, schedule, sampling, complementary)
    for part in parts(complementary):
        assert weight_VL[part, :32].mean() == pytest.approx(1, abs=0.06)
        assert weight_VL[part, 32:].mean() == pytest.approx(1, abs=0.06)


@combinations
def test_published_weights_count_single_tokens_once_and_every_noise_level_alike(schedule, sampling, complementary):
    weight_VL, chance_V = weights_of(CrossEntropy("scheduler"), pair_of([1] * 256), schedule, sampling, complementary)
    for part in parts(complementary):
        assert weight_VL[part].mean() == pytest.approx(1, abs=0.05)
        assert (weight_VL[part].mean(axis=1) * chance_V[part]).mean() == pytest.approx(0.5, abs=0.03)


def test_published_weights_count_chunks_by_their_size():
    """As the paper's code: 1 + 1/2 + ... + 1/n for a token in a chunk of n, and 1/n in complements."""
    weight_VL, _ = weights_of(CrossEntropy("scheduler"), pair_of([4] * 64), "linear", "stratified", True)
    assert weight_VL[0::2].mean() == pytest.approx(25 / 12, abs=0.06)
    assert weight_VL[1::2].mean() == pytest.approx(1 / 4, abs=0.02)
