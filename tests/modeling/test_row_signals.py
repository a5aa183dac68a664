"""What is kept of a distribution, against the full one in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_cache.config.sections import SignalsConfig
from tide_cache.modeling.row_signals import _SEGMENT, largest, row_signals

TEMPERATURES = (1.0, 2.0, 0.5)
quick = settings(max_examples=40, deadline=None)


def inputs(num_rows=9, vocab=23, size=6, seed=0, scale=2.0):
    random = torch.Generator().manual_seed(seed)
    hidden_ND = scale * torch.randn(num_rows, size, generator=random)
    head_VD = torch.randn(vocab, size, generator=random)
    true_ids_N = torch.randint(vocab, (num_rows,), generator=random)
    return hidden_ND, head_VD, true_ids_N, torch.ones(num_rows, dtype=torch.bool)


def full_logprobs(hidden_ND, head_VD):
    return (hidden_ND.double() @ head_VD.double().T).log_softmax(dim=1)


configs = st.builds(
    SignalsConfig,
    temperatures=st.just(TEMPERATURES),
    top_k=st.integers(1, 30),
    top_p=st.floats(0.05, 1) | st.sampled_from([0.999, 0.9999, 1.0]),
)


ROUNDING = 5e-6
"""Of a mass in float32: a logit of 20 is known to 1e-6, and so is its probability, of which several are added up."""


@quick
@given(signals=configs, seed=st.integers(0, 99), scale=st.sampled_from([0.1, 2.0, 8.0]))
def test_signals_equal_the_full_distribution(signals, seed, scale):
    hidden_ND, head_VD, true_ids_N, wants_N = inputs(seed=seed, scale=scale)
    got = row_signals(hidden_ND, head_VD, true_ids_N, wants_N * signals.top_p, signals, slice_rows=4)
    full_NV = full_logprobs(hidden_ND, head_VD)
    for n, logprobs_V in enumerate(full_NV):
        count = int(got.counts_N[n])
        ids = got.ids_NK[n, :count]
        assert got.truth_logprobs_N[n] == pytest.approx(float(logprobs_V[true_ids_N[n]]), abs=1e-4)
        assert bool(got.is_top1_N[n]) == (int(logprobs_V.argmax()) == int(true_ids_N[n]))
        assert len(set(ids.tolist())) == count
        torch.testing.assert_close(got.logprobs_NK[n, :count].double(), logprobs_V[ids], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(
            got.logprobs_NK[n, :count].double(), logprobs_V.sort(descending=True).values[:count], atol=1e-4, rtol=1e-5
        )
        is_rest_V = torch.ones_like(logprobs_V, dtype=torch.bool)
        is_rest_V[ids] = False
        for index, temperature in enumerate(TEMPERATURES):
            whole = (logprobs_V / temperature).logsumexp(0)
            rest = (logprobs_V[is_rest_V] / temperature).logsumexp(0) if is_rest_V.any() else -torch.inf
            assert got.log_partition_NT[n, index] == pytest.approx(float(whole), abs=1e-4)
            assert got.log_tail_NT[n, index] == pytest.approx(float(rest), abs=1e-3)


@quick
@given(signals=configs, seed=st.integers(0, 99))
def test_the_fewest_ids_that_hold_the_mass_are_kept(signals, seed):
    hidden_ND, head_VD, true_ids_N, wants_N = inputs(seed=seed)
    got = row_signals(hidden_ND, head_VD, true_ids_N, wants_N * signals.top_p, signals, slice_rows=100)
    limit = min(signals.top_k, 23)
    for n, logprobs_V in enumerate(full_logprobs(hidden_ND, head_VD)):
        mass_V = logprobs_V.exp().sort(descending=True).values.cumsum(0)
        count = int(got.counts_N[n])
        assert 1 <= count <= limit
        if count < limit:
            assert mass_V[count - 1] >= signals.top_p - ROUNDING
        if count > 1:
            assert mass_V[count - 2] < signals.top_p + ROUNDING


@quick
@given(signals=configs, seed=st.integers(0, 99))
def test_kept_mass_and_tail_make_up_the_partition_at_every_temperature(signals, seed):
    hidden_ND, head_VD, true_ids_N, wants_N = inputs(seed=seed)
    got = row_signals(hidden_ND, head_VD, true_ids_N, wants_N * signals.top_p, signals, slice_rows=100)
    is_kept_NK = torch.arange(got.ids_NK.shape[1]) < got.counts_N[:, None]
    for index, temperature in enumerate(TEMPERATURES):
        kept_N = ((got.logprobs_NK / temperature).exp() * is_kept_NK).sum(dim=1)
        whole_N = got.log_partition_NT[:, index].exp()
        torch.testing.assert_close(kept_N + got.log_tail_NT[:, index].exp(), whole_N, rtol=2e-5, atol=0)
    assert (got.log_partition_NT[:, 0] == 0).all()


@pytest.mark.parametrize("slice_rows", [1, 4, 9, 100])
def test_slices_do_not_matter(slice_rows):
    signals = SignalsConfig(temperatures=TEMPERATURES, top_k=8, top_p=0.95)
    whole = row_signals(*inputs(), signals, slice_rows=9)
    sliced = row_signals(*inputs(), signals, slice_rows=slice_rows)
    for name in ("is_top1_N", "counts_N", "ids_NK"):
        assert torch.equal(getattr(whole, name), getattr(sliced, name)), name
    for name in ("truth_logprobs_N", "logprobs_NK", "log_tail_NT", "log_partition_NT"):
        torch.testing.assert_close(getattr(whole, name), getattr(sliced, name), atol=1e-5, rtol=1e-5)


def test_all_mass_means_every_id_even_where_float32_loses_the_tail():
    """A sum of float32 probabilities reaches one long before the last id."""
    hidden_ND = torch.tensor([[0.0, 30, 5, 1, 2], [9, 9, 9, 9, 9]])
    signals = SignalsConfig(temperatures=TEMPERATURES, top_k=5, top_p=1.0)
    got = row_signals(hidden_ND, torch.eye(5), torch.tensor([1, 0]), torch.ones(2), signals, 10)
    assert got.counts_N.tolist() == [5, 5]
    assert (got.log_tail_NT == -math.inf).all()


def test_candidates_are_kept_where_they_are_wanted_only():
    hidden_ND, head_VD, true_ids_N, _ = inputs()
    wants_N = torch.arange(9) % 3 == 1
    signals = SignalsConfig(temperatures=TEMPERATURES, top_k=8, top_p=0.9)
    got = row_signals(hidden_ND, head_VD, true_ids_N, wants_N * signals.top_p, signals, slice_rows=4)
    everywhere = row_signals(
        hidden_ND, head_VD, true_ids_N, torch.full(wants_N.shape, signals.top_p), signals, slice_rows=4
    )
    assert (got.counts_N > 0).tolist() == wants_N.tolist()
    torch.testing.assert_close(got.truth_logprobs_N, everywhere.truth_logprobs_N)
    torch.testing.assert_close(got.log_tail_NT[wants_N], everywhere.log_tail_NT[wants_N])
    assert torch.equal(got.ids_NK[wants_N], everywhere.ids_NK[wants_N])


def test_no_candidates_at_all():
    got = row_signals(*inputs(), SignalsConfig(kinds=("truth",), temperatures=(1.0,)), slice_rows=4)
    assert got.ids_NK.shape == (9, 0)
    assert (got.counts_N == 0).all()
    assert got.truth_logprobs_N.isfinite().all()


@pytest.mark.parametrize("vocab", [32, 16 * _SEGMENT])
def test_no_rows(vocab):
    signals = SignalsConfig(temperatures=TEMPERATURES, top_k=4, top_p=0.9)
    got = row_signals(*inputs(num_rows=0, vocab=vocab), signals, slice_rows=4)
    assert got.truth_logprobs_N.shape == (0,)
    assert got.ids_NK.shape == (0, 4)
    assert got.log_tail_NT.shape == (0, 3)


def test_bfloat16_states_give_float32_statistics():
    """Half precision rounds the inputs; the products are summed in float32."""
    hidden_ND, head_VD, true_ids_N, wants_N = inputs(scale=8.0)
    signals = SignalsConfig(temperatures=TEMPERATURES, top_k=8, top_p=0.9)
    low = row_signals(hidden_ND.bfloat16(), head_VD.bfloat16(), true_ids_N, wants_N * signals.top_p, signals, 4)
    same = row_signals(
        hidden_ND.bfloat16().float(), head_VD.bfloat16().float(), true_ids_N, wants_N * signals.top_p, signals, 4
    )
    assert low.truth_logprobs_N.dtype == low.log_tail_NT.dtype == torch.float32
    torch.testing.assert_close(low.truth_logprobs_N, same.truth_logprobs_N)
    torch.testing.assert_close(low.log_tail_NT, same.log_tail_NT)


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_a_vocabulary_of_many_segments_gives_the_full_distribution(scale):
    """The largest ids are looked for in a few segments of the vocabulary; its last, shorter one takes part."""
    hidden_ND, head_VD, true_ids_N, _ = inputs(num_rows=20, vocab=3_001, scale=scale)
    signals = SignalsConfig(temperatures=(1.0, 2.0, 3.0), top_k=8, top_p=0.9)
    got = row_signals(hidden_ND, head_VD, true_ids_N, torch.full((20,), 0.9), signals, slice_rows=7)
    full_NV = full_logprobs(hidden_ND, head_VD)
    best_NK, best_ids_NK = full_NV.topk(8, dim=1)
    assert torch.equal(got.ids_NK, best_ids_NK)
    torch.testing.assert_close(got.logprobs_NK.double(), best_NK, atol=1e-4, rtol=1e-5)
    rest_NV = full_NV.clone()
    for n, count in enumerate(got.counts_N.tolist()):
        rest_NV[n, best_ids_NK[n, :count]] = -torch.inf
    for index, temperature in enumerate(signals.temperatures):
        tail_N = (rest_NV / temperature).logsumexp(dim=1)
        whole_N = (full_NV / temperature).logsumexp(dim=1)
        torch.testing.assert_close(got.log_tail_NT[:, index].double(), tail_N, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(got.log_partition_NT[:, index].double(), whole_N, atol=1e-4, rtol=1e-4)


@quick
@given(seed=st.integers(0, 999), count=st.integers(1, 6), vocab=st.sampled_from([100, 1_664, 2_000, 2_047]))
def test_the_largest_are_those_of_a_full_sort(seed, count, vocab):
    """With many equal values, and some that are -inf, NaN or infinite."""
    random = torch.Generator().manual_seed(seed)
    values_NV = torch.randint(-40, 40, (5, vocab), generator=random).float()
    values_NV[1, :] = -torch.inf
    values_NV[2, 7] = torch.inf
    values_NV[3, vocab - 1] = torch.nan
    values_NV[4, :] = torch.where(torch.rand(vocab, generator=random) < 0.99, -torch.inf, values_NV[4])
    top_NK, ids_NK = largest(values_NV, count)
    torch.testing.assert_close(top_NK, values_NV.topk(count, dim=1).values, equal_nan=True)
    torch.testing.assert_close(values_NV.gather(1, ids_NK), top_NK, equal_nan=True)
    assert all(len(set(ids)) == count for ids in ids_NK.tolist())
