"""A causal cache goes wherever another one goes: actors, repair, verify and inspect, mixes, sweeps, evaluation."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.teacher_examples import write_causal
from tide_cache.building.driver import build_cache
from tide_cache.building.executors.ray_actors import ShardActor
from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.manifest import CacheFolder
from tide_cache.pairing import TextTokenizer
from tide_cache_cli.main import app

RUN = """
[student]
shape = {{ hidden_size = 32, intermediate_size = 48, num_layers = 1, num_heads = 2, num_kv_heads = 1 }}
tokenizer = {{ path = "{tokenizer}" }}

[train]
steps = 2
global_batch = 4
micro_batch = 4
log_every = 1
precision = "float32"
device = "cpu"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory, build_values, vocabularies):
    """A causal cache of two shards, one of another teacher under the block mask, and a run file."""
    folder = tmp_path_factory.mktemp("causal")
    values = build_values(folder / "block", "shared", views__num_views=2)
    values["corpus"]["spec"] += "[train:6]"
    build_cache(BuildRun.model_validate(values))
    build_cache(BuildRun.model_validate(causal_values(folder / "causal", values, vocabularies, folder / "teacher")))
    write_tasks(folder / "held-out.jsonl", make_tasks(2, seed=2))
    (folder / "train.toml").write_text(RUN.format(tokenizer=vocabularies.second))
    return folder


def causal_values(out, values, vocabularies, teacher):
    if not teacher.exists():
        write_causal(teacher, "llama", TextTokenizer.load(str(vocabularies.second)))
    return values | {
        "teacher": values["teacher"] | {"model": str(teacher), "context": "causal"},
        "build": values["build"] | {"out": str(out), "samples_per_shard": 4},
    }


@pytest.fixture
def call(root, monkeypatch):
    monkeypatch.chdir(root)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return run


def test_an_actor_and_a_repair_give_the_bytes_of_the_build(tmp_path, root, tree, one_thread):
    """What Ray's actors do is here without a cluster: the run file goes to them as JSON."""
    record = json.loads((root / "causal/build.json").read_text())["run"]
    run = BuildRun.model_validate({**record, "build": record["build"] | {"out": str(tmp_path / "cache")}})
    build = prepare_build(run)
    folder = CacheFolder(tmp_path / "cache")
    folder.begin(build.identity, build.plan, build.passes)
    actor = ShardActor(run.model_dump(mode="json"))
    assert [actor.build(shard)["num_samples"] for shard in (1, 0)] == [2, 4]
    folder.finish(build.passes)
    for name in ("build.json", "corpus.json"):
        shutil.copy(root / "causal" / name, tmp_path / "cache")
    expected = tree(root / "causal")
    assert tree(tmp_path / "cache") == expected
    for name in ("signals/plain/shard-000001.parquet", "pairs/shard-000000.parquet"):
        (tmp_path / "cache" / name).write_bytes(b"gone")
    assert CliRunner().invoke(app, ["repair", str(tmp_path / "cache")]).exit_code == 0
    found = tree(tmp_path / "cache")
    assert {name: digest for name, digest in found.items() if not name.startswith("quarantine")} == expected


def test_verify_and_inspect_say_what_the_teacher_saw(call):
    for command, cache, context in (("verify", "causal", "causal"), ("verify", "block", "block")):
        assert f"{context} context" in " ".join(call(command, cache).split())
    assert "context causal" in " ".join(call("inspect", "causal").replace("│", " ").split())


def test_a_mix_of_both_kinds_trains_and_a_sweep_and_eval_read_a_causal_cache(root, call):
    objectives = ("--objective", "ce", "--objective", "kl")
    call("train", "train.toml", "--cache", "causal=2", "--cache", "block", *objectives, "--out", "mixed")
    lines = [json.loads(line) for line in (root / "mixed/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(list(line["losses"].values())).all() for line in lines)
    call("sweep", "train.toml", "--cache", "causal", "--objective", "ce+kl", "--out", "students")
    done = json.loads((root / "students/sweep.json").read_text())
    assert "kl" in json.dumps(done)
    student = next((root / "students").glob("*/seed-0/model"))
    options = ("--dataset", "held-out.jsonl", "--cache", "causal", "--json")
    found = json.loads(call("eval", student, *options))["agreement"]["overall"]
    assert found["num_rows"] > 0
    assert np.isfinite([found["kl"], found["chunk_logprob_difference"]]).all()
