"""Which blocks of a masked batch are computed, and the places of its masked rows: found on the CPU before a forward.

Shape suffixes: B rows, L tokens of one copy, K blocks of one copy, N masked rows; R tokens that a masked copy keeps.
"""

import torch

from tide_cache.records import KeptBlocks


def keep_blocks(
    row_sample_N: torch.Tensor, row_position_N: torch.Tensor, shape: tuple[int, int], block_size: int
) -> KeptBlocks:
    """Return the blocks that hold masked rows.

    Args:
        row_sample_N: As in `StudentBatch`, on the CPU: sizes depend on its values.
        row_position_N: Likewise; with several views, position l of view v is v * L + l.
        shape: [B, L].
        block_size: Tokens per block.
    """
    rows, length = shape
    view_N, position_N = row_position_N // length, row_position_N % length
    num_blocks = -(-length // block_size)
    has_wanted_BK = torch.zeros(rows, num_blocks, dtype=torch.bool)
    has_wanted_BK[row_sample_N, position_N // block_size] = True
    counts_B = has_wanted_BK.sum(dim=1)
    num_kept = max(1, int(counts_B.max()))
    blocks_BK = has_wanted_BK.int().argsort(dim=1, descending=True, stable=True)[:, :num_kept]
    index_BR = (blocks_BK[:, :, None] * block_size + torch.arange(block_size)).flatten(1)
    is_kept_BK = torch.arange(num_kept) < counts_B[:, None]
    is_kept_BR = is_kept_BK.repeat_interleave(block_size, dim=1) & (index_BR < length)
    last_B = (has_wanted_BK * torch.arange(num_blocks)).amax(dim=1)
    rank_BK = has_wanted_BK.cumsum(dim=1) - 1  # kept blocks keep their order
    place_in_view_N = rank_BK[row_sample_N, position_N // block_size] * block_size + position_N % block_size
    return KeptBlocks(
        block_size=block_size,
        index_BR=torch.where(is_kept_BR, index_BR, 0),
        is_kept_BR=is_kept_BR,
        clean_length=min(length, max(1, int(last_B.max())) * block_size),
        place_N=view_N * index_BR.shape[1] + place_in_view_N,
    )
