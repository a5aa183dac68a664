"""What a sampled block is computed from: the clean blocks before it, whose keys and values can be cached.

Sequences of different lengths are padded in front by whole blocks, so that their current blocks are in the same
columns. No token attends to padding, and positions are counted without it.

Shape suffixes: B sequences, P columns of clean blocks, K columns of the current block, Q query columns, S key columns,
N masked rows, V vocabulary.
"""

from collections.abc import Sequence

import torch

from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.head import apply_head
from tide_cache.modeling.moving import moved
from tide_cache.modeling.packing import PackedInput


class BlockContext:
    """The clean blocks of a batch; returns logits of the block after them."""

    def __init__(
        self, backbone: Backbone, prefixes: Sequence[Sequence[int]], block_size: int, use_cache: bool = True
    ) -> None:
        """Keep the clean blocks; nothing is computed yet.

        Args:
            backbone: The model, in evaluation mode.
            prefixes: Tokens of each sequence's clean blocks: a multiple of the block size, which may be 0.
            block_size: Tokens per block.
            use_cache: Compute each clean block once and keep its keys and values; otherwise all in every forward.
        """
        assert all(len(prefix) % block_size == 0 for prefix in prefixes)
        self._backbone = backbone
        self._block_size = block_size
        self._cache = backbone.new_cache() if use_cache else None
        self._num_cached = 0
        length = max(map(len, prefixes))
        device = backbone.device
        padding = [length - len(prefix) for prefix in prefixes]
        self._padding_B = moved(torch.tensor(padding), device)
        padded = [[0] * (length - len(prefix)) + list(prefix) for prefix in prefixes]
        self._pending_BP = moved(torch.tensor(padded, dtype=torch.int64), device)
        """Clean columns that are not in the cache; without a cache, all of them."""

    def masked_row_logits(
        self, ids_BK: torch.Tensor, rows: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return float32 logits [N, V] at the masked positions of the current block.

        Clean blocks that are not in the cache run in the same forward and are added to it.

        Args:
            ids_BK: Tokens of the block, with the mask token where masked.
            rows: The wanted rows: sequence and place in the block of each, both [N]; or a mask [B, K], for which the
                host waits for a GPU.
        """
        num_clean = self._num_cached + self._pending_BP.shape[1]
        num_open = ids_BK.shape[1]
        column_S = torch.arange(num_clean + num_open, device=ids_BK.device)
        column_Q = column_S[self._num_cached :]
        packed = PackedInput(
            ids_BS=torch.cat([self._pending_BP, ids_BK], dim=1),
            positions_BS=(column_Q - self._padding_B[:, None]).clamp(min=0),
            mask_B1SS=self._mask(column_Q, column_S),
        )
        cache = self._cache if num_clean else None  # an empty one would not survive `keep`
        hidden_BQD = self._backbone(packed, cache)
        if cache is not None:
            cache.crop(-num_open)
            self._pending_BP, self._num_cached = self._pending_BP[:, :0], num_clean
        return apply_head(hidden_BQD[:, -num_open:][rows], self._backbone.head_VD)

    def extend(self, block_BK: torch.Tensor) -> None:
        """Append a finished block of every sequence; it is computed with the next one."""
        self._pending_BP = torch.cat([self._pending_BP, block_BK], dim=1)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these sequences.

        Args:
            rows: Their indexes, in their new order.
        """
        row_R = moved(torch.tensor(rows, dtype=torch.int64), self._padding_B.device)
        self._padding_B, self._pending_BP = self._padding_B[row_R], self._pending_BP[row_R]
        if self._cache is not None:
            self._cache.batch_select_indices(row_R)

    def _mask(self, column_Q: torch.Tensor, column_S: torch.Tensor) -> torch.Tensor:
        """Let each token see its own and earlier blocks, as the clean copy in training does; padding sees itself."""
        block_Q, block_S = column_Q // self._block_size, column_S // self._block_size
        is_real_BS = column_S >= self._padding_B[:, None]
        mask_BQS = (block_S <= block_Q[:, None]) & is_real_BS[:, None, :]
        return (mask_BQS | (column_S == column_Q[:, None]))[:, None]
