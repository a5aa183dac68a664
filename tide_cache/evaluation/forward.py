"""What every evaluation does with a model: hidden states of masked rows, without gradients, within its length limit.

Shape suffixes: B samples, L tokens, N masked rows, D hidden size.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.packing import pack_block, pack_full
from tide_cache.records import SamplePair, StudentBatch

Context = Literal["block", "full"]
"""What a model is shown: `block` is [x_t, x_0] under the block mask, `full` is x_t alone, bidirectional."""

HEAD_ROWS = 256
"""Rows whose logits exist at a time; 156 MB of float32 at a vocabulary of 151,936."""


@contextmanager
def evaluating(backbone: Backbone) -> Iterator[None]:
    """Switch gradients and dropout off, and leave the model in the mode it was in."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        backbone.train(was_training)


def masked_hidden(backbone: Backbone, batch: StudentBatch, block_size: int, context: Context) -> torch.Tensor:
    """Give the final hidden states [N, D] of the batch's masked rows, on the model's device."""
    x_t_BL, x_0_BL, is_real_BL = (x.to(backbone.device) for x in (batch.x_t_BL, batch.x_0_BL, batch.is_real_BL))
    if context == "block":
        packed = pack_block(x_t_BL[:, None], x_0_BL, is_real_BL, block_size)
    else:
        packed = pack_full(x_t_BL, is_real_BL)
    hidden_BSD: torch.Tensor = backbone(packed)
    return hidden_BSD[batch.row_sample_N.to(backbone.device), batch.row_position_N.to(backbone.device)]


def length_faults(backbone: Backbone, pairs: Iterable[SamplePair]) -> list[str]:
    """Name the longest sample when it does not fit the model's position limit."""
    limit = int(backbone.config.max_position_embeddings)
    longest = max(pairs, key=lambda pair: len(pair.student_ids_L), default=None)
    if longest is None or len(longest.student_ids_L) <= limit:
        return []
    return [
        f"sample {longest.sample_id!r} has {len(longest.student_ids_L)} tokens, the model's limit is {limit}; "
        "lower max_length"
    ]
