"""Causal language models of the Qwen and Llama families used as denoisers: only the attention mask differs.

A stock `Qwen3ForCausalLM` with an explicit mask equals the published `A2DQwen3LMHeadModel` exactly, and WeDLM's
weights load into it by name, so no remote code is ever needed.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Cache,
    PretrainedConfig,
)
from transformers.masking_utils import sdpa_mask
from transformers.utils.logging import disable_progress_bar

from tide_cache.config.settings import AttentionKind, Quantisation
from tide_cache.errors import ModelError
from tide_cache.families import FAMILIES, Family, sibling_faults
from tide_cache.modeling.adapter import Backbone, CheckpointInfo, LoadOptions, num_token_ids
from tide_cache.modeling.attention import Copies, attend, prepare_mask
from tide_cache.modeling.llada import LLADA_HEAD_NAMES, LLADA_NAMES, as_llama, llada_faults
from tide_cache.modeling.packing import PackedInput
from tide_cache.modeling.safetensors_loading import (
    EMBEDDING,
    HEAD,
    INDEX,
    SINGLE,
    has_own_head,
    require_all_weights,
    weight_names,
)
from tide_cache.unreadable import require_readable, told_apart

disable_progress_bar()  # its bar for every load would interfere with ours


def _attention_of_copies(
    module: torch.nn.Module,
    query_BHSA: torch.Tensor,
    key_BGSA: torch.Tensor,
    value_BGSA: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    copies: Copies | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """`attend`, with the signature of an attention in transformers: returns [B, S, H, A], and no weights."""
    out_BHSA = attend(query_BHSA, key_BGSA, value_BGSA, attention_mask, copies, dropout)
    return out_BHSA.transpose(1, 2).contiguous(), None


def _mask_of_the_model(**options: Any) -> torch.Tensor | None:
    """Return the model's own mask if none is given, and never skip it: `attend` does not know what is causal."""
    mask: torch.Tensor | None = sdpa_mask(**{**options, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register("tide_cache", _attention_of_copies)
AttentionMaskInterface.register("tide_cache", _mask_of_the_model)

_KERNELS: dict[AttentionKind, str] = {"sdpa": "tide_cache", "flex": "flex_attention"}


class StockBackbone(Backbone):
    """A causal language model of transformers, under an explicit mask."""

    def __init__(self, model: torch.nn.Module, attention: AttentionKind = "sdpa", is_shifted: bool = False):
        super().__init__(model, attention, is_shifted)
        self.use_attention(attention)

    @property
    def head_VD(self) -> torch.Tensor:
        """Weight of the output head, without rows of padding."""
        weight_WD = self.padded_head_WD
        num_ids = num_token_ids(self.config)
        return weight_WD if num_ids == self.config.vocab_size else weight_WD[:num_ids]

    @property
    def padded_head_WD(self) -> torch.Tensor:
        """Weight of the output head as it is stored, the embedding's own when tied."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight  # type: ignore[operator]
        return weight

    def use_attention(self, kind: AttentionKind) -> None:
        """Change the kernel; the results stay the same."""
        self._attention = kind
        self.model.set_attn_implementation(_KERNELS[kind])  # type: ignore[operator]

    def outputs(self, packed: PackedInput, cache: Cache | None = None) -> torch.Tensor:
        """Return the last hidden states [B, S, D], after the final norm; see `Backbone`."""
        output = self.model.model(  # type: ignore[operator]
            input_ids=packed.ids_BS,
            attention_mask=prepare_mask(packed.mask_B1SS, self._attention, packed.copies),
            position_ids=packed.positions_BS,
            past_key_values=cache,
            use_cache=cache is not None,
            copies=packed.copies,
        )
        hidden_BSD: torch.Tensor = output.last_hidden_state
        return hidden_BSD.to(self.device)  # spread over GPUs, the last layer may be on another one


def _no_faults(raw: Mapping[str, Any]) -> list[str]:
    return []


def _as_it_is(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return raw


@dataclass(frozen=True)
class StockAdapter:
    """Loads a checkpoint as one of transformers' own architectures.

    Attributes:
        family: As in `Adapter`.
        stock_type: Type of the stock architecture.
        find_faults: Returns what in config.json the stock architecture would compute wrongly.
        translate: Returns config.json with the stock architecture's names of fields; its `model_type` may differ from
            `stock_type`.
        names: Patterns of tensor names, and the stock architecture's names for these tensors.
        head_names: The checkpoint's names for its output head and its embedding.
    """

    family: Family
    stock_type: str
    find_faults: Callable[[Mapping[str, Any]], list[str]] = _no_faults
    translate: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_it_is
    names: tuple[tuple[str, str], ...] = ()
    head_names: tuple[str, str] = (HEAD, EMBEDDING)

    def read_config(self, raw: Mapping[str, Any], location: str) -> PretrainedConfig:
        """Return the stock configuration for config.json; see `Adapter`."""
        if faults := [*sibling_faults(self.family, raw), *self.find_faults(raw)]:
            raise ModelError(f"{location}/config.json: does not fit a stock {self.stock_type}: {'; '.join(faults)}")
        if named := raw.get("transformers_weights"):
            raise ModelError(
                f"{location}/config.json: it names its own file of weights ({named!r}); expected {SINGLE} or "
                f"{INDEX}. Rename that file, and remove transformers_weights from config.json."
            )
        translated = self.translate(raw)
        stock_type = self.stock_type if translated is raw else str(translated["model_type"])
        known = {k: v for k, v in translated.items() if k not in {"model_type", "architectures", "auto_map"}}
        if known.get("rope_scaling") is None:
            known.pop("rope_scaling", None)  # transformers 5 warns about the key itself; theta is a separate key
        try:
            return AutoConfig.for_model(stock_type, **known)
        except Exception as error:  # its checks raise their own errors, ValueError, TypeError and KeyError
            reason = " ".join(str(error).split())
            model_type = raw["model_type"]
            raise ModelError(
                f"{location}/config.json: no usable {model_type} configuration: {reason}; fix it"
            ) from None

    def load(self, info: CheckpointInfo, options: LoadOptions) -> Backbone:
        """Load the weights from safetensors; see `Adapter`."""
        for name in weight_names(info.folder):
            require_readable(info.folder / name)  # transformers would report it as missing or damaged
        placed, config = _placement(options), _with_stored_head(info, self.head_names)
        renamed = {"key_mapping": dict(self.names)} if self.names else {}
        try:
            with told_apart(info.folder):
                model, report = AutoModelForCausalLM.from_pretrained(
                    str(info.folder),
                    config=config,
                    dtype=options.dtype,
                    attn_implementation="sdpa",
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    **renamed,
                    **placed,
                )
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{info.location}: the weights cannot be loaded: {error}; expected whole .safetensors files that fit "
                "config.json. Copy or download them again."
            ) from None
        except (ValueError, ImportError) as error:
            settings = f"quantisation = '{options.loading.quantisation}', device_map = {options.loading.device_map!r}"
            raise ModelError(
                f"{info.location}: transformers cannot load it with {settings}: {error}; change these settings, or "
                "leave them out"
            ) from None
        is_tied = config.tie_word_embeddings
        require_all_weights(
            info.location,
            missing=set(report["missing_keys"]) - ({"lm_head.weight"} if is_tied else set()),
            unknown=report["unexpected_keys"],
            misshapen=[key[0] for key in report["mismatched_keys"]],
        )
        if away := sorted(name for name, weight in model.named_parameters() if weight.is_meta):
            raise ModelError(
                f"{info.location}: device_map = 'auto' found no room on the GPUs for {len(away)} weights, "
                f"{away[0]} among them; use more GPUs, or quantisation = '8bit' or '4bit'"
            )
        return StockBackbone(
            model if placed else model.to(options.device), options.loading.attention, self.family.is_shifted
        )


def _with_stored_head(info: CheckpointInfo, names: tuple[str, str]) -> PretrainedConfig:
    """Return the configuration that fits the weights: not tied if they hold a separate output head.

    Some checkpoints say `tie_word_embeddings` and store a head that differs from the embedding. transformers then
    computes with the stored head, and training changes both. A saved model that claims to be tied would lose the head.
    """
    config = info.config
    if not config.tie_word_embeddings or not has_own_head(info.folder, *names):
        return config
    untied = copy.deepcopy(config)
    untied.tie_word_embeddings = False
    return untied


def _placement(options: LoadOptions) -> dict[str, Any]:
    """Return arguments of `from_pretrained` for weights that must not be in this machine's memory as a whole."""
    quantisation, device_map = options.loading.quantisation, options.loading.device_map
    if quantisation == "none" and device_map is None:
        return {}
    quantised = {} if quantisation == "none" else {"quantization_config": _bits(quantisation, options.dtype)}
    return {"device_map": device_map or {"": options.device}, **quantised}


def _bits(quantisation: Quantisation, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the settings of a quantisation. The head stays as it is: the statistics need its weight."""
    if quantisation == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _window_faults(raw: Mapping[str, Any]) -> list[str]:
    """Return a fault for a sliding window: with a given mask, a stock model would silently ignore it."""
    return (
        [f"use_sliding_window: found {raw['use_sliding_window']}, expected false"]
        if raw.get("use_sliding_window")
        else []
    )


def _wedlm_faults(raw: Mapping[str, Any]) -> list[str]:
    faults = []
    if raw.get("qk_norm") is not True:
        faults.append(f"qk_norm: found {raw.get('qk_norm')}, expected true")
    if raw.get("attention_bias"):
        faults.append(f"attention_bias: found {raw['attention_bias']}, expected false")
    return faults


_STOCK_TYPES = {
    "qwen3": "qwen3",
    "qwen2": "qwen2",
    "llama": "llama",
    "a2d-qwen3": "qwen3",
    "a2d-qwen2": "qwen2",
    "a2d-llama": "llama",
}
_WITHOUT_WINDOW = {"sdar": "qwen3", "Dream": "qwen2", "Fast_dLLM_Qwen": "qwen2"}

STOCK_ADAPTERS = {
    **{name: StockAdapter(FAMILIES[name], stock_type) for name, stock_type in _STOCK_TYPES.items()},
    **{name: StockAdapter(FAMILIES[name], stock, _window_faults) for name, stock in _WITHOUT_WINDOW.items()},
    "wedlm": StockAdapter(FAMILIES["wedlm"], "qwen3", find_faults=_wedlm_faults),
    "llada": StockAdapter(FAMILIES["llada"], "llama", llada_faults, as_llama, LLADA_NAMES, LLADA_HEAD_NAMES),
}
"""By family."""


def new_backbone(config: PretrainedConfig, dtype: torch.dtype, device: str, seed: int) -> Backbone:
    """Return a backbone with random weights; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    return StockBackbone(model.to(device))
