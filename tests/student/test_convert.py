"""Conversion: every weight as it was, one new row where a token is new, and a folder that all commands take."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from helpers.tiny_gguf import write_tiny_gguf
from tide_cache.config.sections import SignalsConfig
from tide_cache.decoding.sampler import generate
from tide_cache.errors import ModelError, PairingError, RunFileError
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.checkpoint import save_student
from tide_cache.modeling.row_signals import row_signals
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message
from tide_cache.student.convert import convert
from tide_cache.student.exporting import export_model
from tide_cache.student.model import Student

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


@torch.no_grad()
def said(backbone):
    """What a backbone generates with random tokens, and what it says of masked ones."""
    prompts = [[5, 9, 300], [7]]
    options = {"block_size": 4, "max_new_tokens": 8, "steps_per_block": 4, "temperature": 1.5}
    generator = torch.Generator().manual_seed(0)
    answers = generate(backbone, prompts, mask_id=383, pad_id=380, stop_ids=(), generator=generator, **options)
    true_N = torch.tensor([3, 100, 382])
    hidden_ND = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    signals = SignalsConfig(kinds=("truth", "topk"), temperatures=(1.0, 2.0), top_k=380, top_p=1.0)
    rows = row_signals(hidden_ND, backbone.head_VD, true_N, torch.ones(3), signals, 2)
    kept = Student(backbone, 4, 64).head(hidden_ND, true_N[:, None], torch.ones(3, 1, dtype=torch.bool), (1.0, 2.0))
    return answers, (*vars(rows).values(), *kept)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_padding_is_neither_sampled_nor_scored(causal, tmp_path, family):
    """Through everything that a model says, though the rows of padding would be the likeliest, and exported again."""
    source, out = causal(family, dtype=torch.float32), tmp_path / "padded"
    convert(str(source), tmp_path / "plain")
    done = convert(str(source), out, pad_vocab=50)
    assert (done.num_rows_before, done.num_ids, done.num_rows) == (383, 384, 400)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "plain", out))
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name][: len(weight)]) for name, weight in before.items())
    (out / "tide_cache.json").write_text("{}")  # as if it were trained
    export_model(str(out), tmp_path / "exported", "a2d", block_size=4)
    plain = load_backbone(read_checkpoint(str(tmp_path / "plain")), torch.float32, "cpu")
    expected_ids, expected = said(plain)
    for folder in (out, tmp_path / "exported"):
        info = read_checkpoint(str(folder))
        assert info.vocab_size == 384
        backbone = load_backbone(info, torch.float32, "cpu")
        assert len(backbone.padded_head_WD) == 400
        torch.testing.assert_close(backbone.padded_head_WD[399], backbone.head_VD.mean(dim=0))
        backbone.padded_head_WD.data[384:] = 50 * backbone.head_VD.mean()
        found_ids, found = said(backbone)
        assert found_ids == expected_ids
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_an_impossible_number_of_ids_is_refused(causal, tmp_path):
    convert(str(causal("qwen3")), tmp_path / "student", pad_vocab=50)
    path = tmp_path / "student/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_token_ids": 401}))
    with pytest.raises(ModelError, match="found num_token_ids = 401, expected 1 to vocab_size, which is 400"):
        read_checkpoint(str(tmp_path / "student"))


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
        with pytest.raises(RunFileError, match="already exists; give a new folder"):
            convert(str(causal("qwen3")), tmp_path)

    def test_a_student(self, causal, tmp_path):
        convert(str(causal("qwen3")), tmp_path / "student")
        with pytest.raises(
            ModelError,
            match=r"'a2d-qwen3', expected a causal one of llama, qwen2, qwen3; this is a denoiser already, train",
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


def test_layers_are_kept_by_number_and_evenly(causal, tmp_path):
    """Which layers is a stated rule, and nothing of them changes but their number."""
    source = causal("qwen3")
    write_deep(source, 6)
    before = load_file(source / "model.safetensors")
    for name, options, layers in (
        ("even", {"num_layers": 3}, (0, 2, 5)),
        ("named", {"layers": [1, 4]}, (1, 4)),
        ("one", {"num_layers": 1}, (0,)),
    ):
        done = convert(str(source), tmp_path / name, **options)
        after = load_file(tmp_path / name / "model.safetensors")
        assert done.layers == layers
        assert json.loads((tmp_path / name / "config.json").read_text())["num_hidden_layers"] == len(layers)
        for new, old in enumerate(layers):
            part = f"model.layers.{old}."
            for key in (key for key in before if key.startswith(part)):
                assert torch.equal(before[key], after[key.replace(part, f"model.layers.{new}.")])
        load_backbone(read_checkpoint(str(tmp_path / name)), torch.float32, "cpu")
    assert json.loads((tmp_path / "even" / "tide_cache.json").read_text())["layers"] == [0, 2, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 3}, "--num-layers 3: the checkpoint has 2 layers; expected 1 to 2"),
        ({"layers": [1, 0]}, "--layers 1,0: expected increasing numbers from 0 to 1"),
        ({"layers": [0, 2]}, "--layers 0,2: expected increasing numbers from 0 to 1"),
        ({"layers": [0], "num_layers": 1}, "--num-layers and --layers: give one of them"),
    ],
)
def test_layers_that_are_not_there_are_refused(causal, tmp_path, options, message):
    with pytest.raises(RunFileError, match=message):
        convert(str(causal("llama")), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def write_deep(folder, num_layers):
    torch.manual_seed(0)
    shape = SHAPE | FAMILIES["qwen3"] | {"num_hidden_layers": num_layers}
    config = AutoConfig.for_model("qwen3", vocab_size=383, **shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_another_tokenizer_gets_rows_made_of_the_old_ones(causal, tmp_path, vocabularies, family):
    """Tied and untied: a token of the same text keeps its row, another one is the mean of what spells it."""
    source, out = causal(family, dtype=torch.float32), tmp_path / "student"
    done = convert(str(source), out, tokenizer=str(vocabularies.second))
    old, new = (TextTokenizer.load(str(folder), add_mask_token=True) for folder in (source, vocabularies.second))
    assert (done.num_rows, done.mask_id) == (new.vocab_size, new.mask_id)
    assert TextTokenizer.load(str(out)).fingerprint() == new.fingerprint()
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert ("lm_head.weight" in after) == (family == "qwen2")
    ids = {old.token_bytes.of(i): i for i in range(380) if not old.is_special_V[i]}
    names = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in before]
    for name in names:
        rows, made = before[name], after[name]
        same = [i for i in range(new.vocab_size) if not new.is_special_V[i] and new.token_bytes.of(i) in ids]
        assert 256 <= len(same) < new.vocab_size
        for i in same:
            assert torch.equal(made[i], rows[ids[new.token_bytes.of(i)]])
        split = next(i for i in range(256, new.vocab_size) if not new.is_special_V[i] and i not in same)
        pieces, text = [], new.token_bytes.of(split)
        while text:
            length = max(n for n in range(1, len(text) + 1) if text[:n] in ids)
            pieces.append(ids[text[:length]])
            text = text[length:]
        torch.testing.assert_close(made[split], rows[pieces].mean(dim=0))
        assert torch.equal(made[new.eos_id], rows[old.eos_id])
        torch.testing.assert_close(made[new.mask_id], rows[: old.mask_id].mean(dim=0), atol=1e-6, rtol=1e-5)
    for name in before.keys() - set(names):
        assert torch.equal(before[name], after[name])


def test_where_the_source_lay_is_not_a_part_of_the_student(causal, tmp_path):
    """The configuration is hashed into a cache's identity: a path in it would make two caches of one teacher."""
    source = causal("llama")
    shutil.copytree(source, tmp_path / "elsewhere")
    for place, out in ((source, "a"), (tmp_path / "elsewhere", "b")):
        convert(str(place), tmp_path / out)
    assert (tmp_path / "a/config.json").read_bytes() == (tmp_path / "b/config.json").read_bytes()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, vocabularies):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_tiny_gguf(path, vocabularies.first)


@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_gguf_file_becomes_a_student(gguf_file, tmp_path, named):
    """What is stored unquantised arrives to the bit, what is quantised within a step of its scale."""
    path, stored = gguf_file
    done = convert(str(path if named == "file" else path.parent), tmp_path / "student")
    assert (done.model_type, done.is_mask_added) == ("a2d-llama", True)
    weights = load_file(tmp_path / "student/model.safetensors")
    down = torch.from_numpy(stored["blk.1.ffn_down.weight"])
    assert torch.equal(weights["model.layers.1.mlp.down_proj.weight"], down)
    up, got = torch.from_numpy(stored["blk.0.ffn_up.weight"]), weights["model.layers.0.mlp.up_proj.weight"]
    assert 0 < (up - got).abs().max() < 0.03
    tokenizer = TextTokenizer.load(str(tmp_path / "student"))
    ids = tokenizer.encode("copy: abc").ids_L
    assert tokenizer.decode(ids) == "copy: abc"
    said = tokenizer.render([Message("user", "a"), Message("assistant", "b")]).text
    assert said.startswith("<|user|>a<|im_end|>")
    provenance = json.loads((tmp_path / "student/tide_cache.json").read_text())
    assert provenance["converted_from"] == "tiny.gguf"
    read_checkpoint(str(tmp_path / "student"))


def test_gguf_that_cannot_be_read_says_what_is_wrong(gguf_file, tmp_path):
    path, _ = gguf_file
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(path, folder / name)
    with pytest.raises(ModelError, match=r"found 2 GGUF files, expected one; choose it with --gguf: a.gguf, b.gguf"):
        convert(str(folder), tmp_path / "out")
    with pytest.raises(ModelError, match=r"--gguf c.gguf: .* holds no such file; its GGUF files: a.gguf, b.gguf"):
        convert(str(folder), tmp_path / "out", gguf="c.gguf")
    with pytest.raises(ModelError, match=r"--gguf a.gguf: .* is a GGUF file already; leave --gguf out"):
        convert(str(path), tmp_path / "out", gguf="a.gguf")
    with pytest.raises(ModelError, match=r"absent.gguf: found no such file"):
        convert("absent.gguf", tmp_path / "out")
    with pytest.raises(RunFileError, match=r"--tokenizer-revision: is of --tokenizer, which is not given"):
        convert(str(path), tmp_path / "out", tokenizer_revision="main")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cut.gguf: transformers cannot read this GGUF file"):
        convert(str(tmp_path / "cut.gguf"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
