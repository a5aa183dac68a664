"""What goes into one forward: [x_t1, ..., x_tn, x_0] under the block mask, or x_t alone."""

from dataclasses import dataclass

import torch

from tide_cache.modeling.attention import block_diffusion_mask, with_padding


@dataclass(frozen=True, eq=False)
class PackedInput:
    """Arguments of a backbone's forward.

    Attributes:
        ids_BS: Token ids, int64.
        positions_BS: Position ids, int64, repeated for each copy.
        mask_B1SS: True where a query may attend to a key. With views it is the mask of [x_t, x_0] for one of them, of
            size 2 L: all views of a sample have the same.
        num_views: Masked copies in front of the clean one; 0 where the mask is that of the whole sequence.
        block_size: Tokens per block, where the mask lies within that of `block_diffusion_mask` and leaves out little
            more; None elsewhere, as where samples share a row.
    """

    ids_BS: torch.Tensor
    positions_BS: torch.Tensor
    mask_B1SS: torch.Tensor
    num_views: int = 0
    block_size: int | None = None


def pack_block(
    x_t_BnL: torch.Tensor,
    x_0_BL: torch.Tensor,
    is_real_BL: torch.Tensor,
    block_size: int,
    sample_BL: torch.Tensor | None = None,
) -> PackedInput:
    """Pack masked views of each sample in front of its clean copy: the `block` context.

    Row (view v, position l) of the output lies at index v * L + l.

    Args:
        x_t_BnL: n masked views, int64.
        x_0_BL: The clean tokens.
        is_real_BL: False at padding.
        block_size: Tokens per block.
        sample_BL: Where several samples share a row, which of them each token belongs to; each begins at a multiple of
            the block size, has positions of its own, and sees no other.
    """
    num_rows, num_views, length = x_t_BnL.shape
    mask_SS = block_diffusion_mask(length, block_size, device=x_0_BL.device)
    positions_BL = torch.arange(length, device=x_0_BL.device).expand(num_rows, -1)
    if sample_BL is not None:
        is_first_BL = torch.ones_like(sample_BL, dtype=torch.bool)
        is_first_BL[:, 1:] = sample_BL[:, 1:] != sample_BL[:, :-1]
        positions_BL = positions_BL - torch.where(is_first_BL, positions_BL, 0).cummax(dim=1).values
        sample_BL = sample_BL.repeat(1, 2)
    return PackedInput(
        ids_BS=torch.cat([x_t_BnL.reshape(num_rows, -1), x_0_BL], dim=1),
        positions_BS=positions_BL.repeat(1, num_views + 1),
        mask_B1SS=with_padding(mask_SS, is_real_BL.repeat(1, 2), sample_BL),
        num_views=num_views,
        block_size=block_size if sample_BL is None else None,
    )


def pack_full(x_t_BL: torch.Tensor, is_real_BL: torch.Tensor) -> PackedInput:
    """Give x_t alone with bidirectional attention: the `full` context.

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
