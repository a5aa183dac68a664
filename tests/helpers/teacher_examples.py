"""Tiny checkpoints of random weights, in the layouts in which families are published."""

import json
import re

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from tide_cache.modeling.backbone import ADAPTERS, new_backbone
from tide_cache.modeling.checkpoint import save_student
from tide_cache.modeling.llada import LLADA_NAMES
from tide_cache.modeling.mixture import Mixture
from tide_cache.modeling.mixture_configs import LLaDA2Config, LLaDAMoEConfig, SDARMoEConfig

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


def write_tiny(folder, tokenizer):
    """Write a student's checkpoint of random weights: one layer of width 16."""
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    save_student(folder, new_backbone(config, torch.float32, "cpu", seed=4).model.state_dict(), config, tokenizer, {})


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
    return write_mixture(folder, tokenizer, LLaDA2Config, LLADA2)


def write_mixture(folder, tokenizer, config_class, config):
    """Write a mixture of experts of random weights as it is published."""
    folder.mkdir(exist_ok=True)
    raw = config | {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
    generator = torch.Generator().manual_seed(3)
    published = Mixture(config_class.model_validate(raw)).published_tensors()
    weights = {name: torch.randn(tensor.shape, generator=generator) / 5 for name, tensor in published.items()}
    return write_checkpoint(folder, tokenizer, weights, raw)


def write_checkpoint(folder, tokenizer, weights, config):
    """Write weights, configuration and tokenizer."""
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
SDAR = {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "head_dim": 16, "block_size": 8}
DREAM = {"model_type": "Dream", "architectures": ["DreamModel"]}
FAST_DLLM = {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 8}
SDAR_MOE = SMALL | SDAR | {
    "model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
LLADA_MOE = SMALL | {
    "model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "num_experts": 8, "num_experts_per_tok": 2,
    "expert_intermediate_size": 16, "dense_intermediate_size": 48, "moe_layer_freq": [1, 1], "norm_topk_prob": False,
    "moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False, "qk_layernorm": True,
}  # fmt: skip
LLADA = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 32, "n_heads": 2, "n_kv_heads": 1,
    "n_layers": 2, "mlp_hidden_size": 48, "max_sequence_length": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "weight_tying": False,
    "tie_word_embeddings": True,
}  # fmt: skip


def write_family(folder, name, tokenizer):
    """Write a tiny checkpoint of random weights as a family is published."""
    if name in CAUSAL:
        return write_causal(folder, name, tokenizer)
    if name == "wedlm":
        return write_wedlm(folder, tokenizer)
    if name.startswith("a2d-"):
        return write_denoiser(folder, name.removeprefix("a2d-"), tokenizer)
    mixtures = {"llada2_moe": (LLaDA2Config, LLADA2), "llada_moe": (LLaDAMoEConfig, LLADA_MOE)}
    mixtures["sdar_moe"] = (SDARMoEConfig, SDAR_MOE)
    if name in mixtures:
        return write_mixture(folder, tokenizer, *mixtures[name])
    config = {"sdar": SMALL | SDAR, "Dream": SMALL | DREAM, "Fast_dLLM_Qwen": SMALL | FAST_DLLM, "llada": LLADA}[name]
    config |= {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
    model = new_backbone(ADAPTERS[name].read_config(config, "new"), torch.float32, "cpu", seed=3).model
    weights = {tensor_name: tensor * 3 for tensor_name, tensor in model.state_dict().items()}
    if name == "llada":
        weights = {as_llada(tensor_name): tensor for tensor_name, tensor in weights.items()}
    return write_checkpoint(folder, tokenizer, weights, config)


def as_llada(name):
    """Return what LLaDA calls a tensor of a stock Llama."""
    for pattern, ours in LLADA_NAMES:
        plain = re.escape(ours).replace(r"\\1", r"(\d+)")
        published = pattern.removeprefix("^").replace(r"(\d+)", r"\1").replace("\\.", ".")
        if re.match(plain, name):
            return re.sub(plain, published, name)
    raise AssertionError(name)


def write_denoiser(folder, stock, tokenizer):
    """Write a student of random weights."""
    kind, further = CAUSAL[stock]
    shape = {name: value for name, value in SMALL.items() if name not in ("rope_theta", "hidden_act")}
    config = kind(vocab_size=tokenizer.vocab_size, bos_token_id=None, eos_token_id=tokenizer.eos_id, **shape, **further)
    weights = new_backbone(config, torch.float32, "cpu", seed=3).model.state_dict()
    save_student(folder, {name: tensor * 3 for name, tensor in weights.items()}, config, tokenizer, {})
    return folder


CAUSAL = {
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "qwen2": (Qwen2Config, {}),
    "llama": (LlamaConfig, {}),
}


def write_causal(folder, name, tokenizer):
    """Write a stock causal model as transformers saves it, with a tokenizer that names no mask token."""
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in stated.items() if name != "mask_token"}))
    torch.manual_seed(0)
    kind, further = CAUSAL[name]
    config = kind(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2, max_position_embeddings=2048,
        bos_token_id=None, eos_token_id=tokenizer.eos_id, **further,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
