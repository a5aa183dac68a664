"""The stock backbone must reproduce the published student, in both contexts, and refuse what it would get wrong."""

import json
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import Qwen3Config

from helpers.fresh import IS_FULL
from tide_cache.config.sections import LoadingConfig
from tide_cache.errors import ModelError, RunFileError
from tide_cache.families import FAMILIES
from tide_cache.modeling.adapter import LoadOptions
from tide_cache.modeling.attention import block_diffusion_mask
from tide_cache.modeling.backbone import (
    ADAPTERS,
    load_backbone,
    new_backbone,
    read_checkpoint,
    require_means,
    resolve_device,
)
from tide_cache.modeling.checkpoint import published_config, save_student
from tide_cache.modeling.kept import keep_blocks
from tide_cache.modeling.packing import pack_block, pack_full


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/models/a2d_qwen3_tiny"
    return folder, dict(np.load(folder / "io.npz"))


def tensors(golden):
    _, io = golden
    x_0_BL, x_t_BL = (torch.from_numpy(io[name]).long() for name in ("x0", "xt"))
    return x_0_BL, x_t_BL, torch.ones_like(x_0_BL, dtype=torch.bool)


def test_masks_equal_the_reference(shared):
    recorded = np.load(shared / "golden/attention_mask.npz")
    for name in (n for n in recorded.files if n.endswith("xt_x0")):
        length, block = (int("".join(filter(str.isdigit, part))) for part in name.split("_")[:2])
        assert np.array_equal(block_diffusion_mask(length, block).numpy(), recorded[name]), name


def test_the_published_student_is_reproduced_in_both_contexts(golden):
    folder, io = golden
    backbone = load_backbone(read_checkpoint(str(folder)), torch.float32, "cpu")
    x_0_BL, x_t_BL, is_real_BL = tensors(golden)
    length = x_0_BL.shape[1]
    with torch.no_grad():
        packed = pack_block(x_t_BL[:, None], x_0_BL, is_real_BL, int(io["block_size"]))
        block_BLV = backbone(packed)[:, :length] @ backbone.head_VD.T
        full_BLV = backbone(pack_full(x_t_BL, is_real_BL)) @ backbone.head_VD.T
    np.testing.assert_allclose(block_BLV, io["logits_block"], atol=1e-5)
    np.testing.assert_allclose(full_BLV, io["logits_bidirectional"], atol=1e-5)


def test_views_packed_on_one_clean_copy_equal_separate_views(golden):
    folder, io = golden
    backbone = load_backbone(read_checkpoint(str(folder)), torch.float32, "cpu")
    x_0_BL, x_t_BL, is_real_BL = tensors(golden)
    other_BL = torch.where(torch.arange(x_0_BL.shape[1]) % 3 == 0, 159, x_0_BL)
    views_BnL = torch.stack([x_t_BL, other_BL], dim=1)
    length = x_0_BL.shape[1]
    with torch.no_grad():
        together = backbone(pack_block(views_BnL, x_0_BL, is_real_BL, int(io["block_size"])))
        for view in range(2):
            alone = backbone(pack_block(views_BnL[:, view : view + 1], x_0_BL, is_real_BL, int(io["block_size"])))
            torch.testing.assert_close(
                together[:, view * length : (view + 1) * length], alone[:, :length], atol=1e-5, rtol=0
            )


def test_copies_without_their_unwanted_blocks_give_the_published_logits(golden):
    folder, io = golden
    backbone = load_backbone(read_checkpoint(str(folder)), torch.float32, "cpu")
    x_0_BL, x_t_BL, is_real_BL = tensors(golden)
    block_size, length = int(io["block_size"]), x_0_BL.shape[1]
    wanted_BL = torch.zeros_like(is_real_BL)
    wanted_BL[:, length // 2 : -block_size] = True
    row_N, position_N = wanted_BL.nonzero(as_tuple=True)
    kept = keep_blocks(row_N, position_N, x_0_BL.shape, block_size)
    with torch.no_grad():
        packed = pack_block(x_t_BL[:, None], x_0_BL, is_real_BL, block_size, kept=kept)
        hidden_ND = backbone(packed)[row_N, kept.place_N]
        logits_NV = hidden_ND @ backbone.head_VD.T
    assert packed.ids_BS.shape[1] < 1.5 * length
    np.testing.assert_allclose(logits_NV, io["logits_block"][row_N, position_N], atol=1e-5)


def test_padding_changes_nothing(golden):
    folder, _ = golden
    backbone = load_backbone(read_checkpoint(str(folder)), torch.float32, "cpu")
    x_0_BL, x_t_BL, is_real_BL = tensors(golden)
    pad = torch.full((x_0_BL.shape[0], 8), 3)
    longer = [torch.cat([x, pad], dim=1) for x in (x_0_BL, x_t_BL)]
    is_real = torch.cat([is_real_BL, torch.zeros_like(pad, dtype=torch.bool)], dim=1)
    length = x_0_BL.shape[1]
    with torch.no_grad():
        short = backbone(pack_block(x_t_BL[:, None], x_0_BL, is_real_BL, 5))[:, :length]
        long = backbone(pack_block(longer[1][:, None], longer[0], is_real, 5))[:, :length]
        assert backbone(pack_full(longer[1], is_real)).isfinite().all()
    torch.testing.assert_close(long, short, atol=1e-5, rtol=0)


class NoTokenizer:
    def save(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def test_a_saved_student_loads_back_equal_and_says_rope_theta_twice(tmp_path, golden):
    folder, _ = golden
    info = read_checkpoint(str(folder))
    backbone = load_backbone(info, torch.float32, "cpu")
    save_student(tmp_path / "out", backbone.model.state_dict(), info.config, NoTokenizer(), {"cache_id": "x"})
    again = load_backbone(read_checkpoint(str(tmp_path / "out")), torch.float32, "cpu")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    saved = json.loads((tmp_path / "out/config.json").read_text())
    original = json.loads((folder / "config.json").read_text())
    for key in ("model_type", "architectures", "rope_theta", "tie_word_embeddings", "vocab_size", "head_dim"):
        assert saved[key] == original[key], key
    assert published_config(info.config)["rope_parameters"]["rope_theta"] == 1e6


def test_a_saved_student_leaves_its_mask_token_to_the_tokenizer(tmp_path, golden):
    raw = json.loads((golden[0] / "config.json").read_text()) | {"mask_token_id": 5}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    info = read_checkpoint(str(tmp_path))
    assert info.mask_id == 5
    assert "mask_token_id" not in published_config(info.config)


def test_random_weights_depend_on_the_seed_alone(golden):
    config = read_checkpoint(str(golden[0])).config
    torch.manual_seed(5)
    first = new_backbone(config, torch.float32, "cpu", seed=1)
    torch.manual_seed(6)
    second = new_backbone(config, torch.float32, "cpu", seed=1)
    assert torch.equal(first.head_VD, second.head_VD)
    assert not torch.equal(first.head_VD, new_backbone(config, torch.float32, "cpu", seed=2).head_VD)


def test_unsupported_checkpoints_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"found no config.json; expected a checkpoint"):
        read_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ModelError, match=r"model_type 'mamba' is not supported; supported: a2d-llama"):
        read_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "wedlm", "qk_norm": false}')
    with pytest.raises(ModelError, match=r"qk_norm"):
        read_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "hidden_size": "wide"}')
    with pytest.raises(ModelError, match=r"config.json: no usable qwen3 configuration: .*'hidden_size'.*wide"):
        read_checkpoint(str(tmp_path))


def test_code_of_a_checkpoint_is_never_run(tmp_path):
    code = {"auto_map": {"AutoModel": "modeling_mine.MineModel", "AutoConfig": "configuration_mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", **code}))
    with pytest.raises(
        ModelError,
        match=r"'mine' is not supported; .*asks for its own code \(configuration_mine.MineConfig, modeling_mine."
        r"MineModel\)\. .*Remote model code is never run; .*docs/teachers.md says how to add an adapter",
    ):
        read_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **code}))
    with pytest.raises(ModelError, match=r"asks for its own code .* may differ from the stock qwen3"):
        read_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "a2d-qwen3", **code}))
    assert read_checkpoint(str(tmp_path)).model_type == "a2d-qwen3"


def test_weights_in_fewer_bits_are_not_taken_for_the_original_ones(tmp_path):
    config = {"model_type": "qwen3", "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised already \(fp8\); expected the original ones"):
        read_checkpoint(str(tmp_path))


class FullGpu:
    """An adapter added as docs/teachers.md says, whose weights find no room."""

    family = replace(FAMILIES["llada2_moe"], name="mine", model_types=("mine",), mask_id=7)

    def read_config(self, raw, location):
        return Qwen3Config()

    def load(self, info, plan):
        raise torch.OutOfMemoryError("Tried to allocate 30 GiB.")


def test_an_added_adapter_is_used_and_a_full_gpu_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "mine", FullGpu.family)
    monkeypatch.setitem(ADAPTERS, "mine", FullGpu())
    (tmp_path / "config.json").write_text('{"model_type": "mine", "vocab_size": 8}')
    info = read_checkpoint(str(tmp_path))
    assert info.mask_id == 7
    with pytest.raises(ModelError, match=r"no room on cpu for the weights in bfloat16: Tried to allocate 30 GiB"):
        load_backbone(info, torch.bfloat16, "cpu")
    with pytest.raises(ModelError, match=r"with these settings:\n.*teacher.quantisation = '4bit': not for mine"):
        load_backbone(info, torch.bfloat16, "cpu", quantisation="4bit")


def test_damaged_weights_are_refused(tmp_path, golden):
    folder, _ = golden
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"the weights cannot be (read|loaded): .*Copy or download them again"):
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")


def test_a_model_that_is_not_whole_has_no_config(tmp_path, golden):
    class Interrupted:
        def save(self, folder):
            raise KeyboardInterrupt

    info = read_checkpoint(str(golden[0]))
    with pytest.raises(KeyboardInterrupt):
        save_student(tmp_path, {"w": torch.zeros(1)}, info.config, Interrupted(), {})
    assert not (tmp_path / "config.json").exists()


def test_missing_weights_are_listed(tmp_path, golden):
    folder, _ = golden
    info = read_checkpoint(str(folder))
    weights = dict(load_backbone(info, torch.float32, "cpu").model.state_dict())
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_student(tmp_path, weights, info.config, NoTokenizer(), {})
    with pytest.raises(ModelError, match=r"missing model.layers.1.mlp.up_proj.weight"):
        load_backbone(read_checkpoint(str(tmp_path)), torch.float32, "cpu")


def test_what_does_not_fit_is_listed(golden):
    info = read_checkpoint(str(golden[0]))
    faults = info.fit_faults(vocab_size=161, length=40_000, who="student")
    assert len(faults) == 2
    assert "ids up to 160" in faults[0]
    assert "limit is 32768" in faults[1]
    assert info.fit_faults(160, 32768, "student") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(RunFileError, match="no CUDA device"):
        resolve_device("cuda:1")


def test_a_device_of_another_name_is_refused():
    with pytest.raises(RunFileError, match=r"'gpu': is not a device; expected 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        resolve_device("gpu")


def test_packages_that_are_not_installed_are_named_with_the_extra(monkeypatch):
    monkeypatch.setattr("tide_cache.modeling.backbone.find_spec", lambda name: None)
    with pytest.raises(ModelError) as raised:
        require_means("cuda:0", LoadingConfig(quantisation="8bit", device_map="auto"))
    for part in (
        "teacher.quantisation = '8bit': not installed: bitsandbytes, accelerate; pip install 'tide-cache[quantised]'",
        "teacher.device_map = 'auto': not installed: accelerate;",
    ):
        assert part in str(raised.value)
    monkeypatch.setattr("tide_cache.modeling.backbone.find_spec", lambda name: name)
    require_means("cuda:0", LoadingConfig(quantisation="8bit", device_map="auto", attention="flex"))
    with pytest.raises(ModelError, match=r"teacher.attention = 'flex': found the device 'cpu', expected CUDA"):
        require_means("cpu", LoadingConfig(attention="flex"))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_what_transformers_cannot_load_as_asked_is_told(golden):
    info = read_checkpoint(str(golden[0]))
    options = LoadOptions(torch.float32, "cpu", LoadingConfig(quantisation="4bit"))
    with pytest.raises(
        ModelError, match=r"transformers cannot load it with quantisation = '4bit', device_map = None: "
    ):
        ADAPTERS[info.model_type].load(info, options)


@pytest.mark.skipif(not IS_FULL, reason="compiles for a quarter of a minute: TIDE_CACHE_TESTS=full")
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")  # where deepspeed came first in the process
def test_a_compiled_model_says_the_same_for_every_shape(shared, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    info = read_checkpoint(str(shared / "golden/models/a2d_qwen3_tiny"))
    plain, compiled = (load_backbone(info, torch.float32, "cpu", compile=compile).eval() for compile in (False, True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for num_samples, length in ((2, 24), (3, 40), (4, 16)):
            ids_BL = torch.randint(50, (num_samples, length), generator=generator)
            packed = pack_block(ids_BL[:, None].repeat(1, 2, 1), ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), 8)
            torch.testing.assert_close(compiled(packed), plain(packed), atol=1e-5, rtol=1e-5)


def test_without_a_compiler_compilation_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ModelError, match=r"teacher.compile: found no C\+\+ compiler \(no-such-compiler\); install one"):
        require_means("cpu", LoadingConfig(compile=True))
