"""The fused head against the plain one: same values, same gradients, any slicing, no rows, nothing left over."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tide_cache.student import tiles
from tide_cache.student.row_statistics import row_statistics

TEMPERATURES = (1.0, 2.0, 0.5)


def inputs(num_rows=7, vocab=13, size=5, k=4, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, size, generator=random, dtype=dtype, requires_grad=True)
    head = torch.randn(vocab, size, generator=random, dtype=dtype, requires_grad=True)
    ids = torch.stack([torch.randperm(vocab, generator=random)[:k] for _ in range(num_rows)]) if num_rows else None
    ids = torch.zeros(0, k, dtype=torch.int64) if ids is None else ids
    if num_rows > 2:
        ids[1, 2:] = -1
        ids[2, :] = -1
    return hidden, head, ids


def naive(hidden, head, ids, temperatures, is_kept=None):
    is_kept = ids >= 0 if is_kept is None else is_kept & (ids >= 0)
    logits = hidden @ head.T
    gathered = torch.where(ids >= 0, logits.gather(1, ids.clamp_min(0)), 0)
    hidden_ids = torch.zeros_like(logits, dtype=torch.bool)
    for row, column in is_kept.nonzero().tolist():
        hidden_ids[row, ids[row, column]] = True
    log_z = torch.stack([(logits / t).logsumexp(1) for t in temperatures], 1)
    rest = torch.stack([(logits / t).masked_fill(hidden_ids, -torch.inf).logsumexp(1) for t in temperatures], 1)
    return gathered, log_z, rest


@pytest.mark.parametrize("slice_rows", [1, 3, 100])
@pytest.mark.parametrize("tile_logits", [1, 5, 1 << 20])
def test_values_and_gradients_equal_the_plain_head(slice_rows, tile_logits, monkeypatch):
    monkeypatch.setattr(tiles, "_TILE_LOGITS", tile_logits)
    hidden, head, ids = inputs()
    ids[3, 0] = ids[3, 1]  # the true token, asked for once as such and once as a kept id
    is_kept = torch.arange(ids.shape[1]) > 0
    got = row_statistics(hidden, head, ids, TEMPERATURES, is_kept.expand_as(ids), slice_rows)
    want = naive(hidden, head, ids, TEMPERATURES, is_kept.expand_as(ids))
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=random, dtype=part.dtype) for part in want]
    results = []
    for parts in ((got.gathered_NK, got.log_z_NT, got.log_rest_NT), want):
        loss = sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True))
        results.append(torch.autograd.grad(loss, (hidden, head)))
    for part, other in zip((got.gathered_NK, got.log_z_NT, got.log_rest_NT), want, strict=True):
        torch.testing.assert_close(part, other)
    for part, other in zip(*results, strict=True):
        torch.testing.assert_close(part, other)


def on_a_gpu(num_ids, vocab, ids_NK, is_kept_NK, slice_rows):
    """The tiles of a GPU."""
    rows = slice(0, len(ids_NK))
    yield tiles._WholeVocabulary(rows, slice(0, vocab), ids_NK, is_kept_NK, num_ids)


@pytest.mark.parametrize("cut", [tiles.tiles, on_a_gpu], ids=["cpu", "gpu"])
def test_padding_changes_neither_losses_nor_gradients(cut, monkeypatch):
    """49 ids in 64 rows, whose last ones would be the likeliest."""
    monkeypatch.setattr("tide_cache.student.row_statistics.tiles", cut)
    hidden, head, ids = inputs(vocab=49)
    padded = torch.cat([head.detach(), torch.full((15, head.shape[1]), 9.0)]).requires_grad_()
    results = []
    for weight in (head, padded):
        got = row_statistics(hidden, weight, ids, TEMPERATURES, num_ids=49)
        loss = (got.gathered_NK + 1).square().sum() + got.log_z_NT.square().sum()
        loss = loss + got.log_rest_NT.masked_fill(got.log_rest_NT.isinf(), 0).square().sum()
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    (loss, of_hidden, of_head), (padded_loss, padded_of_hidden, padded_of_head) = results
    torch.testing.assert_close(padded_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(padded_of_hidden, of_hidden, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(padded_of_head[:49], of_head, rtol=1e-9, atol=1e-9)
    assert (padded_of_head[49:] == 0).all()


def test_gradcheck():
    hidden, head, ids = inputs(num_rows=4)

    def outputs(hidden, head):
        stats = row_statistics(hidden, head, ids, (1.0, 2.0), slice_rows=2)
        return stats.gathered_NK, stats.log_z_NT, stats.log_rest_NT

    assert torch.autograd.gradcheck(outputs, (hidden, head))


def test_nothing_is_left_when_every_id_is_kept():
    hidden, head, _ = inputs(num_rows=3, vocab=6)
    ids = torch.arange(6).expand(3, 6).clone()
    stats = row_statistics(hidden, head, ids, (1.0, 2.0))
    assert (stats.log_rest_NT == -torch.inf).all()
    torch.testing.assert_close(stats.log_z_NT, naive(hidden, head, ids, (1.0, 2.0))[1])
    gradients = torch.autograd.grad(stats.log_z_NT.sum(), (hidden, head))
    assert all(g.isfinite().all() for g in gradients)
    want = torch.autograd.grad(naive(hidden, head, ids, (1.0, 2.0))[1].sum(), (hidden, head))
    for part, other in zip(gradients, want, strict=True):
        torch.testing.assert_close(part, other)


def test_no_row_gives_an_empty_result_on_the_graph():
    hidden, head, ids = inputs(num_rows=0)
    stats = row_statistics(hidden, head, ids, (1.0,))
    assert stats.log_z_NT.shape == (0, 1)
    gradients = torch.autograd.grad(stats.log_z_NT.sum() + stats.gathered_NK.sum(), (hidden, head))
    assert gradients[0].shape == (0, 5)
    assert (gradients[1] == 0).all()


def test_no_ids_asked_for():
    hidden, head, ids = inputs()
    stats = row_statistics(hidden, head, ids[:, :0], (1.0,))
    torch.testing.assert_close(stats.log_z_NT, stats.log_rest_NT)


def test_bfloat16_inputs_give_float32_statistics_close_to_float32():
    hidden, head, ids = inputs(dtype=torch.float32)
    low = row_statistics(hidden.bfloat16(), head.bfloat16(), ids, (1.0,))
    high = row_statistics(hidden.bfloat16().float(), head.bfloat16().float(), ids, (1.0,))
    assert low.log_z_NT.dtype == torch.float32
    torch.testing.assert_close(low.log_z_NT, high.log_z_NT)


def test_the_largest_logit_may_come_first_or_last_or_be_far_from_the_rest(monkeypatch):
    """Sums are kept relative to the largest logit so far, tile by tile."""
    monkeypatch.setattr(tiles, "_TILE_LOGITS", 6)
    logits = torch.tensor([[500.0, -500, 0, 3, 1, 2], [-500, 0, 3, 1, 2, 500], [-900, -901, -902, -903, -904, -905]])
    stats = row_statistics(logits, torch.eye(6), torch.zeros(3, 0, dtype=torch.int64), (1.0, 2.0))
    want = torch.stack([(logits / t).logsumexp(1) for t in (1.0, 2.0)], 1)
    torch.testing.assert_close(stats.log_z_NT, want)


def small_student(hidden, head, ids):
    stats = row_statistics(torch.tanh(hidden), head, ids, (1.0, 2.0), slice_rows=3)
    return (stats.log_z_NT.sum() - stats.log_rest_NT.sum() + stats.gathered_NK.square().sum()) / 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_module_around_it_may_be_compiled(backend):
    hidden, head, ids = inputs()
    want = torch.autograd.grad(small_student(hidden, head, ids), (hidden, head))
    compiled = torch.compile(small_student, backend=backend)
    for part, other in zip(torch.autograd.grad(compiled(hidden, head, ids), (hidden, head)), want, strict=True):
        torch.testing.assert_close(part, other)


def test_it_may_be_recomputed_in_backward():
    hidden, head, ids = inputs()
    want = torch.autograd.grad(small_student(hidden, head, ids), (hidden, head))
    loss = checkpoint(small_student, hidden, head, ids, use_reentrant=False)
    for part, other in zip(torch.autograd.grad(loss, (hidden, head)), want, strict=True):
        torch.testing.assert_close(part, other)


def test_a_tied_head_gets_the_gradients_of_both_its_uses():
    _, head, ids = inputs(vocab=7)
    results = []
    for statistics in (naive, lambda *x: (lambda s: (s.gathered_NK, s.log_z_NT, s.log_rest_NT))(row_statistics(*x))):
        hidden = torch.tanh(head[ids.clamp_min(0)[:, 0] % 7])
        (gradient,) = torch.autograd.grad(sum(part.sum() for part in statistics(hidden, head, ids, (1.0,))), head)
        results.append(gradient)
    torch.testing.assert_close(*results)
