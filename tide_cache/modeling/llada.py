"""LLaDA's dense models as stock ones: Llama's architecture, with other names of fields and tensors."""

from collections.abc import Mapping
from typing import Any

_ONLY: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True, None),
    "rope": (True,),
    "rope_full_precision": (True, None),
    "rope_scaling": (None,),
    "alibi": (False, None),
    "attention_layer_norm": (False, None),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1, None),
    "clip_qkv": (None,),
    "include_bias": (False, None),
    "input_emb_norm": (False, None),
    "scale_logits": (False, None),
}
"""Values for which the architecture is that of Llama; None also stands for an absent field."""

_NUMBERS = ("d_model", "n_heads", "n_layers", "vocab_size", "max_sequence_length")
_POSITIVE = ("rms_norm_eps", "rope_theta")

LLADA_HEAD_NAMES = ("model.transformer.ff_out.weight", "model.transformer.wte.weight")
_BLOCK = r"^model\.transformer\.blocks\.(\d+)\."
LLADA_NAMES = (
    (r"^model\.transformer\.wte\.", "model.embed_tokens."),
    (r"^model\.transformer\.ln_f\.", "model.norm."),
    (r"^model\.transformer\.ff_out\.", "lm_head."),
    *(
        (rf"{_BLOCK}{theirs}\.", rf"model.layers.\1.{ours}.")
        for theirs, ours in (
            ("q_proj", "self_attn.q_proj"),
            ("k_proj", "self_attn.k_proj"),
            ("v_proj", "self_attn.v_proj"),
            ("attn_out", "self_attn.o_proj"),
            ("ff_proj", "mlp.gate_proj"),
            ("up_proj", "mlp.up_proj"),
            ("ff_out", "mlp.down_proj"),
            ("attn_norm", "input_layernorm"),
            ("ff_norm", "post_attention_layernorm"),
        )
    ),
)
"""Patterns of the published tensor names, and what a stock Llama calls these tensors."""


def llada_faults(raw: Mapping[str, Any]) -> list[str]:
    """Return what a stock model would compute wrongly, or cannot be built from."""
    faults = [
        f"{name}: {'missing' if name not in raw else f'found {raw[name]!r}'}, expected {allowed[0]!r}"
        for name, allowed in _ONLY.items()
        if raw.get(name) not in allowed
    ]
    faults += [
        f"{name}: {'missing' if name not in raw else f'found {raw[name]!r}'}, expected {what}"
        for names, kinds, what in ((_NUMBERS, (int,), "a whole number"), (_POSITIVE, (int, float), "a number"))
        for name in names
        if isinstance(raw.get(name), bool) or not isinstance(raw.get(name), kinds) or raw[name] <= 0
    ]
    if raw.get("mlp_hidden_size") is None and not isinstance(raw.get("mlp_ratio"), int):
        faults.append("mlp_hidden_size: missing, and mlp_ratio too; expected a whole number")
    if not isinstance(raw.get("weight_tying"), bool):
        faults.append(f"weight_tying: found {raw.get('weight_tying')!r}, expected true or false")
    return faults


def as_llama(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json in the form of a stock model: a Qwen2 if only query, key and value have biases.

    `weight_tying` says whether the head is tied: the published class leaves `tie_word_embeddings` at true in any case.
    """
    heads = raw["n_heads"]
    kv_heads = raw.get("n_kv_heads") or (1 if raw.get("multi_query_attention") else heads)
    size = raw.get("embedding_size") or raw["vocab_size"]
    return {
        "model_type": "qwen2" if raw.get("include_qkv_bias") else "llama",
        "vocab_size": size,
        "hidden_size": raw["d_model"],
        "intermediate_size": raw.get("mlp_hidden_size") or raw["mlp_ratio"] * raw["d_model"],
        "num_hidden_layers": raw["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": raw["max_sequence_length"],
        "rms_norm_eps": raw["rms_norm_eps"],
        "rope_theta": float(raw["rope_theta"]),
        "tie_word_embeddings": raw["weight_tying"],
        **{name: raw.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
