"""Causal language models of the Qwen and Llama families used as denoisers: only the attention mask differs.

A stock `Qwen3ForCausalLM` with an explicit mask equals the published `A2DQwen3LMHeadModel` exactly, and WeDLM's
weights load into it by name, so no remote code is ever needed. The output head is kept apart: callers take hidden
states of the rows they need and never see a [B, L, V] tensor.

Shape suffixes: B samples, S packed positions, D hidden size, V vocabulary.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from tide_cache.errors import ModelError
from tide_cache.locations import nowhere
from tide_cache.modeling.packing import PackedInput

STOCK_TYPE = {
    "qwen3": "qwen3",
    "a2d-qwen3": "qwen3",
    "wedlm": "qwen3",
    "qwen2": "qwen2",
    "a2d-qwen2": "qwen2",
    "llama": "llama",
    "a2d-llama": "llama",
}
"""Which stock architecture serves a checkpoint's `model_type`."""

disable_progress_bar()  # a bar of its own for every load would cut through ours

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's config.json says, read without loading weights.

    Attributes:
        location: Folder or hub name, as given.
        model_type: As published, for example `wedlm`.
        config: The stock configuration that loads it.
    """

    location: str
    model_type: str
    config: PretrainedConfig

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, padding rows included."""
        return int(self.config.vocab_size)

    def require_fits(self, vocab_size: int, length: int, who: str) -> list[str]:
        """List what does not fit: a vocabulary larger than the embedding, or sequences above the model's limit.

        Args:
            vocab_size: One past the largest token id.
            length: Longest sequence, in tokens.
            who: Section of the run file, for the message.
        """
        faults = []
        if vocab_size > self.vocab_size:
            faults.append(
                f"{who}: the tokenizer has ids up to {vocab_size - 1}, the checkpoint {self.location} has "
                f"{self.vocab_size} embeddings; use the checkpoint's own tokenizer, or a mask token it already has"
            )
        limit = int(self.config.max_position_embeddings)
        if length > limit:
            faults.append(f"{who}.max_length: found {length}, the model's limit is {limit}; lower max_length")
        return faults


def read_checkpoint(location: str, revision: str | None = None) -> CheckpointInfo:
    """Read a checkpoint's configuration.

    Raises:
        ModelError: No config.json there, not JSON, an unsupported model_type, or features we would get wrong.
    """
    if reason := nowhere(location):
        raise ModelError(reason)
    raw = _read_config(location, revision)
    model_type = str(raw.get("model_type"))
    if model_type not in STOCK_TYPE:
        raise ModelError(
            f"{location}: model_type {model_type!r} is not supported; supported: {', '.join(sorted(STOCK_TYPE))}. "
            "Remote model code is never run; docs/teachers.md says how to add an architecture."
        )
    if model_type == "wedlm" and (not raw.get("qk_norm", True) or raw.get("attention_bias")):
        raise ModelError(f"{location}: a WeDLM without qk_norm or with attention_bias does not fit a stock Qwen3")
    known = {k: v for k, v in raw.items() if k not in {"model_type", "architectures", "auto_map"}}
    if known.get("rope_scaling") is None:
        known.pop("rope_scaling", None)  # transformers 5 warns of the key alone; theta stands beside it
    try:
        config = AutoConfig.for_model(STOCK_TYPE[model_type], **known)
    except Exception as error:  # its checks raise errors of their own, ValueError, TypeError and KeyError
        reason = " ".join(str(error).split())
        raise ModelError(f"{location}/config.json: no usable {model_type} configuration: {reason}; mend it") from None
    return CheckpointInfo(location, model_type, config)


def _read_config(location: str, revision: str | None) -> dict[str, Any]:
    folder = Path(location)
    try:
        path = (
            folder / "config.json" if folder.is_dir() else Path(cached_file(location, "config.json", revision=revision))
        )
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{location}: found no readable config.json ({reason}); expected a checkpoint folder in "
            "Hugging Face layout or the name of one on the hub"
        ) from None
    if not isinstance(raw, dict):
        raise ModelError(f"{location}/config.json: found {type(raw).__name__}, expected an object")
    return raw


class Backbone(nn.Module):
    """A denoiser: hidden states from packed inputs, and the output head's weight."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def config(self) -> PretrainedConfig:
        """The stock configuration."""
        return self.model.config

    @property
    def head_VD(self) -> torch.Tensor:
        """Weight of the output head, the embedding's own when tied."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight  # type: ignore[operator]
        return weight

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.model.parameters()).device

    def forward(self, packed: PackedInput) -> torch.Tensor:
        """Give the last hidden states [B, S, D], after the final norm."""
        output = self.model.model(  # type: ignore[operator]
            input_ids=packed.ids_BS,
            attention_mask=packed.mask_B1SS,
            position_ids=packed.positions_BS,
            use_cache=False,
        )
        hidden_BSD: torch.Tensor = output.last_hidden_state
        return hidden_BSD


def load_backbone(info: CheckpointInfo, dtype: torch.dtype, device: str, revision: str | None = None) -> Backbone:
    """Load a checkpoint's weights from safetensors.

    Args:
        info: From `read_checkpoint`.
        dtype: Of the parameters.
        device: Where to put them.
        revision: Commit of a hub checkpoint.

    Raises:
        ModelError: Weights are missing, left over, or of another shape; lists them.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            info.location,
            config=info.config,
            revision=revision,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{info.location}: the weights cannot be loaded: {error}; expected whole .safetensors files that fit "
            "config.json. Copy or download them again."
        ) from None
    missing = sorted(set(report["missing_keys"]) - ({"lm_head.weight"} if info.config.tie_word_embeddings else set()))
    faults = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in sorted(report["unexpected_keys"])]
    faults += [f"shape of {key[0]}" for key in report["mismatched_keys"]]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise ModelError(f"{info.location}: the weights do not fit its config.json: {shown}")
    return Backbone(model.to(device))


def new_backbone(config: PretrainedConfig, dtype: torch.dtype, device: str, seed: int) -> Backbone:
    """Make a backbone with random weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    return Backbone(model.to(device))


def resolve_device(wanted: str) -> str:
    """Turn `auto` into cuda where there is one, else cpu; refuse a device that is not there.

    Raises:
        ModelError: It is no device, or CUDA was asked for and there is none of that number.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ModelError(f"device {wanted!r}: is no device; expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type == "cuda" and (device.index or 0) >= (found := torch.cuda.device_count()):
        raise ModelError(f"device {wanted!r}: found {found or 'no'} CUDA devices; use another, 'cpu' or 'auto'")
    return wanted
