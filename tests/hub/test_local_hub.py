"""Hub names against a hub over HTTP, in fresh processes: what is asked for, in which order, and every refusal.

The commands run by themselves with `HF_ENDPOINT` at a server of this test: there is no network.
"""

import json
import os
import shutil
import sys

import pytest

from helpers import fresh
from helpers.fresh import IS_FULL
from helpers.local_hub import DRIVER, LocalHub, Repository, commit_of
from helpers.tiny_gguf import write_tiny_gguf

MAIN = commit_of("owner/teacher", "main")
LIMIT_S = 60
"""From the question to the error, without what it takes to start Python and torch: tenths of a second where nothing
waits, and six times the ten that are promised, for machines with other work."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_teacher, vocabularies, corpus_file):
    root = tmp_path_factory.mktemp("hub")

    def files(name, **texts):
        folder = root / name
        folder.mkdir()
        for file, text in texts.items():
            (folder / file.replace("__", ".")).write_text(text)
        return folder

    old = root / "old"
    shutil.copytree(tiny_teacher, old)
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    extra = root / "teacher"
    shutil.copytree(tiny_teacher, extra)
    (extra / "consolidated.safetensors").write_bytes(b"the same weights once more")
    (extra / "onnx").mkdir()
    (extra / "onnx/model.safetensors").write_bytes(b"and again")
    adapter = root / "with-adapter"
    shutil.copytree(tiny_teacher, adapter)
    (adapter / "adapter_config.json").write_text("{}")
    quantised = root / "quantised"
    quantised.mkdir()
    write_tiny_gguf(quantised / "model-Q8_0.gguf", vocabularies.first)
    (quantised / "model-Q2_K.gguf").write_bytes(b"never fetched")
    rows = root / "rows"
    (rows / "data").mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(corpus_file, rows / "data" / f"{split}.jsonl")
    with LocalHub() as server:
        server.repositories |= {
            "owner/teacher": Repository({"main": extra, "old": old}),
            "owner/gated": Repository({"main": tiny_teacher}, is_gated=True),
            "owner/unstated": Repository({"main": tiny_teacher}, states_sha256=False),
            "owner/tokenizer": Repository({"main": vocabularies.first}),
            "owner/mamba": Repository({"main": files("mamba", config__json='{"model_type": "mamba"}',
                                                     model__safetensors="16 GB")}),
            "owner/gguf": Repository({"main": files("gguf", **{"model-Q4_K_M__gguf": "GGUF", "README__md": ""})}),
            "owner/quantised": Repository({"main": quantised}),
            "owner/lora": Repository({"main": files("lora", adapter_config__json="{}",
                                                    adapter_model__safetensors="")}),
            "owner/with-adapter": Repository({"main": adapter}),
            "datasets/owner/rows": Repository({"main": rows}),
            "datasets/owner/secret": Repository({"main": rows}, is_gated=True),
        }  # fmt: skip
        server.home = root / "home"
        yield server


@pytest.fixture
def ask(hub, tmp_path):
    """Run commands one after the other in one fresh process; gives exit code, stdout, stderr and seconds of each."""

    def run(*commands, home="home", **environment):
        hub.served.clear()
        (tmp_path / home).mkdir(exist_ok=True)
        hub.home.unlink(missing_ok=True)  # one name for all homes, so that processes can be forked from few
        hub.home.symlink_to(tmp_path / home)
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(hub.home), "NO_PROXY": "*", "HF_TOKEN": ""}
        done = fresh.run(
            [sys.executable, "-c", DRIVER], imports="hub",
            input=json.dumps([[str(part) for part in command] for command in commands]),
            env={**os.environ, **settings, "OMP_NUM_THREADS": "1",
                 "HF_HUB_OFFLINE": "0", **environment},
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [(code, out, " ".join(err.split()), seconds) for code, out, err, seconds in json.loads(done.stdout)]

    return run


def build(teacher, corpus, *more, student="owner/tokenizer"):
    limits = ("--set", "teacher.max_length=64", "--set", "student.max_length=64", "--set", "teacher.dtype=float32")
    return ("build-teacher-shards", "--teacher", teacher, "--student", student, "--dataset", corpus, "--out", "cache",
            *limits, *more)  # fmt: skip


def weights(hub):
    return [name for name in hub.served if name.endswith((".safetensors", ".gguf"))]


def test_every_refusal_keeps_its_reason_and_fetches_no_weights(hub, ask, corpus_file):
    absent = "a" * 40
    cases = {
        ("generate", "owner/missing", "--prompt", "x"): "the hub has no such repository, or keeps it private; check",
        ("generate", "owner/gated", "--prompt", "x"): f"is gated: accept its conditions at {hub.url}/owner/gated, then "
        "set HF_TOKEN, or run `hf auth login`",
        ("generate", "owner/gguf", "--prompt", "x"): "found GGUF files and no config.json",
        ("eval", "owner/lora", "--dataset", corpus_file): "found an adapter (adapter_config.json) without the model",
        ("eval", "owner/with-adapter", "--dataset", corpus_file): "found adapter_config.json next to the weights",
        ("convert", "owner/lora", "--out", "out"): "found an adapter (adapter_config.json) without the model",
        ("convert", "owner/teacher", "--out", "out", "--revision", "nope"): "the hub has no revision 'nope' of it",
        ("convert", "owner/teacher", "--out", "out", "--revision", absent): f"the hub has no revision '{absent}' of it",
        ("convert", "owner/mamba", "--out", "out"): "model_type 'mamba' is not supported",
        build("owner/mamba", corpus_file): "model_type 'mamba' is not supported",
        build("owner/teacher", corpus_file, student="owner/missing"): "the hub has no such repository",
        build("owner/teacher", "absent.jsonl"): "no such file or folder",
        build("owner/teacher", "owner/absent"): "owner/absent: no such folder, and the hub has no such repository",
        build("owner/teacher", "owner/secret"): f"owner/secret: is gated: accept its conditions at {hub.url}/datasets/"
        "owner/secret, then set HF_TOKEN, or run `hf auth login`",
        build("owner/teacher", "owner/rows[dev:]"): "Unknown split",
        build("owner/teacher", corpus_file, "--set", "teacher.revision=nope"): "the hub has no revision 'nope' of it",
        ("plan", *build("owner/teacher", "absent.jsonl")[1:]): "no such file or folder",
        ("train", "--student", "owner/gated", "--dataset", corpus_file, "--objective", "ce", "--out", "run",
         "--set", "train.steps=1"): "is gated: accept its conditions",
    }  # fmt: skip
    for (command, found), (code, _, err, seconds) in zip(cases.items(), ask(*cases), strict=True):
        assert code == 3, (command, err)
        assert found in err, (command, err)
        assert seconds < LIMIT_S, command
    assert weights(hub) == []


def test_a_hub_that_is_down_or_not_to_be_asked_is_told_apart(hub, ask, tiny_teacher, vocabularies):
    asked = ("generate", "owner/teacher", "--prompt", "x")
    rows = build(tiny_teacher, "owner/rows", student=vocabularies.first)
    for code, _, err, seconds in ask(asked, rows, HF_HUB_OFFLINE="1"):
        assert code == 3
        assert "the hub is not asked, since HF_HUB_OFFLINE is set" in err
        assert seconds < LIMIT_S
    for is_silent in (False, True) if IS_FULL else (False,):  # one that is silent is waited for
        with hub.away(is_silent):
            answers = ask(asked, rows, home="empty")
        for code, _, err, seconds in answers:
            assert code == 3
            assert f"the hub at {hub.url} cannot be reached" in err
            assert seconds < LIMIT_S


def test_a_dry_run_knows_the_cache_without_the_weights_and_a_build_fetches_only_them(hub, ask, corpus_file, tmp_path):
    (dry,) = ask(build("owner/teacher", corpus_file, "--dry-run", "--json"))
    assert dry[0] == 0, dry[2]
    assert weights(hub) == []
    assert "owner/teacher/config.json" in hub.served
    (done, old, pinned) = ask(
        build("owner/teacher", corpus_file, "--json"),
        build("owner/teacher", corpus_file, "--dry-run", "--json", "--set", "teacher.revision=old", "--out", "other"),
        build("owner/teacher", corpus_file, "--dry-run", "--json", "--set", f"teacher.revision={MAIN}"),
    )
    assert done[0] == 0, done[2]
    assert weights(hub) == ["owner/teacher/model.safetensors"], "neither the copies of it nor another branch's"
    identity = json.loads((tmp_path / "cache/manifest.json").read_text())["identity"]
    assert identity["teacher"]["revision"] == MAIN
    ids = [json.loads(answer[1])["cache_id"] for answer in (dry, done, old, pinned)]
    assert ids[0] == ids[1] == ids[3] != ids[2]
    (offline,) = ask(build("owner/teacher", corpus_file, "--dry-run", "--json"), HF_HUB_OFFLINE="1")
    assert json.loads(offline[1])["cache_id"] == ids[0]
    (unstated,) = ask(build("owner/unstated", corpus_file, "--dry-run", "--json", "--out", "third"))
    assert json.loads(unstated[1])["cache_id"] is None, unstated[2]
    assert weights(hub) == []


def test_only_the_split_that_is_asked_for_is_fetched(hub, ask):
    (done,) = ask(build("owner/teacher", "owner/rows[test:5]", "--dry-run", "--json"))
    assert done[0] == 0, done[2]
    rows = [name for name in hub.served if name.startswith("datasets/")]
    assert rows == ["datasets/owner/rows/data/test.jsonl"]
    (offline,) = ask(build("owner/teacher", "owner/rows[test:5]", "--dry-run", "--json"), HF_HUB_OFFLINE="1")
    assert json.loads(offline[1])["estimate"] == json.loads(done[1])["estimate"], offline[2]
    assert json.loads(done[1])["estimate"]["num_rows"] == 5


def test_one_gguf_file_of_a_repository_is_fetched_and_converted(hub, ask, tmp_path):
    convert = ("convert", "owner/quantised", "--out")
    tokenizer = ("--tokenizer", "owner/tokenizer", "--tokenizer-revision")
    answers = ask(
        (*convert, "a"),
        (*convert, "a", "--gguf", "model-Q4_0.gguf"),
        (*convert, "a", "--gguf", "model-Q8_0.gguf", *tokenizer, "nope"),
        (*convert, "b", "--gguf", "model-Q8_0.gguf", "--revision", "main"),
        ("convert", "owner/gguf", "--out", "a"),
    )
    listed = "model-Q2_K.gguf, model-Q8_0.gguf"
    assert [code for code, *_ in answers] == [3, 3, 3, 0, 3], answers
    assert f"owner/quantised: found 2 GGUF files, expected one; choose it with --gguf: {listed}" in answers[0][2]
    assert f"--gguf model-Q4_0.gguf: owner/quantised holds no such file; its GGUF files: {listed}" in answers[1][2]
    assert "owner/tokenizer: the hub has no revision 'nope' of it" in answers[2][2]
    assert "model-Q4_K_M.gguf: transformers cannot read this GGUF file" in answers[4][2], "its only one is taken"
    assert weights(hub) == ["owner/quantised/model-Q8_0.gguf", "owner/gguf/model-Q4_K_M.gguf"]
    provenance = json.loads((tmp_path / "b/tide_cache.json").read_text())
    assert provenance["converted_from"] == "model-Q8_0.gguf"
    assert provenance["revision"] == commit_of("owner/quantised", "main")
    assert not (tmp_path / "a").exists()
