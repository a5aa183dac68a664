"""Low-rank adapters by peft, an optional extra: put into the student before training, merged into it when saved."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from tide_cache.config.train import LoraConfig

BASE, DOWN, UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"
"""How peft names the weight of a layer with an adapter, and the adapter's factors."""


def lora_faults(lora: LoraConfig, config: PretrainedConfig) -> list[str]:
    """List why a student cannot get these adapters; nothing is loaded.

    Args:
        lora: Section `student.lora` of the run file.
        config: Of the student.
    """
    faults = []
    if find_spec("peft") is None:
        faults.append("student.lora: peft is not installed; pip install 'tide-cache[lora]', or leave student.lora out")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = {name.rpartition(".")[2] for name, layer in model.model.named_modules() if isinstance(layer, nn.Linear)}
    if strange := sorted(set(lora.targets) - layers):
        faults.append(f"student.lora.targets: found {', '.join(strange)}; {config.model_type} has {sorted(layers)}")
    return faults


def add_adapters(model: nn.Module, lora: LoraConfig, seed: int) -> None:
    """Put adapters into a model, in place, and freeze all else; at first they change nothing.

    Args:
        model: A stock causal language model.
        lora: Section `student.lora` of the run file.
        seed: Of the adapters' start; the global random state is left as it was.
    """
    import peft

    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith((DOWN, UP)))


def merged(weights: Mapping[str, torch.Tensor], lora: LoraConfig) -> dict[str, torch.Tensor]:
    """Return the weights of the plain model: W + alpha / rank * B A where there is an adapter, summed in float32.

    Args:
        weights: Of a model with adapters, whole, by its own names.
        lora: Section `student.lora` of the run file.
    """
    result: dict[str, Any] = {}
    for name, weight in weights.items():
        if name.endswith((DOWN, UP)):
            continue
        layer = name.removesuffix(BASE)
        if layer == name:
            result[name] = weight
            continue
        change = weights[layer + UP].float() @ weights[layer + DOWN].float()
        result[f"{layer}.weight"] = (weight.float() + lora.alpha / lora.rank * change).to(weight.dtype)
    return {name.replace(".base_layer.", "."): weight for name, weight in result.items()}
