"""A cache's name covers the contents of everything that shapes it: each changed input is another cache."""

import json
import re
import shutil

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file, save_file

from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.errors import ModelError
from tide_cache.hub import open_repository

MASK = {"mask_token": "<|mask|>"}


def identity_of(values):
    return prepare_build(BuildRun.model_validate(values)).identity


@pytest.fixture(scope="module")
def base(tmp_path_factory, build_values):
    out = tmp_path_factory.mktemp("base") / "cache"
    return out, identity_of(build_values(out))


SETTINGS = {
    "teacher__context": "full",
    "teacher__block_size": 16,
    "teacher__max_length": 63,
    "teacher__dtype": "bfloat16",
    "student__max_length": 63,
    "student__block_size": 16,
    "student__fill_last_block": False,
    "views__num_views": 6,
    "views__seed": 1,
    "views__time_sampling": "uniform",
    "views__schedule": "cosine",
    "views__complementary": True,
    "views__demo_ratio": 0.25,
    "signals__kinds": ("truth",),
    "signals__top_k": 15,
    "signals__top_p": 0.9,
    "signals__temperatures": (1.0, 3.0),
    "signals__logprob_dtype": "float32",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_the_name(base, build_values, name):
    out, before = base
    after = identity_of(build_values(out, **{name: SETTINGS[name]}))
    assert after.cache_id != before.cache_id
    assert [field for field, _, _ in before.differences(after)] == [name.replace("__", ".")]


def test_the_shared_vocabulary_is_in_the_name(base, build_values):
    out, before = base
    after = identity_of(build_values(out) | {"pairing": {"shared_vocab_size": 5}})
    assert [field for field, _, _ in before.differences(after)] == ["pairing.shared_vocab_size"]


def test_one_letter_of_the_corpus_is_in_the_name(base, build_values, corpus_file, tmp_path):
    out, before = base
    text = corpus_file.read_text()
    lines = text.splitlines(keepends=True)
    changed = {
        "a letter": text[:-6] + ("b" if text[-6] == "a" else "a") + text[-5:],
        "the order of rows": "".join([*lines[1:], lines[0]]),
        "a row less": "".join(lines[:-1]),
    }
    seen = {before.cache_id}
    for what, content in changed.items():
        path = tmp_path / what.replace(" ", "-") / corpus_file.name
        path.parent.mkdir()
        path.write_text(content)
        after = identity_of(build_values(out, corpus__spec=str(path)))
        assert "corpus_hash" in [field for field, _, _ in before.differences(after)], what
        seen.add(after.cache_id)
    assert len(seen) == 4


def test_one_bit_of_the_weights_is_in_the_name(base, build_values, tiny_teacher, tmp_path):
    out, before = base
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    assert identity_of(build_values(out, teacher__model=str(tmp_path / "teacher"))).cache_id == before.cache_id
    weights = load_file(tmp_path / "teacher/model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = weights[name].view(-1)[0].nextafter(weights[name].new_tensor(9.0))
    save_file(weights, tmp_path / "teacher/model.safetensors", metadata={"format": "pt"})
    after = identity_of(build_values(out, teacher__model=str(tmp_path / "teacher")))
    assert [field for field, _, _ in before.differences(after)] == ["teacher.weights_sha256"]


def test_the_teachers_configuration_is_in_the_name(base, build_values, tiny_teacher, tmp_path):
    out, before = base
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher/config.json").read_text())
    (tmp_path / "teacher/config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    after = identity_of(build_values(out, teacher__model=str(tmp_path / "teacher")))
    assert [field for field, _, _ in before.differences(after)] == ["teacher.config_sha256"]


def test_token_mapping_and_template_are_in_the_name(base, build_values, vocabularies, tmp_path):
    out, before = base
    folder = tmp_path / "tokenizer"
    shutil.copytree(vocabularies.second, folder)
    text = (folder / "tokenizer.json").read_text()
    content = json.loads(text)
    merges = content["model"]["merges"]
    content["model"]["merges"] = [*merges[:-2], merges[-1], merges[-2]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    student = {"tokenizer": {"path": str(folder)}, "max_length": 64, "block_size": 8}
    after = identity_of(build_values(out) | {"student": student})
    assert "student_tokenizer.tokenizer" in [field for field, _, _ in before.differences(after)]
    (folder / "tokenizer.json").write_text(text)
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}")
    student["tokenizer"]["chat_template"] = str(template)
    after = identity_of(build_values(out) | {"student": student})
    assert [field for field, _, _ in before.differences(after)] == ["student_tokenizer.chat_template"]


COMMITS = ("1" * 39 + "a", "2" * 39 + "b")


def test_a_hub_name_is_resolved_to_the_commit_that_was_read(build_values, tiny_teacher, tmp_path, monkeypatch):
    """A branch moves; the cache's name holds what it pointed to. No network: the hub's local folder is made here."""
    repository = tmp_path / "home/hub/models--owner--teacher"
    (repository / "refs").mkdir(parents=True)
    for branch, commit in zip(("main", "v2"), COMMITS, strict=True):
        (repository / "refs" / branch).write_text(commit)
        shutil.copytree(tiny_teacher, repository / "snapshots" / commit)
    values = build_values(tmp_path / "cache", teacher__model="owner/teacher")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = []
    for revision in (None, "main", "v2", *COMMITS):
        values["teacher"]["revision"] = revision
        identity = prepare_build(BuildRun.model_validate(values)).identity
        found.append((revision, identity.teacher["revision"], identity.cache_id))
    first, second = COMMITS
    expected = [(None, first), ("main", first), ("v2", second), (first, first), (second, second)]
    assert [(given, recorded) for given, recorded, _ in found] == expected
    ids = [cache_id for _, _, cache_id in found]
    assert ids[0] == ids[1] == ids[3]
    assert ids[2] == ids[4] != ids[0]


def test_a_snapshot_without_a_commit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "models--owner--teacher/refs").mkdir(parents=True)
    (tmp_path / "models--owner--teacher/refs/main").write_text("main")
    (tmp_path / "models--owner--teacher/snapshots/main").mkdir(parents=True)
    with pytest.raises(ModelError, match=re.escape("whose name is no commit of 40 hex digits; give its revision")):
        open_repository("owner/teacher")
    assert open_repository(str(tmp_path), "as given").commit is None


def test_a_tokenizer_that_both_sides_name_is_loaded_once_and_gives_the_same_name(base, build_values, tmp_path):
    """Of a large vocabulary this takes seconds, in every worker."""
    values = build_values(base[0])
    student = values["student"]["tokenizer"] | MASK
    shutil.copytree(student["path"], tmp_path / "copy")

    def prepared(teacher):
        changed = {side: values[side] | {"tokenizer": of} for side, of in (("teacher", teacher), ("student", student))}
        return prepare_build(BuildRun.model_validate(values | changed))

    named, apart = prepared(student), prepared(student | {"path": str(tmp_path / "copy")})
    assert named.pairer.teacher is named.pairer.student
    assert apart.pairer.teacher is not apart.pairer.student
    assert named.identity == apart.identity
