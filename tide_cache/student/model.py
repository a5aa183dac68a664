"""The student as a module: from a batch to row statistics, in one forward that every rank runs whatever its batch."""

from collections.abc import Sequence

import torch
from torch import nn

from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.rows import masked_hidden
from tide_cache.records import RowStatistics, StudentBatch
from tide_cache.student.row_statistics import row_statistics


class Student(nn.Module):
    """A backbone under the block mask on [x_t, x_0], with the fused head on the masked rows."""

    def __init__(self, backbone: Backbone, block_size: int, slice_rows: int):
        super().__init__()
        self.backbone = backbone
        self._block_size = block_size
        self._slice_rows = slice_rows

    def forward(
        self, batch: StudentBatch, ids_NK: torch.Tensor, is_kept_NK: torch.Tensor, temperatures: Sequence[float]
    ) -> RowStatistics:
        """Give the statistics of every masked row.

        Args:
            batch: The micro-batch, on the student's device.
            ids_NK: Ids whose logits are wanted, -1 at padding.
            is_kept_NK: Which of them make up the kept set.
            temperatures: T of the statistics.
        """
        hidden_ND = masked_hidden(self.backbone, batch, self._block_size)
        return row_statistics(hidden_ND, self.backbone.head_VD, ids_NK, temperatures, is_kept_NK, self._slice_rows)
