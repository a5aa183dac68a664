"""Mixtures of experts by a module of our own: LLaDA2, LLaDA-MoE and SDAR-MoE differ only in data.

The code in such checkpoints is never run, and does not run under transformers 5. Every number comes from config.json,
as `mixture_configs` reads it.

Shape suffixes: B samples, S packed positions, D hidden size, H query heads, G key and value heads, A head dimension,
E experts, I inner size of an expert, J = 2 I.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache

from tide_cache.families import FAMILIES, Family
from tide_cache.modeling.adapter import Backbone, CheckpointInfo, LoadOptions, no_room
from tide_cache.modeling.attention import Copies, attend, prepare_mask
from tide_cache.modeling.experts import grouped_experts, route, route_softmax, uses_grouped_gemm
from tide_cache.modeling.mixture_configs import (
    LLaDA2Config,
    LLaDAMoEConfig,
    MixtureConfig,
    SDARMoEConfig,
    read_mixture_config,
)
from tide_cache.modeling.packing import PackedInput
from tide_cache.modeling.rope import scaled_frequencies
from tide_cache.modeling.safetensors_loading import load_tensors


class _Attention(nn.Module):
    def __init__(self, config: MixtureConfig, number: int):
        super().__init__()
        self._number = number
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        rows = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=config.has_qkv_bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.has_output_bias)
        self.q_norm, self.k_norm = (
            _RMSNorm(self.head_dim, config.rms_norm_eps) if config.has_qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(
        self,
        x_BSD: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | BlockMask,
        copies: Copies | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        heads = [self.num_heads, self.num_kv_heads, self.num_kv_heads]
        split = self.qkv_proj(x_BSD).unflatten(2, (-1, self.head_dim)).split(heads, dim=2)
        query_BHSA, key_BGSA, value_BGSA = (part.transpose(1, 2) for part in split)
        query_BHSA = _rotate(self.q_norm(query_BHSA), *rotary)
        key_BGSA = _rotate(self.k_norm(key_BGSA), *rotary)
        if cache is not None:
            key_BGSA, value_BGSA = cache.update(key_BGSA, value_BGSA, self._number)
        out_BHSA = attend(query_BHSA, key_BGSA, value_BGSA, mask, copies)
        result: torch.Tensor = self.o_proj(out_BHSA.transpose(1, 2).flatten(2))
        return result

    def published(self, prefix: str) -> dict[str, torch.Tensor]:
        """Views of the stacked weights of query, key and value, each with a name."""
        sizes = [count * self.head_dim for count in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        result: dict[str, torch.Tensor] = {}
        for kind, tensor in self.qkv_proj.named_parameters():
            parts = zip("qkv", torch.split(tensor.detach(), sizes), strict=True)
            result |= {f"{prefix}.{name}_proj.{kind}": view for name, view in parts}
        return result


class _RMSNorm(nn.Module):
    """In float32, as published; the weight is applied after rounding back."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * (wide.square().mean(dim=-1, keepdim=True) + self._eps).rsqrt()).to(x.dtype)


class _FeedForward(nn.Module):
    def __init__(self, config: MixtureConfig, inner_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.down_proj = nn.Linear(inner_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class _Router(nn.Module):
    """Kept in float32, whatever the dtype of the other weights."""

    def __init__(self, config: MixtureConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self._rules = config.routing
        if self._rules.num_groups is not None:
            self.register_buffer("expert_bias", torch.empty(config.num_experts))

    def forward(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rules = self._rules
        if rules.num_groups is None:
            return route_softmax(
                x_ND, self.weight, experts_per_token=rules.experts_per_token, is_normalised=rules.is_normalised
            )
        return route(
            x_ND,
            self.weight,
            self.get_buffer("expert_bias"),
            num_groups=rules.num_groups,
            groups_per_token=rules.groups_per_token,
            experts_per_token=rules.experts_per_token,
            scaling=rules.scaling,
        )


class _Experts(nn.Module):
    def __init__(self, config: MixtureConfig):
        super().__init__()
        num, inner, size = config.num_experts, config.expert_size, config.hidden_size
        self.gate_up_EJD = nn.Parameter(torch.empty(num, 2 * inner, size))
        self.down_EDI = nn.Parameter(torch.empty(num, size, inner))

    def published(self, prefix: str) -> dict[str, torch.Tensor]:
        """Views of the stacked weights under the names of the published ones."""
        result: dict[str, torch.Tensor] = {}
        for e, (gate_up_JD, down_DI) in enumerate(zip(self.gate_up_EJD.detach(), self.down_EDI.detach(), strict=True)):
            gate_ID, up_ID = gate_up_JD.chunk(2)
            parts = {"gate_proj": gate_ID, "up_proj": up_ID, "down_proj": down_DI}
            result |= {f"{prefix}.{e}.{part}.weight": view for part, view in parts.items()}
        return result


class _MixtureOfExperts(nn.Module):
    def __init__(self, config: MixtureConfig):
        super().__init__()
        self.gate = _Router(config)
        self.experts = _Experts(config)
        self.shared_experts = _FeedForward(config, config.shared_size) if config.shared_size else None

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        x_ND = x_BSD.flatten(0, 1)
        expert_NK, weight_NK = self.gate(x_ND)
        gate_up_EJD, down_EDI = self.experts.gate_up_EJD, self.experts.down_EDI
        in_one_gemm = uses_grouped_gemm(x_ND, down_EDI)
        routed_ND = grouped_experts(x_ND, expert_NK, weight_NK, gate_up_EJD, down_EDI, in_one_gemm=in_one_gemm)
        result_BSD = routed_ND.view_as(x_BSD)
        return result_BSD if self.shared_experts is None else result_BSD + self.shared_experts(x_BSD)


class _Layer(nn.Module):
    def __init__(self, config: MixtureConfig, number: int):
        super().__init__()
        dense_size = config.dense_size(number)
        self.input_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = _Attention(config, number)
        self.post_attention_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _FeedForward(config, dense_size) if dense_size else _MixtureOfExperts(config)

    def forward(
        self,
        x_BSD: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | BlockMask,
        copies: Copies | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), rotary, mask, copies, cache)
        result_BSD: torch.Tensor = x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))
        return result_BSD


class _Trunk(nn.Module):
    def __init__(self, config: MixtureConfig):
        super().__init__()
        self._config = config
        self._scaled = None
        if config.rope_scaling is not None:
            self._scaled = scaled_frequencies(
                config.rope_scaling, config.rope_theta, config.rotary_dim, config.max_position_embeddings
            )
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config, number) for number in range(config.num_hidden_layers))
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        ids_BS: torch.Tensor,
        positions_BS: torch.Tensor,
        mask: torch.Tensor | BlockMask,
        copies: Copies | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        x_BSD = self.embed_tokens(ids_BS)
        rotary = _rotary(positions_BS, self._config, self._scaled, x_BSD.dtype)
        for layer in self.layers:
            x_BSD = layer(x_BSD, rotary, mask, copies, cache)
        result_BSD: torch.Tensor = self.norm(x_BSD)
        return result_BSD


class Mixture(nn.Module):
    """The model, with parameters named as in most families; heads and experts are stacked."""

    def __init__(self, config: MixtureConfig):
        super().__init__()
        self.config = config
        self.model = _Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def published_tensors(self) -> dict[str, torch.Tensor]:
        """Every weight, or view of a stacked one, by its published name."""
        stacked = (".experts.",) if self.config.is_qkv_stacked else (".experts.", ".qkv_proj.")
        result = {name: tensor for name, tensor in self.state_dict().items() if not any(x in name for x in stacked)}
        for name, module in self.named_modules():
            if isinstance(module, _Experts) or (isinstance(module, _Attention) and not self.config.is_qkv_stacked):
                result |= module.published(name)
        return {self.config.published_name(name): tensor for name, tensor in result.items()}


def _rotary(
    positions_BS: torch.Tensor, config: MixtureConfig, scaled: tuple[torch.Tensor, float] | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine of the angles, [B, 1, S, rotary dimensions]; `scaled` as of `scaled_frequencies`."""
    if scaled is None:
        exponent = torch.arange(0, config.rotary_dim, 2, device=positions_BS.device).float() / config.rotary_dim
        frequencies, factor = config.rope_theta**-exponent, 1.0
    else:
        frequencies, factor = scaled[0].to(positions_BS.device, non_blocking=True), scaled[1]
    angle = positions_BS[:, None, :, None].float() * frequencies
    angle = torch.cat([angle, angle], dim=-1)
    return (angle.cos() * factor).to(dtype), (angle.sin() * factor).to(dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first dimensions of each head, pairing dimension i with i + half of them; the others do not change."""
    turned, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    left, right = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-right, left], dim=-1) * sin, passed], dim=-1)


class MixtureBackbone(Backbone):
    """A mixture of experts as the rest of the package sees it."""

    @property
    def head_VD(self) -> torch.Tensor:
        """Weight of the output head; the embedding itself when tied."""
        model = self.model
        assert isinstance(model, Mixture)
        weight: torch.Tensor = (model.model.embed_tokens if self.config.tie_word_embeddings else model.lm_head).weight
        return weight

    def outputs(self, packed: PackedInput, cache: Cache | None = None) -> torch.Tensor:
        """Return the last hidden states [B, S, D], after the final norm; see `Backbone`."""
        mask = prepare_mask(packed.mask_B1SS, self._attention, packed.copies)
        hidden_BSD: torch.Tensor = self.model.model(  # type: ignore[operator]
            packed.ids_BS, packed.positions_BS, mask, packed.copies, cache
        )
        return hidden_BSD


@dataclass(frozen=True)
class MixtureAdapter:
    """Loads the published layout; see `Adapter`."""

    family: Family
    config_class: type[MixtureConfig]

    def read_config(self, raw: Mapping[str, Any], location: str) -> MixtureConfig:
        """Check config.json, and return what the module needs of it."""
        return read_mixture_config(self.config_class, self.family, raw, location)

    def load(self, info: CheckpointInfo, options: LoadOptions) -> Backbone:
        """Load the weights onto the device, tensor by tensor."""
        with torch.device("meta"):
            model = Mixture(info.config).to(options.dtype)
        for module in model.modules():
            if isinstance(module, _Router):
                module.float()
        try:
            model.to_empty(device=options.device).requires_grad_(False)
        except RuntimeError as error:  # of main memory; a full GPU raises a subclass of it
            raise no_room(info, options, error) from None
        load_tensors(info.folder, model.published_tensors())
        return MixtureBackbone(model, options.loading.attention, self.family.is_shifted)


MIXTURE_ADAPTERS = {
    name: MixtureAdapter(FAMILIES[name], config_class)
    for name, config_class in (
        ("llada2_moe", LLaDA2Config),
        ("llada_moe", LLaDAMoEConfig),
        ("sdar_moe", SDARMoEConfig),
    )
}
"""By family."""
