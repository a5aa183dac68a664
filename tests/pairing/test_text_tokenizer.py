"""A tokenizer is complete or refused; what is saved loads back as the same."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tide_cache.errors import PairingError
from tide_cache.pairing import TextTokenizer, shared_vocab_size

MakeTokenizer = Callable[..., Path]


def test_attributes(small: TextTokenizer):
    assert small.decode([small.mask_id]) == "<|mask|>"
    assert small.mask_id == small.vocab_size - 1
    assert small.decode([small.eos_id]) == "<|im_end|>"
    assert small.pad_id == small.eos_id
    assert small.decode([small.eos_id, *small.encode("cat").ids_L], skip_special=True) == "cat"


def test_pad_token_is_used_where_there_is_one(make_tokenizer: MakeTokenizer):
    folder = make_tokenizer("padded", pad_token="<|endoftext|>")
    tokenizer = TextTokenizer.load(str(folder), mask_token="<|im_start|>")
    assert tokenizer.decode([tokenizer.pad_id]) == "<|endoftext|>"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_byte_level_ends_are_exact(small: TextTokenizer, text: str):
    encoded = small.encode(text)
    assert encoded.is_exact
    assert encoded.ids_L.dtype == np.int32
    edges = [0, *encoded.byte_ends_L]
    data = text.encode()
    assert edges[-1] == len(data)
    for token, start, end in zip(encoded.ids_L, edges, edges[1:], strict=False):
        assert small.token_bytes.join([int(token)]) == data[start:end]
    assert small.decode(encoded.ids_L) == text


def test_a_normaliser_leaves_boundaries_at_characters(large: TextTokenizer):
    text = "cafe\u0301 the"  # composed to one character by NFC
    encoded = large.encode(text)
    assert not encoded.is_exact
    characters = {len(text[:k].encode()) for k in range(len(text) + 1)}
    assert set(encoded.byte_ends_L.tolist()) <= characters - {len(b"cafe")}
    assert encoded.byte_ends_L[-1] == len(text.encode())
    assert len(large.encode("").ids_L) == 0


def test_appended_mask_token_is_saved(make_tokenizer: MakeTokenizer, tmp_path: Path):
    folder = make_tokenizer("unmasked")
    (folder / "merges.txt").write_text("kept as it is")
    tokenizer = TextTokenizer.load(str(folder), add_mask_token=True)
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "merges.txt").read_text() == "kept as it is"
    _assert_same(tokenizer, tmp_path / "saved")


def test_an_existing_token_can_be_the_mask(make_tokenizer: MakeTokenizer, tmp_path: Path):
    """WeDLM's mask is `<tool_response>`: an ordinary added token of its vocabulary."""
    folder = make_tokenizer("wedlm")
    content = json.loads((folder / "tokenizer.json").read_text())
    new_id = max(content["model"]["vocab"].values()) + 1
    content["added_tokens"].append(content["added_tokens"][0] | {"id": new_id, "content": "<tool_response>"})
    content["added_tokens"][-1]["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = TextTokenizer.load(str(folder), mask_token="<tool_response>")
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (new_id, new_id + 1)
    tokenizer.save(tmp_path)
    _assert_same(tokenizer, tmp_path)


def test_a_template_from_a_file_is_saved(make_tokenizer: MakeTokenizer, tmp_path: Path):
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}«{{ m['content'] }}»{% endfor %}", encoding="utf-8")
    folder = make_tokenizer("other-template")
    (folder / "chat_template.jinja").write_text("not this one")
    tokenizer = TextTokenizer.load(str(folder), add_mask_token=True, chat_template=template)
    tokenizer.save(tmp_path / "saved")
    _assert_same(tokenizer, tmp_path / "saved")


@pytest.mark.parametrize("name", ["falcon", "phi3"])
def test_real_tokenizers_are_saved(load_shared: Callable[[str], TextTokenizer], tmp_path: Path, name: str):
    _assert_same(_saved(load_shared(name), tmp_path), tmp_path)


def _saved(tokenizer: TextTokenizer, folder: Path) -> TextTokenizer:
    tokenizer.save(folder)
    return tokenizer


def _assert_same(tokenizer: TextTokenizer, folder: Path) -> None:
    again = TextTokenizer.load(str(folder))
    assert again.fingerprint() == tokenizer.fingerprint()
    assert (again.mask_id, again.vocab_size) == (tokenizer.mask_id, tokenizer.vocab_size)
    text = f"the cat {tokenizer.mask_token} sat, café"
    plain = AutoTokenizer.from_pretrained(folder)
    assert plain.mask_token_id == tokenizer.mask_id
    assert plain.encode(text, add_special_tokens=False) == tokenizer.encode(text).ids_L.tolist()
    messages = [{"role": "user", "content": "x"}]
    assert plain.apply_chat_template(messages, tokenize=False) == again._render_texts([messages], False)[0]


def test_fingerprint_tells_tokenizers_templates_and_masks_apart(make_tokenizer: MakeTokenizer, small: TextTokenizer):
    def differing(**options: str | int) -> set[str]:
        mask = str(options.pop("mask_token", "<|mask|>"))
        folder = make_tokenizer("other", **({"size": 300} | options))
        other = TextTokenizer.load(str(folder), mask_token=mask, add_mask_token=True).fingerprint()
        return {name for name, value in small.fingerprint().items() if other[name] != value}

    assert differing() == set()
    assert differing(template="{{ messages[0]['content'] }}") == {"chat_template"}
    assert differing(mask_token="<|im_start|>") == {"tokenizer", "mask_token_id"}
    assert differing(is_nfc=True) == {"tokenizer"}


def test_shared_vocab_size(small: TextTokenizer, large: TextTokenizer, make_tokenizer: MakeTokenizer):
    assert shared_vocab_size(small, small) == small.vocab_size
    other_mask = TextTokenizer.load(small.name, mask_token="<|other|>", add_mask_token=True)
    assert shared_vocab_size(small, other_mask) == small.vocab_size - 1
    size = shared_vocab_size(small, large)
    assert small.tokens[:size] == large.tokens[:size]
    assert size == small.vocab_size - 1  # the same corpus gives the same merges, only fewer


def test_real_vocabularies_share_little(load_shared: Callable[[str], TextTokenizer]):
    qwen, falcon = load_shared("qwen"), load_shared("falcon")
    assert shared_vocab_size(falcon, qwen) == 0
    assert shared_vocab_size(qwen, qwen) == 151_647


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "looked for its own mask_token, which is not set"),
        ({"mask_token": "[MASK]"}, re.escape("looked for '[MASK]', which is not in its vocabulary")),
    ],
)
def test_no_mask_token(make_tokenizer: MakeTokenizer, options: dict[str, str], found: str):
    folder = make_tokenizer("unmasked")
    with pytest.raises(PairingError, match=found) as error:
        TextTokenizer.load(str(folder), **options)
    for way_out in ("mask_token = '...'", "add_mask_token = true"):
        assert way_out in str(error.value)
    assert "convert" not in str(error.value), "there is no model here to convert"


@pytest.mark.parametrize(
    ("model_type", "found", "absent"),
    [
        ("qwen3", r"causal model \(qwen3\), which cannot denoise yet: convert it .*, then train it", "151669"),
        ("a2d-qwen3", r"Name the one that this a2d-qwen3 was trained with: .*'<\|mask\|>' = 151669", "convert"),
    ],
)
def test_the_way_to_a_mask_token_depends_on_the_model_beside(
    make_tokenizer: MakeTokenizer, tmp_path: Path, model_type: str, found: str, absent: str
) -> None:
    """A denoiser is not sent to `convert`, which would send it back."""
    shutil.copytree(make_tokenizer("unmasked"), tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(PairingError, match=found) as error:
        TextTokenizer.load(str(tmp_path / "model"))
    assert absent not in str(error.value)


def test_an_unregistered_mask_token_is_pointed_out(make_tokenizer: MakeTokenizer, tmp_path: Path):
    """The published student holds `<|mask|>`, but copies of it do not always register it."""
    tokenizer = _saved(TextTokenizer.load(str(make_tokenizer("unmasked")), add_mask_token=True), tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["mask_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(PairingError, match=rf"It does hold '<\|mask\|>', id {tokenizer.mask_id}\."):
        TextTokenizer.load(str(tmp_path))
    assert TextTokenizer.load(str(tmp_path), mask_token="<|mask|>").fingerprint() == tokenizer.fingerprint()


def test_no_end_of_text_token(make_tokenizer: MakeTokenizer):
    folder = make_tokenizer("endless", eos_token=None)
    with pytest.raises(PairingError, match="no end-of-text token"):
        TextTokenizer.load(str(folder), add_mask_token=True)


def test_no_chat_template(make_tokenizer: MakeTokenizer, tmp_path: Path):
    folder = make_tokenizer("untemplated", template=None)
    with pytest.raises(PairingError, match=r"no chat template\. Give one: chat_template = 'file\.jinja'"):
        TextTokenizer.load(str(folder), add_mask_token=True)
    with pytest.raises(PairingError, match=r"missing\.jinja: the chat template of .* cannot be read"):
        TextTokenizer.load(str(folder), add_mask_token=True, chat_template=tmp_path / "missing.jinja")


def test_nothing_to_load(tmp_path: Path):
    with pytest.raises(PairingError, match="no tokenizer can be loaded from here"):
        TextTokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(PairingError, match=r"Expected a folder with tokenizer\.json"):
        TextTokenizer.load(str(tmp_path))


def test_code_that_comes_with_a_tokenizer_is_not_run(make_tokenizer: MakeTokenizer):
    """Whether the loader refuses it or takes the plain file, the code stays unread."""
    folder = make_tokenizer(
        "evil", auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]}, tokenizer_class="EvilTokenizer"
    )
    ran = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()")
    with contextlib.suppress(PairingError):
        TextTokenizer.load(str(folder), add_mask_token=True)
    assert not ran.exists()
