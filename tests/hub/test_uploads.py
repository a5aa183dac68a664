"""Models and caches are uploaded to a hub over HTTP and opened from there.

The whole way is one fresh process with `HF_ENDPOINT` at a server of this test; refusals are asked for in this process.
"""

import json
import shutil

import huggingface_hub
import pytest
from typer.testing import CliRunner

from helpers.local_hub import LocalHub, Repository, run_commands
from tide_cache import upload
from tide_cache.errors import RunFileError, UploadError
from tide_cache.locations import cache_path
from tide_cache.shards import files_of
from tide_cache.shards.hub_files import _opened
from tide_cache.upload import Destination
from tide_cache_cli.main import app


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_cache):
    with LocalHub(uploads=tmp_path_factory.mktemp("uploads"), writers={"a-token": "me"}) as server:
        server.repositories |= {
            "datasets/owner/cache": Repository({"main": tiny_cache}),
            "datasets/owner/secret": Repository({"main": tiny_cache}, is_gated=True),
            "me/public": Repository({"main": tmp_path_factory.mktemp("public")}),
        }
        yield server


@pytest.fixture
def ask(hub, tmp_path, monkeypatch):
    """Run commands in this process, whose library asks the server; gives exit code and what was said of each."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "a-token")
    monkeypatch.chdir(tmp_path)

    def run(*commands):
        found = [CliRunner().invoke(app, [str(word) for word in command]) for command in commands]
        return [(one.exit_code, " ".join(one.stderr.split())) for one in found]

    return run


def train(cache, student, *more):
    return (
        "train",
        "--student",
        student,
        "--cache",
        cache,
        "--objective",
        "ce",
        "--objective",
        "kl",
        "--out",
        "run",
        "--set",
        "train.steps=1",
        "--set",
        "train.global_batch=2",
        "--set",
        "train.micro_batch=2",
        "--set",
        "train.precision=float32",
        *more,
    )


def test_a_cache_and_its_student_go_to_a_hub_and_come_back(hub, tmp_path, tiny_cache, tiny_teacher):
    """The cache is published, opened and learnt from, and its student is published and asked."""
    cache = "hf://datasets/me/cache"
    commands = (
        ("push", tiny_cache, "me/cache", "--json"),
        ("verify", cache, "--deep"),
        ("inspect", cache, "--json"),
        ("report", cache, "--out", "cache.html"),
        train(cache, tiny_teacher, "--push-to-hub", "me/student", "--private"),
        ("export-model", "run", "--format", "a2d", "--out", "served", "--push-to-hub", "me/served", "--json"),
        ("generate", "me/student", "--prompt", "reverse: one", "--max-new-tokens", "4", "--json"),
        ("generate", "run/model", "--prompt", "reverse: one", "--max-new-tokens", "4", "--json"),
    )
    answers = run_commands(hub, commands, tmp_path, HF_TOKEN="a-token")
    assert [code for code, *_ in answers] == [0] * 8, answers
    assert hub.commits[0][-2:] == ["README.md", "manifest.json"], "without its manifest a cache is not complete"
    manifest = json.loads((tiny_cache / "manifest.json").read_text())
    card = (hub.repositories["datasets/me/cache"].branches["main"] / "README.md").read_text()
    for told in (manifest["identity"]["teacher"]["weights_sha256"][:16], cache, "## Licences"):
        assert told in card
    assert json.loads(answers[2][1])["cache_id"] in card
    student = hub.repositories["me/student"]
    assert student.is_private
    uploaded = student.branches["main"]
    for file in (tmp_path / "run/model").iterdir():
        if file.name != "tide_cache.json":
            assert (uploaded / file.name).read_bytes() == file.read_bytes(), file.name
    assert str(tiny_teacher) not in (uploaded / "tide_cache.json").read_text(), "a path of this machine"
    assert json.loads(answers[5][1])["page"] == f"{hub.url}/me/served"
    assert json.loads(answers[6][1])["answers"] == json.loads(answers[7][1])["answers"]


@pytest.mark.filterwarnings("ignore:Use 'content=")  # the hub's library of its own HTTP library
def test_an_upload_that_fails_loses_nothing_and_says_how_to_repeat_it(hub, ask, tmp_path, tiny_teacher, tiny_cache):
    hub.refuses_commits = True
    export = ("export-model", tiny_teacher, "--format", "a2d", "--block-size", "8", "--out", "served")
    try:
        done, cache = ask((*export, "--push-to-hub", "me/lost", "--private"), ("push", tiny_cache, "me/half"))
    finally:
        hub.refuses_commits = False
    assert (done[0], cache[0]) == (1, 1), done
    assert "answers with HTTP 507" in done[1]
    repeat = "tide-cache push served me/lost --private"
    assert f"served is complete and stays. Upload it with: {repeat}" in done[1]
    assert "Run the same command again: it sends what is missing" in cache[1]
    (again,) = ask(repeat.split()[1:])
    assert again[0] == 0, again
    assert (hub.repositories["me/lost"].branches["main"] / "model.safetensors").is_file()


def test_what_cannot_be_uploaded_is_refused_before_any_work(hub, ask, tmp_path, tiny_cache, tiny_teacher):
    def to(name, *more):
        return train(tiny_cache, tiny_teacher, "--push-to-hub", name, *more)

    other = tmp_path / "other"
    shutil.copytree(tiny_cache, other)
    (other / "plan.json").write_text("{}")
    cases = {
        to("student"): (2, "--push-to-hub student: expected OWNER/NAME"),
        to("me/a/b"): (2, "expected OWNER/NAME"),
        to("you/student"): (2, "the hub refuses to write there (HTTP 403)"),
        to("me/public", "--private"): (2, "me/public: is public on the hub, and --private does not change that"),
        train(tiny_cache, tiny_teacher, "--private"): (2, "--private: found no --push-to-hub with it"),
        ("export-model", tiny_teacher, "--out", "out", "--push-to-hub", "you/x"): (2, "refuses to write there"),
        ("push", "absent", "me/x"): (2, "found neither a model (config.json) nor a cache (manifest.json)"),
        ("push", other, "me/other"): (3, f"Repair it: tide-cache repair {other}"),
    }
    for (command, (code, message)), found in zip(cases.items(), ask(*cases), strict=True):
        assert (found[0], message in found[1]) == (code, True), (command, found)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


def test_without_a_token_or_a_hub_nothing_is_begun(monkeypatch):
    place = Destination("me/student")
    monkeypatch.setattr(upload, "get_token", lambda: None)
    with pytest.raises(RunFileError, match="--push-to-hub me/student: found no token of the hub; run `hf auth login`"):
        place.require_usable()
    monkeypatch.setattr(upload, "get_token", lambda: "a-token")
    place.require_usable()
    monkeypatch.setattr(upload, "HfApi", lambda: huggingface_hub.HfApi("http://127.0.0.1:9"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UploadError, match=r"the hub at http://127\.0\.0\.1:9 cannot be reached"):
        place.claim()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunFileError, match="HF_HUB_OFFLINE is set"):
        place.require_usable()


def test_a_cache_on_a_hub_that_cannot_be_read_keeps_its_reason(hub, ask, tiny_teacher, monkeypatch):
    cases = {
        ("inspect", "hf://datasets/owner/missing"): (3, "hf://datasets/owner/missing: the hub has no such repository"),
        ("inspect", "hf://datasets/owner/cache@nope"): (3, "the hub has no revision 'nope' of it"),
        ("inspect", "hf://datasets/owner/cache/below"): (3, "hf://datasets/owner/cache/below: no cache here"),
        ("verify", "hf://datasets/owner/secret"): (1, f"accept its conditions at {hub.url}/datasets/owner/secret"),
        ("report", "hf://owner/cache"): (2, "hf://owner/cache: expected hf://datasets/OWNER/NAME"),
        train("hf://datasets/owner", tiny_teacher): (2, "expected hf://datasets/OWNER/NAME"),
        train("hf://datasets/owner/missing", tiny_teacher): (3, "the hub has no such repository"),
    }
    for (command, (code, message)), found in zip(cases.items(), ask(*cases), strict=True):
        assert (found[0], message in found[1]) == (code, True), (command, found)
    # What was fetched before needs no hub; another name does.
    (before,) = ask(("verify", "hf://datasets/owner/cache"))
    _opened.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    kept, new = ask(("verify", "hf://datasets/owner/cache"), ("inspect", "hf://datasets/owner/new"))
    assert (before[0], kept[0]) == (0, 0), kept
    assert (new[0], "the hub at http://127.0.0.1:9 cannot be reached" in new[1]) == (1, True), new


def test_a_cache_on_a_hub_is_never_written(tmp_path):
    path = cache_path("hf://datasets/owner/cache@v1/plan.json")
    files = files_of(path)
    for write in (files.create, files.replace):
        with pytest.raises(RunFileError, match=r"@v1/plan\.json: a data set of a hub is only read.*tide-cache push"):
            write(path, b"")
    for touch in (files.remove, files.make_folder, files.sync_folder, files.remove_leftovers, files.prove_exclusive):
        with pytest.raises(RunFileError, match="only read"):
            touch(path)
