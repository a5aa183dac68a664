"""From a batch to the hidden states of its masked rows: the one forward that training and evaluation share."""

import torch

from tide_cache.config.settings import Context
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.packing import Kept, pack_block, pack_full
from tide_cache.records import StudentBatch


def masked_hidden(backbone: Backbone, batch: StudentBatch, block_size: int, context: Context = "block") -> torch.Tensor:
    """Return the final hidden states [N, D] of the batch's masked rows, on the model's device."""
    row_N, place_N = batch.row_sample_N.cpu(), batch.row_position_N.cpu()
    x_t_BL, x_0_BL, is_real_BL = (x.to(backbone.device) for x in (batch.x_t_BL, batch.x_0_BL, batch.is_real_BL))
    if context == "block":
        length = x_0_BL.shape[1]
        view_N, position_N = place_N // length, place_N % length
        wanted_BL = torch.zeros(x_0_BL.shape, dtype=torch.bool)
        wanted_BL[row_N, position_N] = True
        kept = Kept(wanted_BL, block_size)
        place_N = kept.places(row_N, view_N, position_N)
        sample_BL = None if batch.sample_BL is None else batch.sample_BL.to(backbone.device)
        x_t_BnL = x_t_BL.view(len(x_0_BL), -1, length)
        packed = pack_block(x_t_BnL, x_0_BL, is_real_BL, block_size, sample_BL, kept)
    else:
        assert batch.sample_BL is None, "samples that share a row would see each other"
        packed = pack_full(x_t_BL, is_real_BL)
    hidden_BSD: torch.Tensor = backbone(packed)
    return hidden_BSD[row_N.to(backbone.device), place_N.to(backbone.device)]
