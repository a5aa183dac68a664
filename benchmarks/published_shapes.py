"""Configurations of the published models, and random weights in their shapes.

Sources: Qwen3-0.6B and A2D students (dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1, config.json), WeDLM-8B-Instruct
(config.json; the shape of Qwen3-8B), LLaDA2.0-mini (config.json of its siblings LLaDA2.1-mini and LLaDA2.0-Uni and the
tables of the paper: 2.0-mini's own file was not at hand).
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tide_cache.modeling.backbone import ADAPTERS, Backbone
from tide_cache.modeling.mixture import Mixture, MixtureBackbone
from tide_cache.modeling.stock import StockBackbone

Config = dict[str, Any]

STUDENT: Config = {
    "model_type": "a2d-qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 1000000,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "tie_word_embeddings": True,
}  # fmt: skip
WEDLM_8B: Config = {
    "model_type": "wedlm", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "rope_theta": 1000000,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 16384, "tie_word_embeddings": False, "qk_norm": True,
    "attention_bias": False,
}  # fmt: skip
LLADA2_MINI: Config = {
    "model_type": "llada2_moe", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 20,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 157184, "rope_theta": 600000,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    "partial_rotary_factor": 0.5, "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1, "n_group": 8,
    "topk_group": 4, "moe_intermediate_size": 512, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
    "hidden_act": "silu",
}  # fmt: skip

_SMALL: Config = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096,
}  # fmt: skip
SMALL_STUDENT: Config = STUDENT | _SMALL
SMALL_WEDLM: Config = WEDLM_8B | _SMALL | {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8
}  # fmt: skip
SMALL_LLADA2: Config = LLADA2_MINI | _SMALL | {
    "hidden_size": 256, "num_hidden_layers": 6, "num_experts": 32, "num_experts_per_tok": 4, "n_group": 4,
    "topk_group": 2, "moe_intermediate_size": 256,
}  # fmt: skip
"""For CPUs: a teacher has about ten times the student's weights outside the embedding, as WeDLM-8B has."""


def random_backbone(raw: Config, dtype: torch.dtype, device: str) -> Backbone:
    """Make a model with random weights, on its device from the start.

    Args:
        raw: As in a config.json.
        dtype: Of the parameters.
        device: Where they lie.
    """
    config = ADAPTERS[raw["model_type"]].read_config(raw, "published")
    torch.manual_seed(0)
    if raw["model_type"] != "llada2_moe":
        with torch.device(device):
            return StockBackbone(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype))
    with torch.device("meta"):
        model = Mixture(config).to(dtype)
    for name, module in model.named_modules():
        if name.endswith("gate"):  # the router works in float32, as `MixtureAdapter.load` has it
            module.float()
    model.to_empty(device=device).requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.fill_(1) if tensor.dim() == 1 else tensor.normal_(std=0.02)
    return MixtureBackbone(model)
