"""A small random model whose outputs depend strongly on what they attend to."""

import pytest
import torch
from transformers import Qwen3Config

from tide_cache.modeling.backbone import new_backbone


@pytest.fixture(scope="session")
def backbone():
    config = Qwen3Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=48, initializer_range=0.5,
        tie_word_embeddings=False,
    )  # fmt: skip
    return new_backbone(config, torch.float32, "cpu", seed=0)
