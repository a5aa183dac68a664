"""What every evaluation does with a model: no gradients, a bounded head, and lengths within its limit."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from tide_cache.modeling.backbone import Backbone
from tide_cache.records import SamplePair

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
