"""What every evaluation does with a model: a bounded head, and a check of lengths."""

from collections.abc import Iterable

import torch

from tide_cache.config.sections import SignalsConfig
from tide_cache.config.settings import Context
from tide_cache.modeling.backbone import Backbone
from tide_cache.modeling.moving import moved
from tide_cache.modeling.row_signals import RowSignals, row_signals
from tide_cache.modeling.rows import masked_hidden
from tide_cache.records import SamplePair, StudentBatch

HEAD_ROWS = 256
"""Rows whose logits exist at a time; 156 MB of float32 at a vocabulary of 151,936."""

TRUTH_ONLY = SignalsConfig(kinds=("truth",), temperatures=(1.0,))


def truth_rows(backbone: Backbone, batch: StudentBatch, block_size: int, context: Context = "block") -> RowSignals:
    """Return log p(true) at each masked row, and whether the true token is the most likely one."""
    true_N = moved(batch.x_0_BL[batch.row_sample_N, batch.row_position_N], backbone.device)
    hidden_ND = masked_hidden(backbone, batch, block_size, context)
    nothing_N = torch.zeros(len(true_N))
    return row_signals(hidden_ND, backbone.head_VD, true_N, nothing_N, TRUTH_ONLY, HEAD_ROWS)


def length_faults(backbone: Backbone, pairs: Iterable[SamplePair]) -> list[str]:
    """Return a fault that names the longest sample, if it exceeds the model's position limit."""
    limit = int(backbone.config.max_position_embeddings)
    longest = max(pairs, key=lambda pair: len(pair.student_ids_L), default=None)
    if longest is None or len(longest.student_ids_L) <= limit:
        return []
    return [
        f"sample {longest.sample_id!r} has {len(longest.student_ids_L)} tokens, the model's limit is {limit}; "
        "lower max_length"
    ]
