"""The pipelines' run files and the full-scale commands of their READMEs, with tiny checkpoints in published layouts.

Only paths are replaced: models, tokenizers, corpora and output folders. What would capture or train is held to
`--dry-run`; one capture, sweep and evaluation of each pipeline really runs.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config
from typer.testing import CliRunner

from helpers.teacher_examples import SDAR, write_family, write_llada2, write_wedlm
from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.modeling.backbone import new_backbone
from tide_cache.modeling.checkpoint import save_student
from tide_cache.pairing import TextTokenizer
from tide_cache_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PIPELINES = {"a": "cross", "b": "shared"}
FIRST_TWO = {"a": ("cross/bd3lm", "cross/tide-cross"), "b": ("shared/bd3lm", "shared/tide-shared")}


def commands(pipeline):
    """Every `tide-cache` command of a README, in its order."""
    text = (EXAMPLES / f"pipeline-{pipeline}" / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def succeed(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, (arguments, result.stderr)
    return result.stdout


@dataclass(frozen=True)
class Toy:
    """Stand-ins for what lies on the hub, and what was made of them."""

    root: Path

    def build_paths(self, pipeline):
        paths = {
            "corpus.spec": self.root / "tasks.jsonl",
            "teacher.model": self.root / f"teacher-{pipeline}",
            "student.tokenizer.path": self.root / "student",
            "build.out": self.root / f"runs/pipeline-{pipeline}/cache",
        }
        return sets(paths)

    def train_paths(self, pipeline=None):
        paths = {"student.model": self.root / "student", "student.tokenizer.path": self.root / "student"}
        if pipeline is not None:
            return sets(paths | {"data.cache": self.root / f"runs/pipeline-{pipeline}/cache"})
        mix = {f"data.mix.{i}.cache": self.root / f"runs/pipeline-{name}/cache" for i, name in enumerate("ab")}
        return sets(paths | mix)


def sets(paths):
    return [part for key, value in paths.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, vocabularies):
    """Stand-ins, and both pipelines captured by their own run files."""
    root = tmp_path_factory.mktemp("pipelines")
    write_tasks(root / "tasks.jsonl", make_tasks(12, seed=1))
    write_tasks(root / "held-out.jsonl", make_tasks(4, seed=2))
    write_llada2(root / "teacher-a", TextTokenizer.load(str(vocabularies.first)))
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    write_wedlm(root / "teacher-b", tokenizer)
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    weights = new_backbone(config, torch.float32, "cpu", seed=4).model.state_dict()
    save_student(root / "student", weights, config, tokenizer, {})
    toy = Toy(root)
    for pipeline in PIPELINES:
        run_file = EXAMPLES / f"pipeline-{pipeline}" / "capture.toml"
        succeed("build-teacher-shards", run_file, *toy.build_paths(pipeline))
    return toy


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_command_of_the_readme_can_start(toy, pipeline, monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = []
    for name, *options in commands(pipeline):
        seen.append(name)
        here = [
            str(toy.root / option) if option.startswith("runs/")
            else str(toy.root / "held-out.jsonl") if option.startswith("HuggingFaceTB/") else option
            for option in options if option != "--dry-run"
        ]  # fmt: skip
        if name == "plan":
            plan = json.loads(succeed(name, *here, *toy.build_paths(pipeline), "--sample-rows", "2", "--json"))
            assert plan["num_samples"] == 12
        elif name == "build-teacher-shards":
            assert "12 rows" in succeed(name, *here, *toy.build_paths(pipeline), "--dry-run")
        elif name == "sweep":
            students = json.loads(succeed(name, *here, *toy.train_paths(pipeline), "--dry-run", "--json"))["students"]
            assert len(students) == 3 * here.count("--preset")
            assert {student["steps"] for student in students} == {2}, "10 epochs of 12 samples, 64 a step"
        elif name == "train":
            paths = toy.train_paths(None if "two-teachers" in here[0] else pipeline)
            assert json.loads(succeed(name, *here, *paths, "--dry-run", "--json"))["samples"] in (12, 24)
        elif name in ("verify", "inspect"):
            succeed(name, *here)
        else:
            assert name in ("eval", "eval-tasks")
    assert seen[:5] == ["plan", "build-teacher-shards", "build-teacher-shards", "verify", "inspect"]
    assert [seen.count(name) for name in ("sweep", "train", "eval", "eval-tasks")] == [2, 3, 1, 1]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_small_run_through_the_same_files_gives_scored_students(toy, pipeline, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = toy.root / f"students-{pipeline}"
    presets = [part for preset in FIRST_TWO[pipeline] for part in ("--preset", preset)]
    arguments = ["sweep", EXAMPLES / f"pipeline-{pipeline}" / "student.toml", *presets, *toy.train_paths(pipeline)]
    arguments += ["--held-out", toy.root / "held-out.jsonl", "--out", out, "--json"]
    arms = json.loads(succeed(*arguments))["arms"]
    assert [arm["name"] for arm in arms] == list(FIRST_TWO[pipeline])
    assert all(arm["nll"]["value"]["mean"] > 0 for arm in arms)
    model = arms[1]["students"][0]["model"]
    told = json.loads(succeed("eval", model, "--dataset", toy.root / "held-out.jsonl", "--by-row", "--json"))
    assert told["nll"]["mean_nll"] == pytest.approx(arms[1]["nll"]["value"]["mean"]), "as `eval` measures"
    kept = json.loads((Path(model).parent / "held-out.json").read_text())["nll"]["rows"]
    assert told["nll"]["rows"]["num_bytes"] == kept["num_bytes"]


def test_one_student_learns_from_both_caches(toy):
    out = toy.root / "two-teachers"
    succeed("train", EXAMPLES / "two-teachers.toml", *toy.train_paths(), "--out", out, "--set", "train.log_every=1")
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last["losses"]) == {"ce", "calm", "kl"}
    assert all(value > 0 for value in last["losses"].values()), "the kl of WeDLM's samples, calm of both"
    data = json.loads((out / "model" / "tide_cache.json").read_text())["data"]
    assert [(cache["weight"], cache["identity"]["teacher"]["model_type"]) for cache in data["caches"]] == [
        (1.0, "llada2_moe"), (1.0, "wedlm"),
    ]  # fmt: skip


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_run_files_hold_the_papers_numbers(pipeline):
    folder = EXAMPLES / f"pipeline-{pipeline}"
    build = load_run_file(BuildRun, folder / "capture.toml")
    assert (build.teacher.max_length, build.teacher.context) == {"a": (1024, "full"), "b": (768, "block")}[pipeline]
    assert (build.student.max_length, build.student.block_size, build.views.demo_ratio) == (512, 32, 0.5)
    run = load_run_file(TrainRun, folder / "student.toml")
    assert (run.optimizer.lr, run.optimizer.warmup_ratio, run.optimizer.schedule) == (5e-5, 0.1, "cosine")
    assert (run.train.epochs, run.train.global_batch, run.train.precision) == (10, 64, "bfloat16")


def test_a_teacher_with_the_students_own_tokenizer(toy, vocabularies, monkeypatch):
    """Every command of pipeline-sdar runs, the second student from the teacher's own weights."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(SDAR, "block_size", 32)
    write_family(toy.root / "teacher-sdar", "sdar", TextTokenizer.load(str(vocabularies.second)))
    started = []
    for name, *options in commands("sdar"):
        here = [
            str(toy.root / option) if option.startswith("runs/")
            else str(toy.root / "held-out.jsonl") if option.startswith("HuggingFaceTB/")
            else f"student.model={toy.root / 'teacher-sdar'}" if option.startswith("student.model=") else option
            for option in options
        ]  # fmt: skip
        if "--num-gpus" in here:
            place = here.index("--num-gpus")
            here[place : place + 2] = []
        if name in ("plan", "build-teacher-shards"):
            here = [here[0], *toy.build_paths("sdar"), *(("--sample-rows", "2") if name == "plan" else ())]
        elif name == "train":
            paths = toy.train_paths("sdar")
            is_sdar = "--set" in here
            paths = paths[2:] if is_sdar else paths
            started.append(is_sdar)
            here += ["--set", "train.precision=float32"]
            here += [*paths, *(() if "--out" in here else ("--out", toy.root / "runs/pipeline-sdar/student"))]
        succeed(name, *here)
    assert started == [False, True]
    for folder in ("student", "student-1.7b"):
        saved = json.loads((toy.root / f"runs/pipeline-sdar/{folder}/model/config.json").read_text())
        assert saved["model_type"] == "a2d-qwen3"


def test_a_teacher_that_writes_the_corpus_and_says_in_which_order(toy, vocabularies, monkeypatch):
    """Every command of pipeline-trajectory runs: answers, a cache of their steps, a student that reads them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(SDAR, "block_size", 32)
    write_family(toy.root / "teacher-trajectory", "sdar", TextTokenizer.load(str(vocabularies.second)))
    answers = toy.root / "runs/pipeline-trajectory/answers.jsonl"
    paths = {"teacher.model": toy.root / "teacher-trajectory"}
    wanted = {
        "answers": sets(paths | {
            "corpus.spec": toy.root / "tasks.jsonl", "answers.out": answers, "decoding.max_new_tokens": 12,
            "answers.unfinished": "keep", "decoding.temperature": 2.0, "teacher.dtype": "float32",
        }),
        "build-teacher-shards": [*toy.build_paths("trajectory"), "--set", f"corpus.spec={answers}"],
        "train": [
            *toy.train_paths("trajectory"), "--out", toy.root / "runs/pipeline-trajectory/student",
            *sets({"train.precision": "float32", "train.epochs": 2, "train.global_batch": 4, "train.micro_batch": 4,
                   "train.log_every": 1}),
        ],
    }  # fmt: skip
    seen = []
    for name, *options in commands("trajectory"):
        here = [
            str(toy.root / option) if option.startswith("runs/")
            else str(toy.root / "held-out.jsonl") if option.startswith("HuggingFaceTB/") else option
            for option in options if name in ("verify", "eval") or option.endswith(".toml")
        ]  # fmt: skip
        seen.append(name)
        succeed(name, *here, *wanted.get(name, ()))
    assert seen == ["answers", "build-teacher-shards", "verify", "train", "eval"]
    lines = (toy.root / "runs/pipeline-trajectory/student/metrics.jsonl").read_text().splitlines()
    assert len(lines) >= 5
    assert all(json.loads(line)["losses"].keys() == {"ce", "kl"} for line in lines)
