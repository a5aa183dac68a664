"""Which blocks of a masked batch are computed, and the places of its masked rows: found on the CPU before a forward.

Shape suffixes: B rows, L tokens of one copy, K blocks of one copy, N masked rows; R tokens that a masked copy keeps.
"""

import numpy as np
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
    view_N, position_N = np.divmod(row_position_N.numpy(), length)
    block_N, within_N = np.divmod(position_N, block_size)
    num_blocks = -(-length // block_size)
    has_wanted_BK = np.zeros((rows, num_blocks), bool)
    place_N = row_sample_N.numpy() * num_blocks
    place_N += block_N
    has_wanted_BK.reshape(-1)[place_N] = True
    counts_B = has_wanted_BK.sum(axis=1)
    num_kept = max(1, int(counts_B.max()))
    blocks_BK = np.argsort(~has_wanted_BK, axis=1, kind="stable")[:, :num_kept]
    index_BR = (blocks_BK[:, :, None] * block_size + np.arange(block_size)).reshape(rows, -1)
    is_kept_BK = np.arange(num_kept) < counts_B[:, None]
    is_kept_BR = is_kept_BK.repeat(block_size, axis=1) & (index_BR < length)
    last_block = int(np.flatnonzero(has_wanted_BK.any(axis=0))[-1:].sum())
    rank_BK = has_wanted_BK.cumsum(axis=1) - 1  # kept blocks keep their order
    within_N += rank_BK.reshape(-1)[place_N] * block_size
    within_N += view_N * index_BR.shape[1]
    return KeptBlocks(
        block_size=block_size,
        index_BR=torch.from_numpy(np.where(is_kept_BR, index_BR, 0)),
        is_kept_BR=torch.from_numpy(is_kept_BR),
        clean_length=min(length, max(1, last_block) * block_size),
        place_N=torch.from_numpy(within_N),
    )
