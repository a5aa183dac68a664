"""Every family says what its published code says, each row at its own token, and refuses what it would get wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tide_cache.errors import ModelError
from tide_cache.families import FAMILIES, nearest_family
from tide_cache.modeling.backbone import load_backbone, read_checkpoint, student_faults
from tide_cache.modeling.kept import keep_blocks
from tide_cache.modeling.packing import PackedInput, pack_block, pack_full
from tide_cache.modeling.stock import StockBackbone

RECORDED = {
    "llada_tiny": ("llada", ("full",)),
    "llada_moe_tiny": ("llada_moe", ("full", "block_xt_x0", "block_x0_xt")),
    "dream_tiny": ("Dream", ("full", "block_xt_x0", "block_x0_xt")),
    "llada21_tiny": ("llada2_moe", ("full", "block_xt_x0", "block_x0_xt")),
}
FORMS = [(name, form) for name, (_, forms) in RECORDED.items() for form in forms]


@pytest.fixture(scope="module")
def golden(shared):
    """Return a recorded checkpoint's folder, its arrays and its backbone."""
    opened = {}

    def give(name):
        if name not in opened:
            folder = shared / "golden/models" / name
            arrays = {key: torch.from_numpy(array) for key, array in np.load(folder / "io.npz").items()}
            arrays = {key: array.long() if array.dtype == torch.int32 else array for key, array in arrays.items()}
            opened[name] = folder, arrays, load_backbone(read_checkpoint(str(folder)), torch.float32, "cpu")
        return opened[name]

    return give


def packed_as(io, form):
    """Return the input of a recorded form, and which of its rows were recorded."""
    length = io["ids"].shape[1]
    if form == "full":
        return pack_full(io["ids"], io["pad"]), slice(0, length)
    packed = pack_block(io["ids"][:, None], io["x0"], torch.ones_like(io["pad"]), int(io["block_size"]))
    if form == "block_xt_x0":
        return packed, slice(0, length)
    swap = torch.arange(2 * length).roll(length)
    mask_B1SS = packed.mask_B1SS[:, :, swap][..., swap]
    return PackedInput(packed.ids_BS[:, swap], packed.positions_BS, mask_B1SS), slice(length, 2 * length)


@torch.no_grad()
def logits_of(backbone, hidden_BSD):
    return hidden_BSD @ backbone.head_VD.T


@pytest.mark.parametrize(("name", "form"), FORMS)
@torch.no_grad()
def test_the_published_code_is_reproduced_in_every_recorded_form(golden, name, form):
    _, io, backbone = golden(name)
    packed, rows = packed_as(io, form)
    got_BLV = logits_of(backbone, backbone.outputs(packed))[:, rows]
    want_BLV = io[f"logits_{form}"]
    is_real_BL = io["pad"] if form == "full" else torch.ones_like(io["pad"])
    torch.testing.assert_close(got_BLV[is_real_BL], want_BLV[is_real_BL], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", RECORDED)
def test_a_checkpoint_is_told_apart_by_its_configuration(golden, name):
    folder, _, backbone = golden(name)
    info = read_checkpoint(str(folder))
    assert info.model_type == RECORDED[name][0]
    stated = json.loads((folder / "config.json").read_text()).get("mask_token_id")
    assert info.mask_id == stated  # the ids that families have by themselves are above this vocabulary
    assert info.vocab_size == len(backbone.head_VD)


# The shift


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, form in FORMS if form != "block_x0_xt"])
@torch.no_grad()
def test_every_row_speaks_of_the_token_at_its_own_position(golden, name, form):
    """Shifted: what was recorded at i - 1 lies at i; the first row is its own; a block's first row looks further."""
    _, io, backbone = golden(name)
    packed, rows = packed_as(io, form)
    got_BLV, want_BLV = logits_of(backbone, backbone(packed))[:, rows], io[f"logits_{form}"]
    is_real_BL = io["pad"] if form == "full" else torch.ones_like(io["pad"])
    if FAMILIES[RECORDED[name][0]].is_shifted:
        want_BLV = torch.cat([want_BLV[:, :1], want_BLV[:, :-1]], dim=1)
        if form != "full":
            is_real_BL[:, int(io["block_size"]) :: int(io["block_size"])] = False
    torch.testing.assert_close(got_BLV[is_real_BL], want_BLV[is_real_BL], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_blocks_first_row_is_what_the_clean_token_before_it_outputs(golden):
    _, io, backbone = golden("dream_tiny")
    packed, _ = packed_as(io, "block_xt_x0")
    length, size = io["ids"].shape[1], int(io["block_size"])
    raw_BSD, own_BSD = backbone.outputs(packed), backbone(packed)
    firsts = torch.arange(size, length, size)
    torch.testing.assert_close(own_BSD[:, firsts], raw_BSD[:, length + firsts - 1], atol=0, rtol=0)
    assert not torch.allclose(own_BSD[:, firsts], raw_BSD[:, firsts - 1], atol=1e-3)


@pytest.mark.parametrize("name", ["dream_tiny", "llada_moe_tiny"])
@torch.no_grad()
def test_views_packed_or_cut_or_side_by_side_give_the_rows_of_one_alone(golden, name):
    """Several views on one clean copy, blocks left out, two samples in a row: the same hidden states."""
    _, io, backbone = golden(name)
    size, length = int(io["block_size"]), io["x0"].shape[1]
    x_0_BL, real_BL = io["x0"], torch.ones_like(io["pad"])
    views_BnL = torch.stack([io["ids"], x_0_BL.where(torch.arange(length) % 3 > 0, 159)], dim=1)
    alone = [backbone(pack_block(views_BnL[:, v : v + 1], x_0_BL, real_BL, size))[:, :length] for v in range(2)]
    wanted_BL = torch.zeros_like(real_BL)
    wanted_BL[:, size : size + 3] = wanted_BL[:, -1] = True  # the first block has none
    row_N, position_N = wanted_BL.nonzero(as_tuple=True)
    of_both = row_N.repeat(2), torch.cat([position_N, length + position_N])
    kept = keep_blocks(*of_both, x_0_BL.shape, size)
    together = backbone(pack_block(views_BnL, x_0_BL, real_BL, size))
    cut = backbone(pack_block(views_BnL, x_0_BL, real_BL, size, kept=kept))
    sample_BL = torch.arange(2).repeat_interleave(length)[None]
    rows = (x.reshape(1, -1) for x in (x_0_BL, real_BL))
    packed = backbone(pack_block(io["ids"].reshape(1, 1, -1), *rows, size, sample_BL))
    for v in range(2):
        torch.testing.assert_close(together[:, v * length : (v + 1) * length], alone[v], atol=1e-5, rtol=0)
        place_N = kept.place_N.chunk(2)[v]
        torch.testing.assert_close(cut[row_N, place_N], alone[v][row_N, position_N], atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[:, : 2 * length].view(2, length, -1), alone[0], atol=1e-5, rtol=0)


# Stock shapes under other names


def write(folder, source, weights=None, **changes):
    """Write a copy of a checkpoint with a changed configuration, or other weights."""
    folder.mkdir(exist_ok=True)
    config = json.loads((source / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "(absent)"}))
    if weights is None:
        shutil.copy(source / "model.safetensors", folder)
    else:
        save_file(weights, folder / "model.safetensors")
    return str(folder)


SDAR = {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": 8, "mask_token_id": 159}
SDAR |= {"auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"}}


@torch.no_grad()
def test_sdar_is_the_students_own_shape(tmp_path, shared):
    source = shared / "golden/models/a2d_qwen3_tiny"
    info = read_checkpoint(write(tmp_path, source, **SDAR))
    assert (info.model_type, info.mask_id, info.block_size) == ("sdar", 159, 8)
    assert student_faults(info) == []
    io = {key: torch.from_numpy(array).long() for key, array in np.load(source / "io.npz").items() if array.ndim < 3}
    backbone = load_backbone(info, torch.float32, "cpu")
    packed = pack_block(io["xt"][:, None], io["x0"], torch.ones_like(io["x0"], dtype=torch.bool), 8)
    got_BLV = logits_of(backbone, backbone(packed))[:, : io["x0"].shape[1]]
    np.testing.assert_allclose(got_BLV, np.load(source / "io.npz")["logits_block"], atol=1e-5)


@torch.no_grad()
def test_fast_dllm_is_dream_under_another_name(tmp_path, golden):
    folder, io, dream = golden("dream_tiny")
    changes = {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 8}
    info = read_checkpoint(write(tmp_path, folder, **changes))
    assert (info.model_type, info.block_size) == ("Fast_dLLM_Qwen", 8)
    packed, _ = packed_as(io, "block_xt_x0")
    assert torch.equal(load_backbone(info, torch.float32, "cpu")(packed), dream(packed))
    assert "rows speak of the next token" in student_faults(info)[0]


QWEN3_MOE = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 80, "moe_intermediate_size": 24,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "num_experts": 8,
    "num_experts_per_tok": 3, "rms_norm_eps": 1e-5, "mlp_only_layers": [0], "decoder_sparse_step": 1,
    "tie_word_embeddings": False, "initializer_range": 0.2,
}  # fmt: skip


SCALINGS = (
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_topk_prob": True},
        {"norm_topk_prob": False, "attention_bias": True, "decoder_sparse_step": 2, "mlp_only_layers": []},
        {"norm_topk_prob": True, "tie_word_embeddings": True},
        *({"norm_topk_prob": True, "rope_scaling": {"rope_theta": 5e5, **scaling}} for scaling in SCALINGS),
    ],
    ids=["published", "biases and every second layer", "tied", *(scaling["rope_type"] for scaling in SCALINGS)],
)
@torch.no_grad()
def test_sdar_moe_equals_the_stock_qwen3_moe(tmp_path, golden, changes):
    """SDAR-MoE is a Qwen3-MoE under another mask, which transformers has; its own expert loop is the reference."""
    config = SDAR | {"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"]} | changes
    require_equal_to_stock(tmp_path, golden, changes, config)


@torch.no_grad()
def test_llada_moe_with_normalised_weights_equals_the_stock_qwen3_moe(tmp_path, golden):
    """LLaDA-MoE names its tensors as Qwen3-MoE does."""
    config = {
        "model_type": "llada_moe", "architectures": ["LLaDAMoEModelLM"], "expert_intermediate_size": 24,
        "dense_intermediate_size": 80, "moe_layer_freq": [0, 1, 1, 1],
    }  # fmt: skip
    require_equal_to_stock(tmp_path, golden, {"norm_topk_prob": True}, config)


def require_equal_to_stock(tmp_path, golden, changes, config):
    """Save transformers' Qwen3-MoE, and load it under another family's configuration."""
    torch.manual_seed(5)
    rope = changes.get("rope_scaling", {"rope_type": "default", "rope_theta": 5e5})
    shape = QWEN3_MOE | {name: value for name, value in changes.items() if name != "rope_scaling"}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, rope_parameters=dict(rope)))
    for weight in model.parameters():
        weight.copy_(torch.randn_like(weight) / 6 + (weight.dim() == 1))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((tmp_path / "config.json").read_text()) | config))
    ours = load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")
    _, io, _ = golden("dream_tiny")
    for form in ("full", "block_xt_x0"):
        packed, _ = packed_as(io, form)
        want_BSD = StockBackbone(model.eval())(packed)
        torch.testing.assert_close(ours(packed), want_BSD, atol=1e-4, rtol=1e-5)
        assert want_BSD.std() > 0.1


@torch.no_grad()
def test_llada_reads_weight_tying_and_grouped_heads_and_biases(tmp_path, golden):
    folder, io, _ = golden("llada_tiny")
    weights = load_file(folder / "model.safetensors")
    del weights["model.transformer.ff_out.weight"]
    tied = load_backbone(
        read_checkpoint(write(tmp_path / "tied", folder, weights, weight_tying=True)), torch.float32, "cpu"
    )
    assert torch.equal(tied.head_VD, weights["model.transformer.wte.weight"])
    for name in list(weights):
        if ".k_proj." in name or ".v_proj." in name:
            weights[name] = weights[name].view(2, 2, 16, 64).mean(dim=1).reshape(32, 64)
    grouped = write(tmp_path / "grouped", folder, weights, weight_tying=True, n_kv_heads=2, mlp_hidden_size=96)
    repeated = {
        name: tensor.view(2, 1, 16, 64).expand(-1, 2, -1, -1).reshape(64, 64) if tensor.shape == (32, 64) else tensor
        for name, tensor in weights.items()
    }
    same = write(tmp_path / "same", folder, repeated, weight_tying=True)
    biases = {
        f"model.transformer.blocks.{layer}.{part}.bias": torch.zeros(64)
        for layer in range(3)
        for part in ("q_proj", "k_proj", "v_proj")
    }
    biased = write(tmp_path / "biased", folder, repeated | biases, weight_tying=True, include_qkv_bias=True)
    packed, _ = packed_as(io, "full")
    got, *others = (
        load_backbone(read_checkpoint(place), torch.float32, "cpu")(packed) for place in (grouped, same, biased)
    )
    for other in others:
        torch.testing.assert_close(got, other, atol=1e-5, rtol=0)


def test_a_head_of_its_own_is_kept_though_the_configuration_says_it_is_tied(tmp_path, golden):
    folder, _, published = golden("llada_tiny")
    info = read_checkpoint(write(tmp_path, folder, weight_tying=True))
    assert torch.equal(load_backbone(info, torch.float32, "cpu").head_VD, published.head_VD)


@torch.no_grad()
def test_layers_without_experts_have_a_dense_part(tmp_path, golden):
    folder, io, _ = golden("llada_moe_tiny")
    weights = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not name.startswith("model.layers.0.mlp.")
    }
    generator = torch.Generator().manual_seed(1)
    for part, shape in (("gate_proj", (64, 64)), ("up_proj", (64, 64)), ("down_proj", (64, 64))):
        weights[f"model.layers.0.mlp.{part}.weight"] = torch.randn(shape, generator=generator) / 8
    place = write(tmp_path, folder, weights, moe_layer_freq=[0, 1, 1])
    hidden_BSD = load_backbone(read_checkpoint(place), torch.float32, "cpu")(packed_as(io, "full")[0])
    assert hidden_BSD.isfinite().all()


# What is refused


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "llada_moe",
            {"architectures": ["LLaDAModelLM"]},
            r"num_experts: found 8, but llada is .*\['LLaDAMoEModelLM'\]",
        ),
        ("llada", {"architectures": ["LLaDAMoEModelLM"]}, r"llada_moe is a mixture of experts; .* \['LLaDAModelLM'\]"),
        ("llada_moe", SDAR, r"num_experts: found 8, but sdar is a dense model; .* expected model_type 'sdar_moe'"),
        ("dream", {"num_experts": 4}, r"num_experts: found 4, but Dream is a dense model; .*docs/teachers.md"),
        ("dream", {"use_sliding_window": True}, r"use_sliding_window: found True, expected false"),
        ("dream", {"model_type": "Fast_dLLM_Qwen", "bd_size": "big"}, r"bd_size: found 'big', expected the number"),
        ("llada", {"block_type": "sequential"}, r"block_type: found 'sequential', expected 'llama'"),
        ("llada", {"weight_tying": "(absent)"}, r"weight_tying: found None, expected true or false"),
        ("llada", {"d_model": "(absent)", "rope_theta": "x"}, r"d_model: missing, expected .*rope_theta: found 'x'"),
        ("llada", {"alibi": True, "scale_logits": True}, r"alibi: found True.*scale_logits: found True"),
        ("llada", {"mlp_hidden_size": None, "mlp_ratio": None}, r"mlp_hidden_size: missing, and mlp_ratio too"),
        ("llada_moe", {"norm_topk_prob": 7}, r"norm_topk_prob: found 7"),
        ("llada_moe", {"moe_router_score_function": "sigmoid"}, r"moe_router_score_function: found 'sigmoid'"),
        ("llada_moe", {"shared_expert_intermediate_size": 32}, r"shared_expert_intermediate_size: found 32"),
        ("llada_moe", {"moe_layer_freq": [1, 1]}, r"expected a 0 or 1 for each of 3 layers"),
        ("llada_moe", {"moe_layer_freq": [0, 1, 1], "dense_intermediate_size": None}, r"dense_intermediate_size: miss"),
        ("llada_moe", {"num_experts_per_tok": 9}, r"num_experts_per_tok 9 is more than 8 experts"),
        ("llada_moe", {"rope_scaling": {"type": "yarn"}}, r"rope_scaling: found .*yarn.*expected numbers for factor"),
        ("llada_moe", {"rope_scaling": {"type": "longrope"}}, r"found rope_type 'longrope', expected one of linear"),
        ("llada_moe", {"num_attention_heads": 3}, r"num_attention_heads 3 is not a multiple"),
    ],
)
def test_what_would_be_got_wrong_is_refused_by_name(golden, tmp_path, name, changes, message):
    folder, _, _ = golden(f"{name}_tiny")
    with pytest.raises(ModelError, match=r"(?s)" + message):
        read_checkpoint(write(tmp_path, folder, **changes))


def test_experts_under_a_dense_configuration_are_told_apart_from_missing_files(golden, tmp_path):
    moe, _, _ = golden("llada_moe_tiny")
    dream, _, _ = golden("dream_tiny")
    info = read_checkpoint(write(tmp_path, dream, load_file(moe / "model.safetensors")))
    with pytest.raises(ModelError, match=r"weights of a mixture of experts, and its config.json describes a dense"):
        load_backbone(info, torch.float32, "cpu")


QWEN3_LIKE = {"hidden_size": 1, "head_dim": 1}


@pytest.mark.parametrize(
    ("raw", "name", "difference"),
    [
        ({"model_type": "sdar_v2", "block_size": 4} | QWEN3_LIKE, "sdar", "model_type 'sdar_v2' for 'sdar'"),
        ({"model_type": "qwen3_moe", "num_experts": 64, "decoder_sparse_step": 1} | QWEN3_LIKE, "sdar_moe",
         "no block_size"),
        ({"model_type": "dream2", "architectures": ["Dream2Model"], "mask_token_id": 7}, "Dream",
         "architectures ['Dream2Model'] for ['DreamModel']"),
        ({"model_type": "LLaDA2-hybrid", "num_experts": 64, "n_group": 4} | QWEN3_LIKE, "llada2_moe",
         "no num_shared_experts, first_k_dense_replace"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 1}, "llama",
         "model_type 'mistral' for 'llama'"),
        ({"model_type": "olmoe", "num_experts": 64, "hidden_size": 1}, "llada_moe", "no expert_intermediate_size"),
    ],
    ids=lambda x: x if isinstance(x, str) and " " not in x else "",
)  # fmt: skip
def test_an_unknown_family_is_told_which_is_nearest_and_what_differs(tmp_path, raw, name, difference):
    nearest, found = nearest_family(raw)
    assert nearest.name == name
    assert any(difference in one for one in found), found
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=rf"is not supported; .* The nearest is {name} \(.*from which it differs: "):
        read_checkpoint(str(tmp_path))


def test_mask_ids_that_families_have_by_themselves_are_taken_where_the_vocabulary_has_them(golden, tmp_path):
    folder, _, _ = golden("llada_moe_tiny")
    wide = {"vocab_size": 157184}
    assert read_checkpoint(write(tmp_path, folder, **wide)).mask_id == 156895
    assert read_checkpoint(write(tmp_path, folder, **wide, mask_token_id=3)).mask_id == 3
    assert read_checkpoint(str(folder)).mask_id is None
