"""The input of one forward: [x_t1, ..., x_tn, x_0] under the block mask, x_t alone, or x_0 under a causal mask.

Shape suffixes: B rows, L tokens of one copy, S packed positions, n masked views; R tokens that a masked copy keeps,
C tokens of the clean copy, M = R + C.
"""

from dataclasses import dataclass

import torch

from tide_cache.modeling.attention import Copies, block_diffusion_mask, with_padding
from tide_cache.records import KeptBlocks


@dataclass(frozen=True, eq=False)
class PackedInput:
    """Arguments of a backbone's forward.

    Attributes:
        ids_BS: Token ids, int64.
        positions_BS: Position ids, int64, repeated for each copy.
        mask_B1SS: True where a query may attend to a key. With views it is the mask of [x_t, x_0] for one view; all
            views of a sample have the same mask.
        copies: The masked copies before the clean one; None if the mask is that of the whole sequence.
    """

    ids_BS: torch.Tensor
    positions_BS: torch.Tensor
    mask_B1SS: torch.Tensor
    copies: Copies | None = None


def pack_block(
    x_t_BnL: torch.Tensor,
    x_0_BL: torch.Tensor,
    is_real_BL: torch.Tensor,
    block_size: int,
    sample_BL: torch.Tensor | None = None,
    kept: KeptBlocks | None = None,
) -> PackedInput:
    """Pack masked views of each sample in front of its clean copy: the `block` context.

    Row (view v, position l) of the output has index v * L + l, or the one that `kept.place_N` gives.

    Args:
        x_t_BnL: n masked views, int64.
        x_0_BL: The clean tokens.
        is_real_BL: False at padding.
        block_size: Tokens per block.
        sample_BL: If several samples share a row, the sample of each token. Each sample begins at a multiple of the
            block size, has separate positions, and sees no other.
        kept: The parts of the copies to compute, on the device of the tokens; None for all.
    """
    num_rows, num_views, length = x_t_BnL.shape
    device = x_0_BL.device
    positions_BL = torch.arange(length, device=device).expand(num_rows, -1)
    if sample_BL is not None:
        is_first_BL = torch.ones_like(sample_BL, dtype=torch.bool)
        is_first_BL[:, 1:] = sample_BL[:, 1:] != sample_BL[:, :-1]
        positions_BL = positions_BL - torch.where(is_first_BL, positions_BL, 0).cummax(dim=1).values
        sample_BL = sample_BL.repeat(1, 2)
    mask_SS, is_real_BS = block_diffusion_mask(length, block_size, device=device), is_real_BL.repeat(1, 2)
    if kept is None:
        return PackedInput(
            ids_BS=torch.cat([x_t_BnL.flatten(1), x_0_BL], dim=1),
            positions_BS=positions_BL.repeat(1, num_views + 1),
            mask_B1SS=with_padding(mask_SS, is_real_BS, sample_BL),
            copies=Copies(num_views, length),
        )
    index_BR, clean_length = kept.index_BR, kept.clean_length
    index_BM = torch.cat([index_BR, length + torch.arange(clean_length, device=device).expand(num_rows, -1)], dim=1)
    is_real_BM = is_real_BS.gather(1, index_BM)
    is_real_BM[:, : kept.view_length] &= kept.is_kept_BR
    x_t_BnR = x_t_BnL.gather(2, index_BR[:, None].expand(-1, num_views, -1))
    view_positions_BR = positions_BL.gather(1, index_BR)
    return PackedInput(
        ids_BS=torch.cat([x_t_BnR.flatten(1), x_0_BL[:, :clean_length]], dim=1),
        positions_BS=torch.cat([view_positions_BR.repeat(1, num_views), positions_BL[:, :clean_length]], dim=1),
        mask_B1SS=with_padding(
            mask_SS[index_BM[:, :, None], index_BM[:, None]],
            is_real_BM,
            None if sample_BL is None else sample_BL.gather(1, index_BM),
        ),
        copies=Copies(num_views, kept.view_length),
    )


def pack_causal(x_0_BL: torch.Tensor, is_real_BL: torch.Tensor) -> PackedInput:
    """Return the clean tokens alone; each sees itself and those before it: the `causal` context.

    Args:
        x_0_BL: The clean tokens, int64.
        is_real_BL: False at padding.
    """
    rows, length = x_0_BL.shape
    position_L = torch.arange(length, device=x_0_BL.device)
    return PackedInput(
        ids_BS=x_0_BL,
        positions_BS=position_L.expand(rows, -1),
        mask_B1SS=with_padding(position_L[:, None] >= position_L, is_real_BL),
    )


def pack_full(x_t_BL: torch.Tensor, is_real_BL: torch.Tensor) -> PackedInput:
    """Return x_t alone with bidirectional attention: the `full` context.

    Args:
        x_t_BL: One masked view of each sample, int64.
        is_real_BL: False at padding.
    """
    length = x_t_BL.shape[1]
    everything_LL = torch.ones(length, length, dtype=torch.bool, device=x_t_BL.device)
    return PackedInput(
        ids_BS=x_t_BL,
        positions_BS=torch.arange(length, device=x_t_BL.device).expand(x_t_BL.shape[0], -1),
        mask_B1SS=with_padding(everything_LL, is_real_BL),
    )
