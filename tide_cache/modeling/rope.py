"""Frequencies of scaled RoPE, as transformers computes them for its own models."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def scaled_frequencies(
    scaling: Mapping[str, Any], theta: float, rotary_dim: int, max_position_embeddings: int
) -> tuple[torch.Tensor, float]:
    """Return the frequencies [A / 2] of a head's rotated dimensions A, and the factor of cosine and sine.

    Under `dynamic` frequencies depend on the length of a text only above `max_position_embeddings`, which no text is.

    Args:
        scaling: `rope_type` and its numbers.
        theta: Base of the frequencies.
        rotary_dim: Dimensions of each head that are rotated.
        max_position_embeddings: Longest text.
    """
    config = LlamaConfig(
        hidden_size=rotary_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=rotary_dim,
        max_position_embeddings=max_position_embeddings,
        rope_parameters={**scaling, "rope_theta": theta},
    )
    with torch.device("cpu"):  # whatever device a model is being made on
        frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    return frequencies, float(factor)
