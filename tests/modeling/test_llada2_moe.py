"""Our LLaDA2 module must reproduce the published one from the published files, and refuse files that are not whole."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tide_cache.errors import ModelError
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.mixture import Mixture, MixtureBackbone
from tide_cache.modeling.mixture_configs import LLaDA2Config
from tide_cache.modeling.packing import PackedInput, pack_block, pack_full


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden/models/llada2_tiny"


@pytest.fixture(scope="module")
def io(folder):
    arrays = {name: torch.from_numpy(array) for name, array in np.load(folder / "io.npz").items()}
    return {name: array.long() if array.dtype == torch.int32 else array for name, array in arrays.items()}


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(read_checkpoint(str(folder)), torch.float32, "cpu")


def logits_of(backbone, packed):
    with torch.no_grad():
        return backbone(packed) @ backbone.head_VD.T


def packed_block(io, order="xt_x0"):
    length, block_size = io["ids"].shape[1], int(io["block_size"])
    packed = pack_block(io["ids"][:, None], io["x0"], torch.ones_like(io["pad"]), block_size)
    if order == "xt_x0":
        return packed
    swap = torch.arange(2 * length).roll(length)
    return PackedInput(packed.ids_BS[:, swap], packed.positions_BS, packed.mask_B1SS[:, :, swap][..., swap])


@pytest.mark.parametrize("order", ["xt_x0", "x0_xt"])
def test_the_published_model_is_reproduced_under_the_block_mask(backbone, io, order):
    length = io["ids"].shape[1]
    rows = slice(0, length) if order == "xt_x0" else slice(length, 2 * length)
    logits_BLV = logits_of(backbone, packed_block(io, order))[:, rows]
    torch.testing.assert_close(logits_BLV, io[f"logits_block_{order}"], atol=1e-5, rtol=0)


def test_the_published_model_is_reproduced_on_the_masked_tokens_alone(backbone, io):
    logits_BLV = logits_of(backbone, pack_full(io["ids"], io["pad"]))
    torch.testing.assert_close(logits_BLV[io["pad"]], io["logits_full"][io["pad"]], atol=1e-5, rtol=0)
    assert not io["pad"].all()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_reproduces_it_too(backbone, io):
    flexed = MixtureBackbone(backbone.model, "flex")
    logits_BLV = logits_of(flexed, packed_block(io))[:, : io["ids"].shape[1]]
    torch.testing.assert_close(logits_BLV, io["logits_block_xt_x0"], atol=1e-5, rtol=0)
    logits_BLV = logits_of(flexed, pack_full(io["ids"], io["pad"]))
    torch.testing.assert_close(logits_BLV[io["pad"]], io["logits_full"][io["pad"]], atol=1e-5, rtol=0)


def test_bfloat16_says_nearly_the_same(folder, backbone, io):
    halved = load_backbone(read_checkpoint(str(folder)), torch.bfloat16, "cpu")
    exact_BLV, rounded_BLV = (logits_of(b, packed_block(io)).float() for b in (backbone, halved))
    relative_BL = (exact_BLV - rounded_BLV).norm(dim=-1) / exact_BLV.norm(dim=-1)
    assert relative_BL.median() < 0.02  # of a few tokens, rounding changes an expert


def test_the_published_shape_has_the_published_number_of_parameters(folder):
    """LLaDA2.0-mini: 16.256 billion, as counted in its published weights."""
    shape = {
        "vocab_size": 157184, "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 20,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 256,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "moe_intermediate_size": 512,
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text()) | shape
    with torch.device("meta"):
        model = Mixture(LLaDA2Config.model_validate(config))
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6) == 16256


def copy(folder, to, weights=None, **changes):
    """Write a copy of the checkpoint with a changed configuration, or other weights."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value != "(absent)"}
    (to / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors") if weights is None else weights, to / "model.safetensors")
    return str(to)


def shard(folder, to):
    """Write a copy of the checkpoint in two files and an index."""
    copy(folder, to)
    weights = load_file(to / "model.safetensors")
    (to / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, to / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (to / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_a_sharded_checkpoint_loads_the_same_weights(folder, backbone, tmp_path):
    shard(folder, tmp_path)
    again = load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_missing_shard_is_named(folder, tmp_path):
    shard(folder, tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"1 of the 2 files that .* names are missing: model-00002-of-00002"):
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")


def test_an_index_cannot_lead_out_of_the_folder(folder, tmp_path):
    index = shard(folder, tmp_path)
    index["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"found the file name '../elsewhere.safetensors', expected one like"):
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(folder, tmp_path, text):
    shard(folder, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"no usable index .*Copy or download it again"):
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")


def test_a_tensor_in_two_files_is_refused(folder, tmp_path):
    shard(folder, tmp_path)
    file = tmp_path / "model-00002-of-00002.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.zeros(160, 64)}, file)
    with pytest.raises(ModelError, match=r"lm_head.weight: found in model-00001.* and in model-00002.*, expected once"):
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")


def test_weights_that_do_not_fit_are_all_listed(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.experts.5.up_proj.weight"]
    weights["model.layers.3.input_layernorm.weight"] = torch.ones(64)
    weights["model.norm.weight"] = torch.ones(63)
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.int8)
    copy(folder, tmp_path, weights)
    with pytest.raises(ModelError) as raised:
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")
    for part in (
        "missing model.layers.2.mlp.experts.5.up_proj.weight",
        "unknown model.layers.3.input_layernorm.weight",
        "shape of model.norm.weight: found F32 [63], expected [64]",
        "lm_head.weight: found I8 [160, 64]",
    ):
        assert part in str(raised.value)


def test_files_that_are_cut_or_absent_are_refused(folder, tmp_path):
    copy(folder, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"the weights cannot be read: .*Copy or download them again"):
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")
    file.unlink()
    with pytest.raises(ModelError, match=r"found neither model.safetensors nor model.safetensors.index.json"):
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": "(absent)", "rope_theta": "(absent)"}, r"rope_theta: missing\n.*num_experts: missing"),
        ({"hidden_size": "wide"}, r"hidden_size: found 'wide': .*integer"),
        ({"score_function": "softmax"}, r"score_function: found 'softmax': .*'sigmoid'"),
        ({"norm_topk_prob": False}, r"norm_topk_prob: found False: .*True"),
        ({"hidden_act": "gelu"}, r"hidden_act: found 'gelu': .*'silu'"),
        ({"use_sliding_window": True}, r"use_sliding_window: found True"),
        ({"rope_scaling": {"type": "yarn"}}, r"rope_scaling: found .*yarn"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"found \{'rope_type': 'yarn'\}, expected numbers for factor"),
        ({"rope_parameters": [1]}, r"rope_parameters: found \[1\], expected an object"),
        ({"n_group": 3}, r"num_experts 8 is not a multiple of n_group 3"),
        ({"num_key_value_heads": 3}, r"num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"topk_group": 5}, r"topk_group 5 is more than n_group 4"),
        ({"num_experts_per_tok": 5}, r"num_experts_per_tok 5 is more than 4 within reach"),
        ({"partial_rotary_factor": 0.2}, r"partial_rotary_factor 0.2 gives 3 dimensions"),
    ],
)
def test_configurations_we_would_get_wrong_are_refused(folder, tmp_path, changes, message):
    with pytest.raises(ModelError, match=r"(?s)no usable llada2_moe configuration:.*" + message):
        read_checkpoint(copy(folder, tmp_path, **changes))


def test_rope_may_be_stated_as_transformers_5_writes_it(folder, tmp_path, backbone):
    rope = {"rope_type": "default", "rope_theta": 600000.0, "partial_rotary_factor": 0.5}
    moved = copy(folder, tmp_path, rope_theta="(absent)", partial_rotary_factor="(absent)", rope_parameters=rope)
    assert read_checkpoint(moved).config == backbone.config


def test_the_router_stays_in_float32_when_the_rest_is_bfloat16(folder, io):
    halved = load_backbone(read_checkpoint(str(folder)), torch.bfloat16, "cpu")
    kept = {name for name, tensor in halved.state_dict().items() if tensor.dtype == torch.float32}
    assert kept == {
        f"model.model.layers.{layer}.mlp.gate.{part}" for layer in (1, 2) for part in ("weight", "expert_bias")
    }
    full_BSD = halved(pack_full(io["ids"], io["pad"]))
    assert full_BSD.dtype == torch.bfloat16
    assert full_BSD.isfinite().all()


def test_tied_weights_need_no_head(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    tied = load_backbone(
        read_checkpoint(copy(folder, tmp_path, weights, tie_word_embeddings=True)), torch.float32, "cpu"
    )
    assert torch.equal(tied.head_VD, weights["model.word_embeddings.weight"])


def test_weights_that_find_no_room_are_told(folder, tmp_path):
    huge = read_checkpoint(copy(folder, tmp_path, vocab_size=10**14))
    with pytest.raises(ModelError, match=r"no room on cpu for the weights in float32: .*Use a larger device"):
        load_backbone(huge, torch.float32, "cpu")
