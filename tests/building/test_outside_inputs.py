"""What could change a cache or a model besides its identity: docs/decisions/identity.md lists it, these hold it."""

import datetime
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tide_cache.building import prepare
from tide_cache.building.driver import build_cache
from tide_cache.building.prepare import prepare_build
from tide_cache.building.repair import find_damage
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.corpus import open_corpus
from tide_cache.errors import CacheMismatchError, ModelError, PairingError, RunFileError
from tide_cache.manifest import Manifest
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.checkpoint import save_student
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message
from tide_cache.student.convert import convert
from tide_cache.training.run import train

DATED = (
    "<|system|>Today: {{ strftime_now('%A %d %b %Y') }}<|im_end|>\n"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>\n{% endfor %}"
)


def on(monkeypatch, day):
    """Have the clock stand on a day, for the code that decides which day a build is of."""
    monkeypatch.setattr(prepare, "today", lambda: datetime.date.fromisoformat(day))


@pytest.fixture
def dated(build_values, vocabularies, tmp_path):
    """Values of a build whose student has a template that writes the date."""
    template = tmp_path / "dated.jinja"
    template.write_text(DATED)

    def make(folder, **changes):
        student = {"tokenizer": {"path": str(vocabularies.first), "chat_template": str(template)}}
        values = build_values(tmp_path / folder, corpus__spec=build_values(tmp_path)["corpus"]["spec"] + "[train:12]")
        values["student"] |= student
        for name, value in changes.items():
            values.setdefault(name.partition("__")[0], {})[name.partition("__")[2]] = value
        return BuildRun.model_validate(values)

    return make


def test_a_cache_keeps_the_day_on_which_it_was_begun(dated, tmp_path, monkeypatch, tree):
    on(monkeypatch, "2026-01-31")
    build_cache(dated("cache"))
    manifest = Manifest.load(tmp_path / "cache")
    assert manifest.identity.pairing.date == "2026-01-31"
    on(monkeypatch, "2026-02-01")
    build_cache(dated("cache", build__passes=("plain", "compdemo")))
    assert Manifest.load(tmp_path / "cache").identity == manifest.identity
    assert find_damage(tmp_path / "cache").is_repaired
    build_cache(dated("again", build__passes=("plain", "compdemo"), pairing__date="2026-01-31"))
    again, first = tree(tmp_path / "again"), tree(tmp_path / "cache")
    assert {name for name in first if first[name] != again[name]} <= {"build.json"}
    other = prepare_build(dated("other")).identity
    assert [name for name, _, _ in manifest.identity.differences(other)] == ["pairing.date"]


def test_a_day_that_no_template_writes_is_refused(build_values, tmp_path):
    values = build_values(tmp_path / "cache") | {"pairing": {"date": "2026-01-31"}}
    with pytest.raises(
        RunFileError, match=r"pairing\.date: found 2026-01-31, but no chat template of this build writes"
    ):
        prepare_build(BuildRun.model_validate(values))
    del values["pairing"]
    identity = prepare_build(BuildRun.model_validate(values)).identity
    assert "date" not in identity.model_dump(mode="json")["pairing"], "older caches keep their ids"


def test_a_template_that_draws_at_random_is_refused(vocabularies, tmp_path):
    (tmp_path / "random.jinja").write_text("{{ ['a', 'b'] | random }}{{ messages[0].content }}")
    with pytest.raises(PairingError, match="the chat template uses random, which gives another text each time"):
        TextTokenizer.load(str(vocabularies.first), chat_template=tmp_path / "random.jinja")


def test_other_special_tokens_do_not_go_on_with_a_cache(dated, build_values, vocabularies, tmp_path):
    shutil.copytree(vocabularies.first, tmp_path / "tokenizer")
    values = build_values(tmp_path / "cache", "cross")
    values["student"]["tokenizer"] = {"path": str(tmp_path / "tokenizer")}
    values["corpus"]["spec"] += "[train:8]"
    build_cache(BuildRun.model_validate(values))
    file = tmp_path / "tokenizer/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "<|user|>"}))
    with pytest.raises(CacheMismatchError, match=r"begun with other special tokens:\n.*student's eos_token: cache has"):
        build_cache(BuildRun.model_validate(values))


def test_an_adapter_beside_the_weights_is_refused_by_name(tiny_teacher, build_values, tmp_path):
    shutil.copytree(tiny_teacher, tmp_path / "model")
    (tmp_path / "model/adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(ModelError, match=r"found adapter_config.json next to the weights.* Merge it into"):
        read_checkpoint(str(tmp_path / "model"))
    (tmp_path / "model/config.json").unlink()
    with pytest.raises(ModelError, match=r"found an adapter \(adapter_config.json\) without the model that it changes"):
        read_checkpoint(str(tmp_path / "model"))
    (tmp_path / "model/adapter_config.json").unlink()
    (tmp_path / "model/weights.gguf").touch()
    with pytest.raises(ModelError, match=r"found GGUF files and no config.json"):
        read_checkpoint(str(tmp_path / "model"))


def test_a_stored_head_that_differs_is_kept_and_said_to_be_untied(tiny_teacher, tmp_path):
    shutil.copytree(tiny_teacher, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    head = weights["model.embed_tokens.weight"] + 1
    save_file({**weights, "lm_head.weight": head}, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(read_checkpoint(str(tmp_path / "model")), torch.float32, "cpu")
    assert torch.equal(backbone.head_VD, head)
    assert not torch.equal(backbone.model.get_input_embeddings().weight, head)
    tokenizer = TextTokenizer.load(str(tiny_teacher))
    save_student(tmp_path / "saved", backbone.model.state_dict(), backbone.config, tokenizer, {})
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(load_file(tmp_path / "saved/model.safetensors")["lm_head.weight"], head)
    same = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(same, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    assert load_backbone(read_checkpoint(str(tmp_path / "model")), torch.float32, "cpu").config.tie_word_embeddings


def test_a_converted_model_is_no_teacher_until_it_was_trained(vocabularies, tiny_teacher, build_values, tmp_path):
    source = tmp_path / "causal"
    shutil.copytree(tiny_teacher, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    start = tmp_path / "start"
    convert(str(source), start)
    values = build_values(tmp_path / "cache", teacher__model=str(start))
    with pytest.raises(RunFileError, match=r"was converted from causal and never trained .*say --allow-untrained"):
        prepare_build(BuildRun.model_validate(values))
    values["teacher"]["allow_untrained"] = True
    allowed = prepare_build(BuildRun.model_validate(values)).identity
    del values["teacher"]["allow_untrained"]
    run = TrainRun.model_validate({
        "student": {"model": str(start), "max_length": 64, "block_size": 8, "lora": {"rank": 2}},
        "data": {"corpus": {"spec": values["corpus"]["spec"] + "[train:8]"}},
        "objective": [{"kind": "ce"}],
        "train": {"out": str(tmp_path / "run"), "steps": 1, "global_batch": 4, "micro_batch": 4, "ema_decay": 0.5,
                  "precision": "float32", "device": "cpu"},
    })  # fmt: skip
    train(run)
    for trained in ("model", "model-ema"):
        assert read_checkpoint(str(tmp_path / "run" / trained)).converted_from is None
        values["teacher"]["model"] = str(tmp_path / "run" / trained)
        found = prepare_build(BuildRun.model_validate(values)).identity
        assert found.cache_id != allowed.cache_id


CHILD = """
import json, sys, torch
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
torch.set_num_threads(1)
build_cache(BuildRun.model_validate(json.load(sys.stdin)))
"""


def test_surroundings_do_not_change_a_byte(dated, tiny_teacher, tmp_path, tree):
    """Locale, time zone, hash seed, other files next to the weights: one cache, to the bit."""
    run = dated("a", pairing__date="2026-01-31")
    torch.set_num_threads(1)
    build_cache(run)
    odd = {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7",
           "TOKENIZERS_PARALLELISM": "true", "TMPDIR": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1",
           "COLUMNS": "20", "NO_COLOR": "1", "TRANSFORMERS_VERBOSITY": "debug"}  # fmt: skip
    shutil.copytree(tiny_teacher, tmp_path / "other")
    (tmp_path / "other/generation_config.json").write_text('{"temperature": 9.0, "do_sample": true}')
    (tmp_path / "other/notes.safetensors").write_bytes(b"no weights of this model")
    (tmp_path / "other/pytorch_model.bin").write_bytes(b"no pickle is read")
    run = dated("b", pairing__date="2026-01-31", teacher__model=str(tmp_path / "other"))
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=tmp_path, input=run.model_dump_json(), text=True, capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **odd},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, other = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert {name for name in one if one[name] != other[name]} == {"build.json", "corpus.json"}, "they name folders"


def test_threads_and_batches_change_last_bits_only(tiny_teacher):
    backbone = load_backbone(read_checkpoint(str(tiny_teacher)), torch.float32, "cpu")
    ids_BL = torch.arange(1, 49).reshape(2, 24)
    before, found = torch.get_num_threads(), []
    try:
        with torch.no_grad():
            for threads, batches in ((1, [ids_BL]), (2, [ids_BL]), (1, ids_BL.split(1))):
                torch.set_num_threads(threads)
                found.append(torch.cat([backbone.model(input_ids=batch).logits for batch in batches]))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


def test_the_order_in_which_a_file_system_lists_a_folder_does_not_matter(corpus_file, tmp_path, monkeypatch):
    lines = corpus_file.read_text().splitlines(keepends=True)
    for name, some in (("a.jsonl", lines[:4]), ("b.jsonl", lines[4:8]), ("c.jsonl", lines[8:12])):
        (tmp_path / name).write_text("".join(some))
    walk = os.walk
    sorted_by_name = open_corpus(".", folder=tmp_path).content_hash
    monkeypatch.setattr(os, "walk", lambda *args, **options: ((w, d, f[::-1]) for w, d, f in walk(*args, **options)))
    assert open_corpus(".", folder=tmp_path).content_hash == sorted_by_name


def test_templates_are_told_not_to_think(vocabularies, tmp_path):
    (tmp_path / "thinks.jinja").write_text(
        "{% if enable_thinking is not defined or enable_thinking %}THINK{% endif %}{{ messages[0].content }}"
    )
    tokenizer = TextTokenizer.load(str(vocabularies.first), chat_template=tmp_path / "thinks.jinja")
    assert tokenizer.render([Message("user", "x")]).text == "x"
