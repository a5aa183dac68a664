"""What is supported: one table of checkpoint families, read by adapters, messages, `doctor` and the docs.

Nothing heavy is imported here: a command looks a checkpoint up before it loads anything.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

ShownContext = Literal["block", "full", "causal"]

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Fields under which a configuration may state its number of experts."""


@dataclass(frozen=True)
class Family:
    """Checkpoints that one adapter loads.

    Attributes:
        name: What identities, messages and the tables call it: its `model_type`, where no other family has the same.
        models: Published checkpoints.
        shape: Description of the architecture.
        is_stock: transformers' own model serves it; only such models can be quantised and spread over GPUs.
        model_types: What config.json may have as `model_type`.
        architectures: Class names in config.json; they distinguish families with one `model_type`.
        replaces_code: It replaces the code that such checkpoints name in `auto_map`.
        native: What it was trained to be shown; a causal model denoises only after training.
        contexts: What it can be shown.
        is_shifted: The output at position i - 1 predicts token i; the adapter puts every row at its own token.
        mask_id: The mask token it was trained with, where config.json does not say.
        mask_text: That token, or who names it.
        block_field: Where config.json states the block size of the training.
        has_experts: It is a mixture of experts.
        sibling: The family that has experts if this one has none, and the reverse.
        tells: Fields of config.json that distinguish it from other families.
        licence: Of the published weights.
    """

    name: str
    models: str
    shape: str
    is_stock: bool
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    replaces_code: bool = True
    native: ShownContext = "block"
    contexts: tuple[ShownContext, ...] = ("block", "full")
    is_shifted: bool = False
    mask_id: int | None = None
    mask_text: str = "the tokenizer's own"
    block_field: str | None = None
    has_experts: bool = False
    sibling: str | None = None
    tells: tuple[str, ...] = ()
    licence: str = ""

    @property
    def is_student(self) -> bool:
        """Whether it can be trained: a saved student is a stock model whose outputs predict their own positions."""
        return self.is_stock and not self.is_shifted

    def mask_id_in(self, raw: Mapping[str, Any]) -> int | None:
        """Return the mask token that config.json states, else the family's own, where the vocabulary has it."""
        stated = raw.get("mask_token_id")
        if isinstance(stated, int) and not isinstance(stated, bool):
            return stated
        size = raw.get("vocab_size")
        return self.mask_id if self.mask_id is not None and isinstance(size, int) and self.mask_id < size else None


def _causal(name: str, architecture: str, models: str, *tells: str) -> Family:
    return Family(
        name, models, f"stock {architecture}", True, (name,), (f"{architecture}ForCausalLM",), replaces_code=False,
        native="causal", contexts=("causal", "block", "full"), mask_text="name one", tells=tells,
        licence="the model's own",
    )  # fmt: skip


def _student(stock: str, architecture: str) -> Family:
    return Family(
        f"a2d-{stock}", "students of this project and of dllm", f"stock {architecture}", True, (f"a2d-{stock}",),
        (f"A2D{architecture}LMHeadModel",), licence="that of the model it started from",
    )  # fmt: skip


_QWEN3 = ("hidden_size", "head_dim")
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "sdar", "SDAR-1.7B, 4B, 8B-Chat; TraDo", "stock Qwen3", True, ("sdar",), ("SDARForCausalLM",),
            mask_id=151669, mask_text="`<|MASK|>`", block_field="block_size", sibling="sdar_moe",
            tells=(*_QWEN3, "block_size"), licence="Apache-2.0 (model card)",
        ),
        Family(
            "sdar_moe", "SDAR-30B-A3B", "Qwen3-MoE, our own module", False, ("sdar_moe",), ("SDARMoeForCausalLM",),
            mask_id=151669, mask_text="`<|MASK|>`", block_field="block_size", has_experts=True, sibling="sdar",
            tells=(*_QWEN3, "block_size", "num_experts", "decoder_sparse_step"), licence="Apache-2.0 (model card)",
        ),
        Family(
            "llada", "LLaDA-8B, LLaDA-1.5", "stock Llama, own tensor names", True, ("llada",), ("LLaDAModelLM",),
            native="full", mask_id=126336, mask_text="`<|mdm_mask|>`", sibling="llada_moe",
            tells=("d_model", "n_heads", "n_layers", "mlp_hidden_size", "weight_tying"), licence="MIT (model card)",
        ),
        Family(
            "llada_moe", "LLaDA-MoE-7B-A1B", "softmax router, our own module", False,
            ("llada", "llada_moe", "lladamoe"), ("LLaDAMoEModelLM", "LLaDAMoEModel"), native="full", mask_id=156895,
            mask_text="`<|mask|>`", has_experts=True, sibling="llada",
            tells=("hidden_size", "num_experts", "expert_intermediate_size", "moe_layer_freq"),
            licence="Apache-2.0 (model card)",
        ),
        Family(
            "llada2_moe", "LLaDA2.0-mini, LLaDA2.1-mini", "grouped sigmoid router, our own module", False,
            ("llada2_moe",), ("LLaDA2MoeModelLM",), mask_text="the tokenizer's own (`<|mask|>`)", has_experts=True,
            tells=("hidden_size", "head_dim", "num_experts", "n_group", "num_shared_experts", "first_k_dense_replace"),
            licence="Apache-2.0",
        ),
        Family(
            "Dream", "Dream-v0-7B, Dream-Coder, DiffuCoder", "stock Qwen2", True, ("Dream",), ("DreamModel",),
            native="full", is_shifted=True, mask_id=151666, mask_text="`<|mask|>`",
            tells=("hidden_size", "mask_token_id", "max_window_layers"), licence="Apache-2.0 (model card)",
        ),
        Family(
            "Fast_dLLM_Qwen", "Fast_dLLM_v2_1.5B, 7B", "stock Qwen2", True, ("Fast_dLLM_Qwen",),
            ("Fast_dLLM_QwenForCausalLM",), is_shifted=True, mask_id=151665, mask_text="`|<MASK>|`",
            block_field="bd_size", tells=("hidden_size", "bd_size", "max_window_layers"),
            licence="read the model card",
        ),
        Family(
            "wedlm", "WeDLM-8B-Instruct", "stock Qwen3", True, ("wedlm",), ("WeDLMForCausalLM",), mask_id=151665,
            mask_text="`<tool_response>`", tells=(*_QWEN3, "qk_norm"),
            licence="card: Apache-2.0; its LICENSE: not for use in the EU",
        ),
        _student("qwen3", "Qwen3"),
        _student("qwen2", "Qwen2"),
        _student("llama", "Llama"),
        _causal("qwen3", "Qwen3", "Qwen3", *_QWEN3),
        _causal("qwen2", "Qwen2", "Qwen2, Qwen2.5", "hidden_size", "max_window_layers"),
        _causal("llama", "Llama", "Llama, SmolLM2", "hidden_size", "mlp_bias"),
    )
}  # fmt: skip
"""All of them, by name."""


def find_family(raw: Mapping[str, Any]) -> Family | None:
    """Return the family of a configuration; None where nothing here loads it.

    Args:
        raw: Content of config.json.
    """
    candidates = [family for family in FAMILIES.values() if raw.get("model_type") in family.model_types]
    named = [family for family in candidates if set(_architectures(raw)) & set(family.architectures)]
    alike = [family for family in candidates if family.has_experts == (num_experts(raw) is not None)]
    return next(iter([*named, *alike, *candidates]), None)


def num_experts(raw: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return how many experts a configuration states, and in which field; None for a dense model."""
    for name in _EXPERTS:
        if isinstance(value := raw.get(name), int) and value > 1:
            return name, value
    return None


def sibling_faults(family: Family, raw: Mapping[str, Any]) -> list[str]:
    """Describe a mixture of experts under the name of a dense family, or the reverse.

    Args:
        family: As returned by `find_family`.
        raw: Content of config.json.
    """
    found = num_experts(raw)
    if family.has_experts == (found is not None):
        return []
    sibling = FAMILIES[family.sibling] if family.sibling else None
    field, value = found or (_EXPERTS[0], raw.get(_EXPERTS[0]))
    kind = "a dense model" if found else "a mixture of experts"
    way_out = "give a checkpoint of a supported family (docs/teachers.md)"
    if sibling is not None:
        ours, theirs = (f"architectures {list(of.architectures[:1])}" for of in (family, sibling))
        if family.model_types[0] != sibling.model_types[0]:
            ours, theirs = (f"model_type {of.name!r}" for of in (family, sibling))
        way_out = f"if the weights are what that field says, expected {theirs} in the place of {ours}"
    return [f"{field}: found {value!r}, but {family.name} is {kind}; {way_out}"]


def nearest_family(raw: Mapping[str, Any]) -> tuple[Family, list[str]]:
    """Return the family that an unknown configuration is most like, and what differs.

    Args:
        raw: Content of config.json.
    """
    every_tell = {name for family in FAMILIES.values() for name in family.tells}
    stated = {name for name in every_tell if raw.get(name) is not None}
    names = [str(raw.get("model_type") or ""), *_architectures(raw)]

    def likeness(family: Family) -> float:
        known = [*family.model_types, *family.architectures]
        by_name = max(_likeness(one, other) for one in names for other in known)
        tells = set(family.tells)
        by_field = len(tells & stated) / len(tells | stated) if tells | stated else 0.0
        return by_name + by_field - (family.has_experts != (num_experts(raw) is not None))

    nearest = max(FAMILIES.values(), key=likeness)
    return nearest, list(_differences(nearest, raw, stated))


def _differences(family: Family, raw: Mapping[str, Any], stated: set[str]) -> Iterator[str]:
    yield f"model_type {raw.get('model_type')!r} for {family.model_types[0]!r}"
    architectures = _architectures(raw)
    if architectures and not set(architectures) & set(family.architectures):
        yield f"architectures {architectures} for {list(family.architectures[:1])}"
    if (found := num_experts(raw)) is not None and not family.has_experts:
        yield f"{found[0]} {found[1]}, which {family.name} does not have"
    for name in sorted(stated - set(family.tells) - set(_EXPERTS)):
        yield f"{name} {raw[name]!r}, which {family.name} does not have"
    if absent := [name for name in family.tells if raw.get(name) is None]:
        yield f"no {', '.join(absent)}"


def _architectures(raw: Mapping[str, Any]) -> list[str]:
    named = raw.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()
