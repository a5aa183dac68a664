"""LLaDA2 mixture-of-experts models (LLaDA2.0-mini and its relatives), written from their published configuration.

The code that such checkpoints bring along is never run, and does not run under transformers 5. Every number comes
from config.json. A feature this module does not have is refused, never ignored.

Shape suffixes: B samples, S packed positions, D hidden size, H query heads, G key and value heads, A head dimension,
E experts, I inner size of an expert, J = 2 I.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, model_validator
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache

from tide_cache.errors import ModelError, fault_list
from tide_cache.modeling.adapter import Backbone, CheckpointInfo, LoadPlan, no_room
from tide_cache.modeling.attention import Copies, attend, prepare_mask
from tide_cache.modeling.experts import grouped_experts, route, uses_grouped_gemm
from tide_cache.modeling.packing import PackedInput
from tide_cache.modeling.safetensors_loading import load_tensors


class LLaDA2Config(BaseModel):
    """config.json of a `llada2_moe` checkpoint.

    No number has a default. A switch that decides which tensors there are has one, since a wrong one is noticed:
    tensors would be missing or left over. A field of one allowed value names a feature of which only that variant is
    implemented; where it may be absent, that value is the published configuration class's own default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: PositiveFloat
    rope_theta: PositiveFloat
    partial_rotary_factor: PositiveFloat
    num_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    num_shared_experts: int
    n_group: PositiveInt
    topk_group: PositiveInt
    moe_intermediate_size: PositiveInt
    first_k_dense_replace: int
    routed_scaling_factor: PositiveFloat
    tie_word_embeddings: bool = False
    use_qk_norm: bool = True
    use_qkv_bias: bool = False
    use_bias: bool = False

    hidden_act: Literal["silu"]
    score_function: Literal["sigmoid"] = "sigmoid"
    norm_topk_prob: Literal[True] = True
    moe_router_enable_expert_bias: Literal[True] = True
    rope_scaling: None = None
    use_sliding_window: Literal[False, None] = False
    norm_head: Literal[False] = False
    use_rmsnorm: Literal[True] = True
    using_split_qkv_in_self_attention: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _rope_of_newer_files(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Transformers 5 writes the numbers of RoPE into an object of their own."""
        rope = raw.get("rope_parameters") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"rope_parameters: found {rope!r}, expected an object")
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters: found rope_type {rope['rope_type']!r}, expected 'default'")
        return {**{k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if k in rope}, **raw}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for many, parts in (("num_attention_heads", "num_key_value_heads"), ("num_experts", "n_group")):
            if getattr(self, many) % getattr(self, parts):
                raise ValueError(f"{many} {getattr(self, many)} is no multiple of {parts} {getattr(self, parts)}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} is more than n_group {self.n_group}")
        if self.num_experts_per_tok > (reachable := self.topk_group * self.num_experts // self.n_group):
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} is more than {reachable} within reach")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(f"partial_rotary_factor {self.partial_rotary_factor} gives {self.rotary_dim} dimensions")
        return self

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of each head are rotated, the first ones."""
        return int(self.head_dim * self.partial_rotary_factor)


class _Attention(nn.Module):
    def __init__(self, config: LLaDA2Config, number: int):
        super().__init__()
        self._number = number
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        rows = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=config.use_qkv_bias)
        self.dense = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.use_bias)
        self.query_layernorm, self.key_layernorm = (
            _RMSNorm(self.head_dim, config.rms_norm_eps) if config.use_qk_norm else nn.Identity() for _ in range(2)
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
        split = self.query_key_value(x_BSD).unflatten(2, (-1, self.head_dim)).split(heads, dim=2)
        query_BHSA, key_BGSA, value_BGSA = (part.transpose(1, 2) for part in split)
        query_BHSA = _rotate(self.query_layernorm(query_BHSA), *rotary)
        key_BGSA = _rotate(self.key_layernorm(key_BGSA), *rotary)
        if cache is not None:
            key_BGSA, value_BGSA = cache.update(key_BGSA, value_BGSA, self._number)
        out_BHSA = attend(query_BHSA, key_BGSA, value_BGSA, mask, copies)
        result: torch.Tensor = self.dense(out_BHSA.transpose(1, 2).flatten(2))
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
    def __init__(self, config: LLaDA2Config, inner_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, inner_size, bias=False)
        self.down_proj = nn.Linear(inner_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class _Router(nn.Module):
    """Kept in float32 whatever the dtype of the rest."""

    def __init__(self, config: LLaDA2Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.empty(config.num_experts))
        self._rules = {
            "num_groups": config.n_group,
            "groups_per_token": config.topk_group,
            "experts_per_token": config.num_experts_per_tok,
        }
        self._scaling = config.routed_scaling_factor

    def forward(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bias_E = self.get_buffer("expert_bias")
        return route(x_ND, self.weight, bias_E, **self._rules, scaling=self._scaling)


class _Experts(nn.Module):
    def __init__(self, config: LLaDA2Config):
        super().__init__()
        num, inner, size = config.num_experts, config.moe_intermediate_size, config.hidden_size
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
    def __init__(self, config: LLaDA2Config):
        super().__init__()
        self.gate = _Router(config)
        self.experts = _Experts(config)
        shared_size = config.num_shared_experts * config.moe_intermediate_size
        self.shared_experts = _FeedForward(config, shared_size) if shared_size else None

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        x_ND = x_BSD.flatten(0, 1)
        expert_NK, weight_NK = self.gate(x_ND)
        gate_up_EJD, down_EDI = self.experts.gate_up_EJD, self.experts.down_EDI
        in_one_gemm = uses_grouped_gemm(x_ND, down_EDI)
        routed_ND = grouped_experts(x_ND, expert_NK, weight_NK, gate_up_EJD, down_EDI, in_one_gemm=in_one_gemm)
        result_BSD = routed_ND.view_as(x_BSD)
        return result_BSD if self.shared_experts is None else result_BSD + self.shared_experts(x_BSD)


class _Layer(nn.Module):
    def __init__(self, config: LLaDA2Config, number: int):
        super().__init__()
        is_dense = number < config.first_k_dense_replace
        self.input_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = _Attention(config, number)
        self.post_attention_layernorm = _RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _FeedForward(config, config.intermediate_size) if is_dense else _MixtureOfExperts(config)

    def forward(
        self,
        x_BSD: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | BlockMask,
        copies: Copies | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        x_BSD = x_BSD + self.attention(self.input_layernorm(x_BSD), rotary, mask, copies, cache)
        result_BSD: torch.Tensor = x_BSD + self.mlp(self.post_attention_layernorm(x_BSD))
        return result_BSD


class _Trunk(nn.Module):
    def __init__(self, config: LLaDA2Config):
        super().__init__()
        self._config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
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
        x_BSD = self.word_embeddings(ids_BS)
        rotary = _rotary(positions_BS, self._config, x_BSD.dtype)
        for layer in self.layers:
            x_BSD = layer(x_BSD, rotary, mask, copies, cache)
        result_BSD: torch.Tensor = self.norm(x_BSD)
        return result_BSD


class LLaDA2MoE(nn.Module):
    """The model, with parameters named as published but for the experts, which are stacked."""

    def __init__(self, config: LLaDA2Config):
        super().__init__()
        self.config = config
        self.model = _Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def published_tensors(self) -> dict[str, torch.Tensor]:
        """Every weight, or the view of a stacked one, under its published name."""
        result = {name: tensor for name, tensor in self.state_dict().items() if ".experts." not in name}
        for name, module in self.named_modules():
            if isinstance(module, _Experts):
                result |= module.published(name)
        return result


def _rotary(positions_BS: torch.Tensor, config: LLaDA2Config, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Give cosine and sine of the angles, [B, 1, S, rotary dimensions]."""
    exponent = torch.arange(0, config.rotary_dim, 2, device=positions_BS.device).float() / config.rotary_dim
    angle = positions_BS[:, None, :, None].float() * config.rope_theta**-exponent
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first dimensions of each head, in pairs that lie half of them apart; the others pass."""
    turned, passed = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    left, right = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-right, left], dim=-1) * sin, passed], dim=-1)


class LLaDA2Backbone(Backbone):
    """A LLaDA2 model as the rest of the package sees it."""

    @property
    def head_VD(self) -> torch.Tensor:
        """Weight of the output head, the embedding's own when tied."""
        model = self.model
        assert isinstance(model, LLaDA2MoE)
        weight: torch.Tensor = (
            model.model.word_embeddings if self.config.tie_word_embeddings else model.lm_head
        ).weight
        return weight

    def forward(self, packed: PackedInput, cache: Cache | None = None) -> torch.Tensor:
        """Give the last hidden states [B, S, D], after the final norm; see `Backbone`."""
        mask = prepare_mask(packed.mask_B1SS, self._attention, packed.copies)
        hidden_BSD: torch.Tensor = self.model.model(  # type: ignore[operator]
            packed.ids_BS, packed.positions_BS, mask, packed.copies, cache
        )
        return hidden_BSD


@dataclass(frozen=True)
class LLaDA2Adapter:
    """Loads the published layout: see `Adapter`."""

    replaces_code: bool = True
    is_stock: bool = False

    def read_config(self, raw: Mapping[str, Any], location: str) -> LLaDA2Config:
        """Check config.json and take from it what the module needs."""
        try:
            return LLaDA2Config.model_validate(dict(raw))
        except ValidationError as error:
            faults = [_fault(entry) for entry in error.errors()]
            raise ModelError(
                fault_list(
                    f"{location}/config.json: no usable llada2_moe configuration:",
                    faults,
                    _way_out(error.errors()),
                )
            ) from None

    def mask_id(self, raw: Mapping[str, Any]) -> int | None:
        """Leave it to the tokenizer, which names its mask token."""
        return None

    def load(self, info: CheckpointInfo, plan: LoadPlan) -> Backbone:
        """Load the weights onto the device, tensor by tensor."""
        with torch.device("meta"):
            model = LLaDA2MoE(info.config).to(plan.dtype)
        for module in model.modules():
            if isinstance(module, _Router):
                module.float()
        try:
            model.to_empty(device=plan.device).requires_grad_(False)
        except RuntimeError as error:  # of main memory; a full GPU raises a subclass of it
            raise no_room(info, plan, error) from None
        load_tensors(info.folder, model.published_tensors())
        return LLaDA2Backbone(model, plan.attention)


def _way_out(entries: Sequence[Any]) -> str:
    """Say what helps: a feature that is not implemented comes back with every download."""
    damaged = any(entry["type"] != "literal_error" for entry in entries)
    unsupported = any(entry["type"] in ("literal_error", "value_error") for entry in entries)
    ways = ["Copy or download the file again, if it was changed or cut short."] if damaged else []
    if unsupported:
        ways.append(
            "Values other than the expected ones are variants that are not implemented: use another checkpoint, or an "
            "adapter of your own (docs/teachers.md)."
        )
    return " ".join(ways)


def _fault(entry: Any) -> str:
    field = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "missing":
        return f"{field}: missing"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{field}: found {entry['input']!r}: {message}" if field else message
