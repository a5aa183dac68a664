"""The student as a module: from a batch to row statistics, in one forward that every rank runs for every batch."""

from collections.abc import Sequence

import torch
from torch import nn

from tide_cache.config.settings import HeadWay
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.rows import masked_hidden
from tide_cache.records import StudentBatch
from tide_cache.student.row_statistics import row_statistics


class Student(nn.Module):
    """A backbone under the block mask on [x_t, x_0], with the fused head on the masked rows."""

    def __init__(self, backbone: Backbone, block_size: int, slice_rows: int, way: HeadWay = "auto"):
        super().__init__()
        self.backbone = backbone
        self.head = _Head(backbone.padded_head_WD, slice_rows, way, len(backbone.head_VD))
        self._block_size = block_size

    def forward(
        self, batch: StudentBatch, ids_NK: torch.Tensor, is_kept_NK: torch.Tensor, temperatures: Sequence[float]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the statistics of every masked row: the three tensors of `RowStatistics`, in its order.

        They are plain tensors because DeepSpeed hooks into what the student and its head return, and does not look
        into dataclasses. Without the hook, the bfloat16 optimizer counted early micro-batches of a step several times.

        Args:
            batch: The micro-batch, on the student's device.
            ids_NK: Ids whose logits are wanted, -1 at padding.
            is_kept_NK: Which of them make up the kept set.
            temperatures: T of the statistics.
        """
        hidden_ND = masked_hidden(self.backbone, batch, self._block_size)
        result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self.head(
            hidden_ND, ids_NK, is_kept_NK, tuple(temperatures)
        )
        return result


class _Head(nn.Module):
    """The fused head as a module that holds the backbone's output weight.

    ZeRO 3 gathers the weights of a module for that module's own forward and backward, and leaves it empty otherwise.
    The weight is the backbone's, tied or not; it must not be read outside a module that holds it.
    """

    def __init__(self, weight_WD: torch.Tensor, slice_rows: int, way: HeadWay, num_ids: int):
        super().__init__()
        self.weight = weight_WD
        self._slice_rows, self._way, self._num_ids = slice_rows, way, num_ids

    def forward(
        self, hidden_ND: torch.Tensor, ids_NK: torch.Tensor, is_kept_NK: torch.Tensor, temperatures: tuple[float, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the three tensors of `RowStatistics`."""
        how = self._slice_rows, self._way, self._num_ids
        result = row_statistics(hidden_ND, self.weight, ids_NK, temperatures, is_kept_NK, *how)
        return result.gathered_NK, result.log_z_NT, result.log_rest_NT
