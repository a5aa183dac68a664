"""`tide-cache export-model`: layouts that other programs read, with the same model in them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.packing import pack_block


def exported(call, out, *options):
    result = call("export-model", "teacher", "--out", out, "--json", *options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def logits(folder):
    backbone = load_backbone(read_checkpoint(str(folder)), torch.float32, "cpu")
    ids = torch.arange(32)[None] % backbone.config.vocab_size
    with torch.no_grad():
        return backbone(pack_block(ids[:, None], ids, torch.ones_like(ids) == 1, 16)) @ backbone.head_VD.T


def test_sdar_is_what_engines_read(call, workshop, tmp_path):
    done = exported(call, tmp_path / "sdar", "--any-mask-id", "--threshold", "0.8")
    student = workshop.teacher
    config = json.loads((tmp_path / "sdar/config.json").read_text())
    stored = json.loads((student / "config.json").read_text())
    assert config["model_type"] == done["model_type"] == "sdar"
    assert config["architectures"] == ["SDARForCausalLM"]
    assert (
        config["block_size"]
        == done["block_size"]
        == json.loads((student / "tide_cache.json").read_text())["block_size"]
    )
    assert config["mask_token_id"] == done["mask_id"]
    assert config["rope_theta"] == stored["rope_theta"]
    changed = {"model_type", "architectures", "block_size", "mask_token_id", "auto_map"}
    assert {k: v for k, v in config.items() if k not in changed} == {
        k: v for k, v in stored.items() if k not in changed
    }
    assert (tmp_path / "sdar/model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()
    decoding = json.loads((tmp_path / "sdar/generation_config.json").read_text())
    assert decoding["confidence_threshold"] == 0.8
    assert decoding["block_length"] == decoding["denoising_steps"] == config["block_size"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "sdar" / name).exists() == (student / name).exists()
    loaded = AutoConfig.from_pretrained(tmp_path / "sdar", trust_remote_code=True)
    assert (loaded.model_type, loaded.block_size, loaded.hidden_size) == (
        "sdar",
        done["block_size"],
        stored["hidden_size"],
    )
    assert loaded.rope_parameters["rope_theta"] == stored["rope_theta"]


def test_every_layout_loads_with_equal_logits(call, workshop, tmp_path):
    want = logits(workshop.teacher)
    for format, model_type in (("sdar", "sdar"), ("a2d", "a2d-qwen3"), ("hf", "qwen3")):
        done = exported(call, tmp_path / format, "--format", format, "--any-mask-id")
        assert done["model_type"] == model_type
        torch.testing.assert_close(logits(tmp_path / format), want, atol=0, rtol=0)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    weights = load_file(workshop.teacher / "model.safetensors")
    assert all(torch.equal(stock.state_dict()[name], weight) for name, weight in weights.items())


def test_what_was_exported_writes_the_same_text(call, tmp_path):
    exported(call, tmp_path / "sdar", "--any-mask-id")
    options = ["--prompt", "reverse: one two", "--max-new-tokens", "12", "--threshold", "0.5", "--json"]
    answers = [json.loads(call("generate", model, *options).stdout)["answers"] for model in
               ("teacher/model", tmp_path / "sdar")]  # fmt: skip
    assert answers[0] == answers[1]


def test_a_trained_model_has_a_card(call, workshop, tmp_path):
    card = (workshop.teacher / "README.md").read_text()
    provenance = json.loads((workshop.teacher / "tide_cache.json").read_text())
    for told in ("a corpus without a teacher", "1 × ce", f"{provenance['steps']:,} steps", "tide-cache generate"):
        assert told in card
    exported(call, tmp_path / "sdar", "--any-mask-id")
    assert "sglang.launch_server" in (tmp_path / "sdar/README.md").read_text()
    assert "## Measured" not in (tmp_path / "sdar/README.md").read_text()


def test_the_card_of_an_export_has_what_was_measured(call, workshop, tmp_path):
    """`run` holds the model and what `eval --out run/eval.json` wrote of it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(workshop.teacher)
    data = workshop.root / "held-out.jsonl"
    data.write_text(8 * (json.dumps({"prompt": "copy: axe", "completion": "axe rope drum hen " * 4}) + "\n"))
    done = call(
        "eval", tmp_path / "run/model", "--dataset", data, "--max-length", "64", "--out", tmp_path / "run/eval.json"
    )
    assert done.exit_code == 0, done.stderr
    done = call("export-model", tmp_path / "run", "--format", "a2d", "--out", tmp_path / "a2d")
    assert done.exit_code == 0, done.stderr
    card = (tmp_path / "a2d/README.md").read_text()
    nll = json.loads((tmp_path / "run/eval.json").read_text())["nll"]["mean_nll"]
    assert f"{nll:.4f}" in card
    assert "`tide-cache eval FOLDER --dataset held-out.jsonl --max-length 64`" in card


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["teacher"], 3, "LMDeploy and SGLang take 151669 for SDAR whatever config.json says"),
        (["teacher", "--block-size", "4"], 2, "was trained with blocks of 16"),
        (["teacher", "--threshold", "0"], 2, "--threshold 0.0: expected a probability above 0"),
        (["teacher", "--format", "gguf"], 2, "gguf"),
        (["cache"], 3, "config.json"),
    ],
)
def test_what_cannot_be_is_refused_and_writes_nothing(call, tmp_path, options, code, message):
    result = call("export-model", *options, "--out", tmp_path / "out")
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(call, tmp_path):
    result = call("export-model", "teacher", "--out", tmp_path)
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_shapes_that_no_engine_serves_are_refused(call, tmp_path, workshop):
    """A student of Llama's shape: one field of config.json changed."""
    student = tmp_path / "student"
    student.mkdir()
    for file in workshop.teacher.iterdir():
        (student / file.name).write_bytes(file.read_bytes())
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"model_type": "a2d-llama"}))
    result = call("export-model", student, "--out", tmp_path / "out", "--any-mask-id")
    assert result.exit_code == 3
    assert "found the shape of llama" in result.stderr
    assert "distil into a Qwen3 student" in result.stderr
