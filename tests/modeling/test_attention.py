"""Both kinds of attention give softmax(q k / sqrt(A)) v over the allowed keys, with grouped heads."""

import math

import pytest
import torch

from tide_cache.modeling.attention import attend, block_diffusion_mask, prepare_mask, with_padding

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
