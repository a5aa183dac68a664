"""From a batch to the hidden states of its masked rows: the one forward that training and evaluation share."""

import torch

from tide_cache.config.settings import Context
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.kept import keep_blocks
from tide_cache.modeling.moving import moved, on_device
from tide_cache.modeling.packing import pack_block, pack_full
from tide_cache.records import KeptBlocks, StudentBatch


def masked_hidden(backbone: Backbone, batch: StudentBatch, block_size: int, context: Context = "block") -> torch.Tensor:
    """Return the final hidden states [N, D] of the batch's masked rows, on the model's device.

    Args:
        backbone: The model.
        batch: On the CPU, or on the model's device; the host then waits for a GPU unless `kept` is for `block_size`.
        block_size: Tokens per block.
        context: What the model is shown.
    """
    device = backbone.device
    x_t_BL, x_0_BL, is_real_BL = (moved(x, device) for x in (batch.x_t_BL, batch.x_0_BL, batch.is_real_BL))
    place_N = batch.row_position_N
    if context == "block":
        kept = on_device(_kept(batch, block_size), device)
        place_N = kept.place_N
        sample_BL = None if batch.sample_BL is None else moved(batch.sample_BL, device)
        x_t_BnL = x_t_BL.view(len(x_0_BL), -1, x_0_BL.shape[1])
        packed = pack_block(x_t_BnL, x_0_BL, is_real_BL, block_size, sample_BL, kept)
    else:
        assert batch.sample_BL is None, "samples that share a row would see each other"
        packed = pack_full(x_t_BL, is_real_BL)
    hidden_BSD: torch.Tensor = backbone(packed)
    return hidden_BSD[moved(batch.row_sample_N, device), moved(place_N, device)]


def _kept(batch: StudentBatch, block_size: int) -> KeptBlocks:
    """Return what `collate` found for these blocks, or find it."""
    if batch.kept is not None and batch.kept.block_size == block_size:
        return batch.kept
    rows, length = batch.x_0_BL.shape
    return keep_blocks(batch.row_sample_N.cpu(), batch.row_position_N.cpu(), (rows, length), block_size)
