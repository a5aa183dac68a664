"""config.json of mixtures of experts, by family, and what the module in `mixture` reads from it.

A feature that the module lacks is refused, never ignored: a field with one allowed value names a feature of which only
that variant is implemented. If the field may be absent, that value is the default of the published configuration class.
Numbers have no default. A switch that decides which tensors exist has one, since a wrong value is noticed: tensors
would be missing or left over.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from tide_cache.errors import ModelError, fault_list
from tide_cache.families import Family, sibling_faults


class Routing(NamedTuple):
    """Which experts a token goes to.

    Attributes:
        experts_per_token: How many.
        is_normalised: Their weights sum to `scaling`.
        scaling: Factor of the weights.
        num_groups: Sigmoid scores with a bias, among the experts of the best groups; None for a softmax over all.
        groups_per_token: How many of the groups.
    """

    experts_per_token: int
    is_normalised: bool
    scaling: float = 1.0
    num_groups: int | None = None
    groups_per_token: int = 1


class MixtureConfig(BaseModel):
    """Fields that all families have under the same names, and what the module reads of each family."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    renamed: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Parts of the module's parameter names, and the family's names for them."""
    is_qkv_stacked: ClassVar[bool] = False
    """Whether weights of query, key and value are one tensor in the files."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    head_dim: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: PositiveFloat
    rope_theta: PositiveFloat
    num_experts: PositiveInt
    num_experts_per_tok: PositiveInt
    tie_word_embeddings: bool = False

    hidden_act: Literal["silu"]
    rope_scaling: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _rope_of_newer_files(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Read the numbers of RoPE, which transformers 5 writes into a separate object."""
        rope, older = (raw.get(name) or {} for name in ("rope_parameters", "rope_scaling"))
        for name, found in (("rope_parameters", rope), ("rope_scaling", older)):
            if not isinstance(found, dict):
                raise ValueError(f"{name}: found {found!r}, expected an object")
        numbers = {k: rope[k] for k in ("rope_theta", "partial_rotary_factor") if k in rope}
        return {**numbers, **raw, "rope_scaling": _scaling_of({**older, **rope})}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} is more than {self.num_experts} experts")
        return self

    def published_name(self, name: str) -> str:
        """Return the name in the family's files of a parameter of the module."""
        for ours, theirs in self.renamed:
            name = name.replace(ours, theirs)
        return name

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of each head are rotated, the first ones."""
        return self.head_dim

    @property
    def has_qk_norm(self) -> bool:
        """Whether queries and keys are normalised, head by head."""
        return True

    @property
    def has_qkv_bias(self) -> bool:
        """Whether query, key and value have biases."""
        raise NotImplementedError

    @property
    def has_output_bias(self) -> bool:
        """Whether the attention's output has a bias."""
        raise NotImplementedError

    @property
    def routing(self) -> Routing:
        """Which experts a token goes to."""
        raise NotImplementedError

    @property
    def expert_size(self) -> int:
        """Inner size of an expert."""
        raise NotImplementedError

    @property
    def shared_size(self) -> int:
        """Inner size of the shared experts, which every token also goes to; 0 for none."""
        return 0

    def dense_size(self, layer: int) -> int:
        """Return the inner size of a layer without experts; 0 for one with."""
        raise NotImplementedError


SCALED_ROPES = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kinds of scaled RoPE that transformers computes, and the numbers that each needs."""


def _scaling_of(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `rope_type` and its numbers; None where nothing is scaled."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in SCALED_ROPES:
        raise ValueError(f"rope_scaling: found rope_type {kind!r}, expected one of {', '.join(SCALED_ROPES)}")
    lacking = [name for name in SCALED_ROPES[kind] if not isinstance(rope.get(name), int | float)]
    if lacking:
        raise ValueError(f"rope_scaling: found {dict(rope)}, expected numbers for {', '.join(lacking)}")
    outside = ("type", "rope_theta", "partial_rotary_factor")
    return {"rope_type": kind, **{name: value for name, value in rope.items() if name not in outside}}


class LLaDA2Config(MixtureConfig):
    """config.json of a `llada2_moe` checkpoint."""

    renamed = (
        ("model.embed_tokens", "model.word_embeddings"),
        ("self_attn.qkv_proj", "attention.query_key_value"),
        ("self_attn.o_proj", "attention.dense"),
        ("self_attn.q_norm", "attention.query_layernorm"),
        ("self_attn.k_norm", "attention.key_layernorm"),
    )
    is_qkv_stacked = True

    intermediate_size: PositiveInt
    partial_rotary_factor: PositiveFloat
    num_shared_experts: int
    n_group: PositiveInt
    topk_group: PositiveInt
    moe_intermediate_size: PositiveInt
    first_k_dense_replace: int
    routed_scaling_factor: PositiveFloat
    use_qk_norm: bool = True
    use_qkv_bias: bool = False
    use_bias: bool = False

    score_function: Literal["sigmoid"] = "sigmoid"
    norm_topk_prob: Literal[True] = True
    moe_router_enable_expert_bias: Literal[True] = True
    use_sliding_window: Literal[False, None] = False
    norm_head: Literal[False] = False
    use_rmsnorm: Literal[True] = True
    using_split_qkv_in_self_attention: Literal[False] = False

    @model_validator(mode="after")
    def _consistent_groups(self) -> Self:
        if self.num_experts % self.n_group:
            raise ValueError(f"num_experts {self.num_experts} is not a multiple of n_group {self.n_group}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} is more than n_group {self.n_group}")
        if self.num_experts_per_tok > (reachable := self.topk_group * self.num_experts // self.n_group):
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} is more than {reachable} within reach")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise ValueError(f"partial_rotary_factor {self.partial_rotary_factor} gives {self.rotary_dim} dimensions")
        return self

    @property
    def rotary_dim(self) -> int:
        """The first dimensions of a head; the others are not rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def has_qk_norm(self) -> bool:
        """As config.json says."""
        return self.use_qk_norm

    @property
    def has_qkv_bias(self) -> bool:
        """As config.json says."""
        return self.use_qkv_bias

    @property
    def has_output_bias(self) -> bool:
        """As config.json says."""
        return self.use_bias

    @property
    def routing(self) -> Routing:
        """Sigmoid scores in groups."""
        return Routing(self.num_experts_per_tok, True, self.routed_scaling_factor, self.n_group, self.topk_group)

    @property
    def expert_size(self) -> int:
        """That of the routed ones."""
        return self.moe_intermediate_size

    @property
    def shared_size(self) -> int:
        """All shared experts together."""
        return self.num_shared_experts * self.moe_intermediate_size

    def dense_size(self, layer: int) -> int:
        """Only the first layers have no experts."""
        return self.intermediate_size if layer < self.first_k_dense_replace else 0


class _SoftmaxConfig(MixtureConfig):
    """Fields of the families with a softmax router."""

    attention_bias: bool = False

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """Fill in the size of heads if config.json does not give it, and the number of experts by its older name."""
        size, count = raw.get("hidden_size"), raw.get("num_attention_heads")
        if raw.get("head_dim") is None and isinstance(size, int) and isinstance(count, int) and count > 0:
            raw = {**raw, "head_dim": size // count}
        return {"num_experts": raw["num_local_experts"], **raw} if "num_local_experts" in raw else raw

    @property
    def has_qkv_bias(self) -> bool:
        """As config.json says."""
        return self.attention_bias

    @property
    def has_output_bias(self) -> bool:
        """As config.json says."""
        return self.attention_bias

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.head_dim % 2:
            raise ValueError(f"heads of {self.head_dim} dimensions cannot be rotated in pairs")
        return self


class LLaDAMoEConfig(_SoftmaxConfig):
    """config.json of a LLaDA-MoE checkpoint."""

    expert_intermediate_size: PositiveInt
    dense_intermediate_size: PositiveInt | None = None
    moe_layer_freq: int | list[int] = Field(default=1)
    qk_layernorm: bool = True

    norm_topk_prob: bool | None = False
    moe_router_score_function: Literal["softmax"] = "softmax"
    moe_router_enable_expert_bias: Literal[False] = False
    shared_expert_intermediate_size: Literal[None, 0] = None
    partial_rotary_factor: Literal[1, None] = None
    routed_scaling_factor: Literal[1, None] = None
    router_num_group: None = None
    router_topk_group: None = None
    clip_qkv: None = None

    @model_validator(mode="after")
    def _layers(self) -> Self:
        freq = self.moe_layer_freq
        if isinstance(freq, int):
            if freq != 1:
                raise ValueError(f"moe_layer_freq: found {freq}, expected 1, or a 0 or 1 for each layer")
        elif len(freq) != self.num_hidden_layers or not set(freq) <= {0, 1}:
            raise ValueError(
                f"moe_layer_freq: found {freq}, expected a 0 or 1 for each of {self.num_hidden_layers} layers"
            )
        elif 0 in freq and self.dense_intermediate_size is None:
            raise ValueError("dense_intermediate_size: missing, and moe_layer_freq names layers without experts")
        return self

    @property
    def has_qk_norm(self) -> bool:
        """As config.json says."""
        return self.qk_layernorm

    @property
    def routing(self) -> Routing:
        """A softmax over all experts; the published checkpoint uses the largest without normalising."""
        return Routing(self.num_experts_per_tok, bool(self.norm_topk_prob))

    @property
    def expert_size(self) -> int:
        """That of the routed ones."""
        return self.expert_intermediate_size

    def dense_size(self, layer: int) -> int:
        """Return the size of a layer whose entry is 0: it has no experts."""
        has_experts = isinstance(self.moe_layer_freq, int) or self.moe_layer_freq[layer]
        return 0 if has_experts else self.dense_intermediate_size or 0


class SDARMoEConfig(_SoftmaxConfig):
    """config.json of a `sdar_moe` checkpoint, that of a Qwen3-MoE."""

    intermediate_size: PositiveInt
    moe_intermediate_size: PositiveInt
    norm_topk_prob: bool
    decoder_sparse_step: PositiveInt = 1
    mlp_only_layers: list[int] | None = None

    use_sliding_window: Literal[False, None] = False

    @property
    def routing(self) -> Routing:
        """A softmax over all experts."""
        return Routing(self.num_experts_per_tok, self.norm_topk_prob)

    @property
    def expert_size(self) -> int:
        """That of the routed ones."""
        return self.moe_intermediate_size

    def dense_size(self, layer: int) -> int:
        """Return the size of layers that are listed, or not at every n-th place: they have no experts."""
        has_experts = layer not in (self.mlp_only_layers or []) and (layer + 1) % self.decoder_sparse_step == 0
        return 0 if has_experts else self.intermediate_size


def read_mixture_config(
    config_class: type[MixtureConfig], family: Family, raw: Mapping[str, Any], location: str
) -> MixtureConfig:
    """Check config.json, and return what the module needs of it.

    Args:
        config_class: Class of the family.
        family: The family, for messages.
        raw: Content of config.json.
        location: Location of the checkpoint, for messages.

    Raises:
        ModelError: A number is missing, or a feature is not implemented; lists everything.
    """
    try:
        return config_class.model_validate(dict(raw))
    except ValidationError as error:
        faults = [*sibling_faults(family, raw), *(_fault(entry) for entry in error.errors())]
        raise ModelError(
            fault_list(
                f"{location}/config.json: no usable {family.name} configuration:", faults, _way_out(error.errors())
            )
        ) from None


def _way_out(entries: Sequence[Any]) -> str:
    """Return what helps: another download would have the same missing features."""
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
