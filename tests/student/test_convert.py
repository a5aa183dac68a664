"""Conversion: every weight as it was, one new row where a token is new, and a folder that all commands take."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from tide_cache.errors import ModelError, PairingError, RunFileError
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.checkpoint import save_student
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message
from tide_cache.student.convert import convert

SHAPE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": None,
    "eos_token_id": 379, "pad_token_id": 380,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
FAMILIES = {
    "qwen3": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen2": {"tie_word_embeddings": False},
    "llama": {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE},
}


def write_tokenizer(vocabulary, folder, **changes):
    """A tokenizer as causal models have it: without the mask token, which was its last."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads((vocabulary / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|mask|>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((vocabulary / "tokenizer_config.json").read_text())
    del config["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))


def write_model(folder, family, num_rows, dtype=torch.bfloat16):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=num_rows, **SHAPE | FAMILIES[family])
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory, vocabularies):
    """Causal checkpoints by family; the tokenizer has 383 tokens, so that the mask token gets id 383."""

    def make(family, num_rows=383, dtype=torch.bfloat16):
        folder = tmp_path_factory.mktemp(family)
        write_model(folder, family, num_rows, dtype)
        write_tokenizer(vocabularies.first, folder)
        return folder

    return make


@pytest.mark.parametrize("num_rows", [383, 400])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_weights_but_the_masks_row_are_kept_to_the_bit(causal, tmp_path, family, num_rows):
    source, out = causal(family, num_rows), tmp_path / "student"
    done = convert(str(source), out)
    assert (done.model_type, done.mask_token, done.mask_id) == (f"a2d-{family}", "<|mask|>", 383)
    assert done.is_mask_added
    assert (done.num_rows_before, done.num_rows) == (num_rows, max(num_rows, 384)), "padding rows are used first"
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert weight.dtype == after[name].dtype == torch.bfloat16
        kept = after[name]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            mean = weight[:383].float().mean(dim=0)
            torch.testing.assert_close(kept[383].float(), mean, atol=1e-6, rtol=2**-8)
            kept, weight = (torch.cat([x[:383], x[384:]]) for x in (kept, weight))
        assert torch.equal(kept, weight), name
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "model.safetensors", "tide_cache.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_is_what_other_libraries_need(causal, tmp_path, family):
    source, out = causal(family, dtype=torch.float32), tmp_path / "student"
    convert(str(source), out)
    content = json.loads((out / "config.json").read_text())
    architecture = {"qwen3": "A2DQwen3LMHeadModel", "qwen2": "A2DQwen2LMHeadModel", "llama": "A2DLlamaLMHeadModel"}
    assert content["model_type"] == f"a2d-{family}"
    assert content["architectures"] == [architecture[family]]
    assert content["tie_word_embeddings"] == (family == "qwen3")
    assert content["dtype"] == "float32"
    theta = {"qwen3": 1e6, "qwen2": 1e4, "llama": 5e5}[family]
    assert content["rope_theta"] == theta, "for readers that do not know rope_parameters"
    scaling = {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}
    assert content["rope_scaling"] == (scaling if family == "llama" else None)
    tokenizer, original = (AutoTokenizer.from_pretrained(x, config=PretrainedConfig()) for x in (out, source))
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|mask|>", 383)
    assert tokenizer.encode("<|mask|>", add_special_tokens=False) == [383]
    assert 383 in tokenizer.all_special_ids
    assert tokenizer.chat_template == original.chat_template
    text = "<|user|>copy: a<|im_end|>"
    assert tokenizer.encode(text) == original.encode(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_under_a_causal_mask_it_says_what_the_source_said(causal, tmp_path, family):
    """Rotations included, which are no weights."""
    source, out = causal(family, 400, torch.float32), tmp_path / "student"
    convert(str(source), out)
    ids = torch.arange(300)[None] % 380
    models = [AutoModelForCausalLM.from_pretrained(source)]
    models.append(load_backbone(read_checkpoint(str(out)), torch.float32, "cpu").model)
    with torch.no_grad():
        want, got = (model.eval()(ids).logits for model in models)
    is_kept = torch.arange(400) != 383
    torch.testing.assert_close(want[..., is_kept], got[..., is_kept], atol=1e-5, rtol=1e-5)


def test_qwen3_gets_the_published_id_without_a_resize(causal, tmp_path):
    """The published vocabulary has 151,669 tokens, the embedding 151,936 rows."""
    source, out = causal("qwen3", 151_936), tmp_path / "student"
    words = {f"w{n}": n for n in range(151_669)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(source / "tokenizer.json"))
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "w151645", "pad_token": "w151643"}))
    done = convert(str(source), out)
    assert (done.mask_id, done.num_rows) == (151_669, 151_936)
    assert TextTokenizer.load(str(out)).mask_id == 151_669


def test_a_mask_token_that_is_there_is_kept(tmp_path, vocabularies):
    source, out = tmp_path / "causal", tmp_path / "student"
    write_model(source, "qwen3", 384)
    shutil.copytree(vocabularies.first, source, dirs_exist_ok=True)
    done = convert(str(source), out)
    assert (done.is_mask_added, done.mask_id, done.num_rows) == (False, 383, 384)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(RunFileError, match=r"has a mask token already, '<\|mask\|>'; leave --mask-token out"):
        convert(str(source), tmp_path / "other", mask_token="<|other|>")
    assert not (tmp_path / "other").exists()


def test_the_mask_token_may_be_named(causal, tmp_path):
    done = convert(str(causal("llama")), tmp_path / "new", mask_token="[MASK]")
    assert (done.mask_token, done.mask_id, done.is_mask_added) == ("[MASK]", 383, True)
    assert TextTokenizer.load(str(tmp_path / "new")).mask_token == "[MASK]"
    done = convert(str(causal("llama")), tmp_path / "known", mask_token="<|endoftext|>")
    assert (done.is_mask_added, done.num_rows) == (False, 383), "a token of the vocabulary keeps its row"


def test_weights_of_several_types_lose_nothing(causal, tmp_path):
    from safetensors.torch import save_file

    source = causal("qwen3")
    weights = load_file(source / "model.safetensors")
    name = "model.norm.weight"
    weights[name] = weights[name].float() + 1e-5
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    convert(str(source), tmp_path / "student")
    after = load_file(tmp_path / "student/model.safetensors")
    assert torch.equal(after[name], weights[name])
    layer = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[layer], weights[layer].float())


class TestRefusals:
    def test_an_existing_folder(self, causal, tmp_path):
        with pytest.raises(RunFileError, match="exists already; give a new folder"):
            convert(str(causal("qwen3")), tmp_path)

    def test_a_student(self, causal, tmp_path):
        convert(str(causal("qwen3")), tmp_path / "student")
        with pytest.raises(
            ModelError, match=r"'a2d-qwen3', expected a causal one of llama, qwen2, qwen3; this is a st"
        ):
            convert(str(tmp_path / "student"), tmp_path / "again")

    @pytest.mark.parametrize(
        ("model_type", "found"),
        [
            ("gpt2", "model_type 'gpt2' is not supported; supported: .*llama"),
            (
                "wedlm",
                "found model_type 'wedlm', expected a causal one of llama, qwen2, qwen3; give another checkpoint",
            ),
        ],
    )
    def test_another_family(self, causal, tmp_path, model_type, found):
        source = causal("qwen3")
        path = source / "config.json"
        raw = json.loads(path.read_text()) | {"model_type": model_type, "qk_norm": True}
        path.write_text(json.dumps(raw))
        with pytest.raises(ModelError, match=found):
            convert(str(source), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_tokenizer_that_belongs_to_another_model(self, causal, tmp_path):
        with pytest.raises(ModelError, match=r"ids up to 382, the embedding has 382 rows; put the checkpoint's own"):
            convert(str(causal("qwen2", 382)), tmp_path / "out")

    def test_no_chat_template_until_one_is_given(self, causal, tmp_path, vocabularies):
        source = causal("llama")
        write_tokenizer(vocabularies.first, source, chat_template=None)
        with pytest.raises(PairingError, match="the tokenizer has no chat template"):
            convert(str(source), tmp_path / "out")
        (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
        convert(str(source), tmp_path / "out", chat_template=tmp_path / "chat.jinja")
        rendered = TextTokenizer.load(str(tmp_path / "out")).render([Message("user", "a"), Message("assistant", "b")])
        assert rendered.text == "ab"

    def test_weights_that_are_no_floats(self, causal, tmp_path):
        from safetensors.torch import save_file

        source = causal("qwen3")
        save_file({"w": torch.ones(2, dtype=torch.int8)}, source / "model.safetensors")
        with pytest.raises(ModelError, match=r"found weights of \['I8'\], expected floating point"):
            convert(str(source), tmp_path / "out")


def test_a_student_that_was_scaled_in_rope_is_saved_so(causal, tmp_path):
    """A start trained further must keep its scaling for readers that do not know rope_parameters."""
    info = read_checkpoint(str(causal("llama", 400, torch.float32)))
    backbone = load_backbone(info, torch.float32, "cpu")
    tokenizer = TextTokenizer.load(info.location, add_mask_token=True)
    save_student(tmp_path / "saved", backbone.model.state_dict(), info.config, tokenizer, {})
    assert json.loads((tmp_path / "saved/config.json").read_text())["rope_scaling"]["factor"] == 4.0
    assert read_checkpoint(str(tmp_path / "saved")).config.rope_parameters == info.config.rope_parameters
