"""Tiny checkpoints of random weights, in the layouts in which the two teachers of the paper are published."""

import json

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config

from tide_cache.modeling.backbone import new_backbone
from tide_cache.modeling.checkpoint import save_student
from tide_cache.modeling.llada2_moe import LLaDA2Config, LLaDA2MoE

WEDLM = {"model_type": "wedlm", "architectures": ["WeDLMForCausalLM"], "qk_norm": True, "attention_bias": False}
WEDLM |= {"mask_token_id": None, "auto_map": {"AutoModelForCausalLM": "modeling_wedlm.WeDLMForCausalLM"}}
LLADA2 = {
    "model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"], "hidden_act": "silu", "hidden_size": 32,
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1, "n_group": 4, "topk_group": 2,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
}  # fmt: skip


def write_wedlm(folder, tokenizer, **changes):
    """Write a checkpoint of random weights as WeDLM is published."""
    config = Qwen3Config(
        vocab_size=changes.pop("vocab_size", tokenizer.vocab_size), hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    weights = new_backbone(config, torch.float32, "cpu", seed=3).model.state_dict()
    save_student(folder, weights, config, tokenizer, {})
    written = json.loads((folder / "config.json").read_text()) | WEDLM | changes
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def write_llada2(folder, tokenizer):
    """Write a checkpoint of random weights as LLaDA2 is published."""
    folder.mkdir(exist_ok=True)
    raw = LLADA2 | {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
    generator = torch.Generator().manual_seed(3)
    published = LLaDA2MoE(LLaDA2Config.model_validate(raw)).published_tensors()
    weights = {name: torch.randn(tensor.shape, generator=generator) / 5 for name, tensor in published.items()}
    save_file(weights, folder / "model.safetensors")
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder
