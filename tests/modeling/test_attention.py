"""Both kinds of attention give softmax(q k / sqrt(A)) v over the allowed keys, with grouped heads."""

import math

import pytest
import torch

from tide_cache.modeling.attention import attend, block_diffusion_mask, prepare_mask, with_padding
from tide_cache.modeling.packing import pack_block

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def written_out(query_BHSA, key_BGSA, value_BGSA, mask_B1SS):
    out_BHSA = torch.empty_like(query_BHSA)
    per_head = query_BHSA.shape[1] // key_BGSA.shape[1]
    for b, h, q in torch.cartesian_prod(*(torch.arange(n) for n in query_BHSA.shape[:3])).tolist():
        allowed = mask_B1SS[b, 0, q].nonzero().squeeze(1)
        scores = key_BGSA[b, h // per_head, allowed] @ query_BHSA[b, h, q] / math.sqrt(query_BHSA.shape[3])
        out_BHSA[b, h, q] = scores.softmax(dim=0) @ value_BGSA[b, h // per_head, allowed]
    return out_BHSA


@pytest.mark.parametrize("kind", ["sdpa", "flex"])
def test_attention_is_the_formula(kind):
    generator = torch.Generator().manual_seed(0)
    is_real_BS = torch.ones(2, 18, dtype=torch.bool)
    is_real_BS[1, [4, 5, 10, 11, 16, 17]] = False
    mask_B1SS = with_padding(block_diffusion_mask(6, 4, num_views=2), is_real_BS)
    query, key, value = (torch.randn(2, heads, 18, 16, generator=generator) for heads in (4, 2, 2))
    out_BHSA = attend(query, key, value, prepare_mask(mask_B1SS, kind))
    torch.testing.assert_close(out_BHSA, written_out(query, key, value, mask_B1SS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sdpa", "flex"])
@pytest.mark.parametrize("num_views", [1, 2, 3])
@pytest.mark.parametrize("has_many_samples", [False, True])
def test_copies_attend_as_under_the_mask_of_the_whole_sequence(kind, num_views, has_many_samples):
    """Padding, samples that share a row, values and gradients: leaving pairs out changes nothing."""
    generator = torch.Generator().manual_seed(num_views)
    is_real_BL = torch.tensor([[True] * 12, [True] * 9 + [False] * 3])
    sample_BL = torch.tensor([[0] * 12, [0] * 8 + [1] * 4]) if has_many_samples else None
    copies = num_views + 1
    whole_B1SS = with_padding(
        block_diffusion_mask(12, 4, num_views),
        is_real_BL.repeat(1, copies),
        None if sample_BL is None else sample_BL.repeat(1, copies),
    )
    ids_BL = torch.zeros(2, 12, dtype=torch.int64)
    packed = pack_block(ids_BL[:, None].expand(-1, num_views, -1), ids_BL, is_real_BL, 4, sample_BL)
    query, key, value = (torch.randn(2, heads, copies * 12, 16, generator=generator) for heads in (4, 2, 2))
    outcomes = []
    for mask, views in ((whole_B1SS, 0), (prepare_mask(packed.mask_B1SS, kind, num_views), num_views)):
        inputs = [x.clone().requires_grad_(kind == "sdpa") for x in (query, key, value)]  # flex: no gradients on CPUs
        out = attend(*inputs, mask, views)
        outcomes.append([out])
        if kind == "sdpa":
            (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
            outcomes[-1] += [x.grad for x in inputs]
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_mask_of_copies_does_not_grow_with_the_views():
    ids_BL = torch.zeros(2, 12, dtype=torch.int64)
    is_real_BL = torch.ones(2, 12, dtype=torch.bool)
    sizes = {pack_block(ids_BL[:, None].expand(-1, n, -1), ids_BL, is_real_BL, 4).mask_B1SS.shape for n in (1, 4)}
    assert sizes == {(2, 1, 24, 24)}
