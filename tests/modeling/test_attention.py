"""Both kinds of attention give softmax(q k / sqrt(A)) v over the allowed keys, with grouped heads."""

import math

import pytest
import torch

from tide_cache.modeling.attention import Copies, attend, block_diffusion_mask, prepare_mask, with_padding
from tide_cache.modeling.kept import keep_blocks
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
    by_copy = prepare_mask(packed.mask_B1SS, kind, packed.copies)
    for mask, of_views in ((whole_B1SS, None), (by_copy, Copies(num_views, 12))):
        inputs = [x.clone().requires_grad_(kind == "sdpa") for x in (query, key, value)]  # flex: no gradients on CPUs
        out = attend(*inputs, mask, of_views)
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


@pytest.mark.parametrize("kind", ["sdpa", "flex"])
@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("has_many_samples", [False, True])
def test_what_is_kept_attends_as_in_the_whole(kind, num_views, has_many_samples):
    """Blocks without a wanted position are left out of the masked copies: what is wanted stays as it was."""
    generator = torch.Generator().manual_seed(num_views)
    length, block_size = 14, 4
    is_real_BL = torch.tensor([[True] * 14, [True] * 9 + [False] * 5])
    sample_BL = torch.tensor([[0] * 14, [0] * 8 + [1] * 6]) if has_many_samples else None
    wanted_BL = torch.zeros(2, length, dtype=torch.bool)
    wanted_BL[0, [5, 9, 10]] = wanted_BL[1, [8]] = True
    ids_BL = torch.arange(2 * length).view(2, length)
    ids_BnL = ids_BL[:, None] + 100 * torch.arange(1, num_views + 1)[:, None]
    whole = pack_block(ids_BnL, ids_BL, is_real_BL, block_size, sample_BL)
    row_N, view_N, position_N = wanted_BL[:, None].expand(-1, num_views, -1).nonzero(as_tuple=True)
    kept = keep_blocks(row_N, view_N * length + position_N, (2, length), block_size)
    packed = pack_block(ids_BnL, ids_BL, is_real_BL, block_size, sample_BL, kept)
    assert (kept.view_length, kept.clean_length) == (8, 8)
    assert packed.ids_BS.shape == packed.positions_BS.shape == (2, num_views * 8 + 8)

    place_N = kept.place_N
    assert torch.equal(packed.ids_BS[row_N, place_N], ids_BnL[row_N, view_N, position_N])
    tables = [torch.randn(1000, heads, 16, generator=generator) for heads in (4, 2, 2)]
    outcomes = []
    for one, places_N in ((whole, view_N * length + position_N), (packed, place_N)):
        # Whatever stands in a token depends on its id and its place alone, as before the first layer of a model.
        query, key, value = (
            (table[one.ids_BS] + one.positions_BS[..., None, None] / 7).transpose(1, 2) for table in tables
        )
        out_BHSA = attend(query, key, value, prepare_mask(one.mask_B1SS, kind, one.copies), one.copies)
        outcomes.append(out_BHSA[row_N, :, places_N])
    torch.testing.assert_close(*outcomes, atol=1e-5, rtol=1e-5)


def test_nothing_wanted_still_packs():
    ids_BL = torch.zeros(2, 6, dtype=torch.int64)
    nothing = torch.zeros(0, dtype=torch.int64)
    kept = keep_blocks(nothing, nothing, (2, 6), 4)
    packed = pack_block(ids_BL[:, None], ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), 4, kept=kept)
    assert packed.ids_BS.shape == (2, 8)
    assert not kept.is_kept_BR.any()
