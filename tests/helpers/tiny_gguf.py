"""A tiny model as llama.cpp stores it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def write_tiny_gguf(path: Path, tokenizer: Path) -> dict[str, Any]:
    """Write a tiny Llama in float16 and Q8_0, with a byte-level tokenizer and a chat template.

    Args:
        path: Of the file.
        tokenizer: Folder of the tokenizer.

    Returns:
        The values before they were quantised, by the names of llama.cpp.
    """
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    special = sorted((t["id"], t["content"]) for t in content["added_tokens"] if t["content"] != "<|mask|>")
    tokens = [t for t, _ in sorted(content["model"]["vocab"].items(), key=lambda item: item[1])]
    tokens += [text for _, text in special]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - len(special)) + [3] * len(special))
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|im_end|>"))
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    writer.add_chat_template(config["chat_template"])
    shapes = {"token_embd.weight": (len(tokens), 32), "output_norm.weight": (32,)}
    for layer in range(2):
        part = f"blk.{layer}."
        shapes |= {
            part + "attn_norm.weight": (32,), part + "ffn_norm.weight": (32,), part + "attn_q.weight": (32, 32),
            part + "attn_k.weight": (16, 32), part + "attn_v.weight": (16, 32), part + "attn_output.weight": (32, 32),
            part + "ffn_gate.weight": (64, 32), part + "ffn_up.weight": (64, 32), part + "ffn_down.weight": (32, 64),
        }  # fmt: skip
    stored = {name: torch.randn(shape).numpy() for name, shape in shapes.items()}
    for name, values in stored.items():
        if "ffn_up" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored
