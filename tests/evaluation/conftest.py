"""Small random models whose outputs depend strongly on what they attend to."""

import pytest
import torch
from transformers import Qwen3Config

from tide_cache.modeling.backbone import new_backbone

VOCAB, LIMIT = 40, 48


def tiny_backbone(seed=0, vocab=VOCAB, limit=LIMIT):
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=limit,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    return new_backbone(config, torch.float32, "cpu", seed)


@pytest.fixture
def backbone():
    return tiny_backbone()


@pytest.fixture
def make_backbone():
    return tiny_backbone
