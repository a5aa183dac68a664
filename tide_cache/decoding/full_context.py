"""What a sampled block is computed from if a model sees everything: the whole text, including later masks.

Shape suffixes: B sequences, S columns, K columns of the current block, N masked rows, V vocabulary.
"""

from collections.abc import Sequence

import torch

from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.head import apply_head
from tide_cache.modeling.moving import moved
from tide_cache.modeling.packing import pack_full


class FullContext:
    """The texts of a batch, with their current blocks; returns logits of these. Like `BlockContext`, without keys."""

    def __init__(self, backbone: Backbone, canvases: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Keep the texts; nothing is computed yet.

        Args:
            backbone: The model, in evaluation mode.
            canvases: All tokens of each sequence, with masks where nothing is written yet.
            starts: Start of the current block of each.
        """
        self._backbone = backbone
        device, length = backbone.device, max(map(len, canvases))
        padded = [[*canvas, *[0] * (length - len(canvas))] for canvas in canvases]
        self._ids_BS = moved(torch.tensor(padded, dtype=torch.int64), device)
        lengths_B = moved(torch.tensor([len(canvas) for canvas in canvases]), device)
        self._is_real_BS = torch.arange(length, device=device) < lengths_B[:, None]
        self._start_B = moved(torch.tensor(starts, dtype=torch.int64), device)

    def masked_row_logits(
        self, ids_BK: torch.Tensor, rows: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return float32 logits [N, V] at the masked positions of the current block.

        Args:
            ids_BK: Tokens of the block, with the mask token where masked.
            rows: As for `BlockContext`.
        """
        place_BK = self._places(ids_BK.shape[1])
        hidden_BSD = self._backbone(pack_full(self._ids_BS.scatter(1, place_BK, ids_BK), self._is_real_BS))
        sample_N, in_block_N = rows.nonzero(as_tuple=True) if isinstance(rows, torch.Tensor) else rows
        return apply_head(hidden_BSD[sample_N, place_BK[sample_N, in_block_N]], self._backbone.head_VD)

    def extend(self, block_BK: torch.Tensor) -> None:
        """Write a finished block of every sequence, and move to the next."""
        self._ids_BS = self._ids_BS.scatter(1, self._places(block_BK.shape[1]), block_BK)
        self._start_B = self._start_B + block_BK.shape[1]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these sequences.

        Args:
            rows: Their indexes, in their new order.
        """
        row_R = moved(torch.tensor(rows, dtype=torch.int64), self._start_B.device)
        self._ids_BS, self._is_real_BS = self._ids_BS[row_R], self._is_real_BS[row_R]
        self._start_B = self._start_B[row_R]

    def _places(self, block_size: int) -> torch.Tensor:
        return self._start_B[:, None] + torch.arange(block_size, device=self._start_B.device)
