"""What cannot work is refused before a model is loaded: found, expected, where and the way out."""

import json
import shutil

import pytest

from tide_cache.manifest import CacheIdentity, ShardPlan
from tide_cache.modeling import stock

CROSS = ("--set", "student.tokenizer.path=vocab/first")


@pytest.fixture(autouse=True)
def no_model_is_loaded(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(stock.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(stock.AutoModelForCausalLM, "from_config", refuse)


def test_unknown_keys_and_impossible_values_are_listed_together(call):
    result = call(
        *("train", "train.toml", "--cache", "cache", "--out", "x"),
        *("--set", "train.stesp=3", "--set", "train.steps=-1", "--set", "optimizer.schedule=linear"),
    )
    assert result.exit_code == 2
    assert result.stderr.startswith("error: train.toml cannot be used:\n")
    assert "train.stesp: unknown key; did you mean 'steps'?" in result.stderr
    assert "train.steps: found -1; Input should be greater than or equal to 1" in result.stderr
    assert "optimizer.schedule: found 'linear'; Input should be 'cosine' or 'constant'" in result.stderr
    assert result.stdout == ""


def test_what_the_options_do_not_say_is_named(call):
    result = call("build-teacher-shards", "--teacher", "teacher/model")
    assert result.exit_code == 2
    assert "error: the command line cannot be used:" in result.stderr
    for section in ("corpus", "student", "build"):
        assert f"{section}: missing; it has no default" in result.stderr


def test_a_missing_run_file_is_named(call):
    result = call("train", "nowhere.toml")
    assert result.exit_code == 2
    assert "nowhere.toml: no such run file" in result.stderr


@pytest.mark.parametrize("item", ["kl:heavy", "kl:", "kl:-1"])
def test_a_weight_must_be_a_number(call, item):
    result = call("train", "train.toml", "--objective", item)
    assert result.exit_code == 2
    assert f"--objective {item!r}: found weight" in result.stderr
    assert "kl:0.5" in result.stderr


def test_an_unknown_objective_is_answered_with_the_known_ones(call):
    result = call("train", "train.toml", "--cache", "cache", "--objective", "kll", "--out", "x")
    assert result.exit_code == 2
    assert "found kind 'kll'; did you mean 'kl'? known here: bernoulli_kl, calm, ce, " in result.stderr
    assert "reverse_calm" in result.stderr


def test_a_cache_of_another_tokenizer_is_refused(call):
    result = call("train", "train.toml", "--cache", "cache", "--objective", "calm", "--out", "x")
    assert result.exit_code == 3
    assert "does not fit this run" in result.stderr
    assert "student tokenizer, mask_token_id: cache has 383, the student's is 511" in result.stderr


def test_a_missing_temperature_is_refused_with_the_build_option_that_adds_it(call):
    result = call(
        *("train", "train.toml", *CROSS, "--cache", "cache", "--objective", "kl", "--out", "x"),
        *("--set", "objective.0.temperature=4.0"),
    )
    assert result.exit_code == 3
    assert "temperatures: cache has [1.0, 2.0], objectives also need [4.0]" in result.stderr
    assert "signals.temperatures=[1.0, 2.0, 4.0]" in result.stderr


def test_a_missing_signal_is_refused(workshop, call, tmp_path):
    """The cache says what it holds: one that declares `truth` alone cannot serve kl."""
    shutil.copytree(workshop.cache, tmp_path / "copy")
    path = tmp_path / "copy" / "manifest.json"
    content = json.loads(path.read_text())
    content["identity"]["signals"]["kinds"] = ["truth"]
    identity = CacheIdentity.model_validate(content["identity"])
    plan_hash = ShardPlan.model_validate(content["plan"]).plan_hash(identity.cache_id)
    for records in content["shards"].values():
        for record in records:
            record |= {"cache_id": identity.cache_id, "plan_hash": plan_hash, "checksum": None}
    path.write_text(json.dumps(content))
    result = call("train", "train.toml", *CROSS, "--cache", path.parent, "--objective", "kl", "--out", "x")
    assert result.exit_code == 3
    assert "signals: cache has ['truth'], objectives also need ['topk']" in result.stderr


def test_signals_without_a_cache_are_refused(call):
    result = call("train", "train.toml", "--dataset", "tasks.jsonl", "--objective", "kl", "--out", "x")
    assert result.exit_code == 2
    assert "kl needs a teacher's signals" in result.stderr
    assert "data.cache" in result.stderr


def test_a_length_above_the_models_limit_is_refused_everywhere(workshop, call, tmp_path):
    shutil.copytree(workshop.teacher, tmp_path / "short")
    path = tmp_path / "short" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 48}))
    short, out = path.parent, tmp_path / "out"
    for arguments, where in (
        (("build-teacher-shards", "build.toml", "--teacher", short, "--out", out), "teacher"),
        (("train", "train.toml", "--student", short, "--dataset", "tasks.jsonl", "--out", out), "student"),
        (("eval", short, "--dataset", "held-out.jsonl", "--max-length", "64"), "eval"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert f"{where}.max_length: found 64, the model's limit is 48; lower max_length" in result.stderr


def test_an_output_folder_in_use_is_refused(workshop, call):
    result = call("train", "train.toml", "--dataset", "tasks.jsonl", "--out", "teacher")
    assert result.exit_code == 2
    assert f"train.out: {workshop.root / 'teacher'} is not empty and holds no checkpoint" in result.stderr
    for more in ([], ["--dry-run"]):
        result = call("build-teacher-shards", "build.toml", "--out", "teacher", *more)
        assert result.exit_code == 3
        assert "this folder is not a cache" in result.stderr
        result = call("build-teacher-shards", "build.toml", "--out", "cache", "--set", "views.seed=5", *more)
        assert result.exit_code == 3
        assert "identity.views.seed: cache has 0, run declares 5" in result.stderr


def test_an_output_folder_that_is_a_file_is_refused(call):
    result = call("train", "train.toml", "--dataset", "tasks.jsonl", "--out", "tasks.jsonl")
    assert result.exit_code == 2
    assert "tasks.jsonl is a file" in result.stderr
    result = call("build-teacher-shards", "build.toml", "--out", "tasks.jsonl")
    assert result.exit_code == 2
    assert "tasks.jsonl is a file" in result.stderr


def test_a_tokenizer_without_a_mask_token_is_refused(workshop, call, tmp_path):
    shutil.copytree(workshop.root / "vocab" / "first", tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "bare" / name
        path.write_text(path.read_text().replace("<|mask|>", "<|other|>").replace('"mask_token"', '"some_token"'))
    result = call("build-teacher-shards", "build.toml", "--student", tmp_path / "bare", "--out", "x")
    assert result.exit_code == 3
    assert "the tokenizer has no mask token" in result.stderr
    assert "add_mask_token = true" in result.stderr


def test_num_gpus_inside_a_launcher_is_refused(call, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = call("train", "train.toml", "--cache", "cache", "--out", "x", "--num-gpus", "2")
    assert result.exit_code == 2
    assert "--num-gpus 2: found RANK=0, WORLD_SIZE=2 in the environment" in result.stderr
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    result = call("train", "train.toml", "--cache", "cache", "--out", "x", "--num-gpus", "2")
    assert "SLURM_PROCID=1, SLURM_STEP_NUM_TASKS=4" in result.stderr


def test_more_processes_than_gpus_are_refused(call, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    result = call(
        *("train", "train.toml", "--cache", "cache", "--out", "x", "--num-gpus", "2", "--set", "train.device=cuda"),
    )
    assert result.exit_code == 2
    assert "--num-gpus 2: found 1 GPUs" in result.stderr


def test_a_folder_that_is_no_cache_and_a_view_that_is_not_there(workshop, call):
    for command in ("inspect", "verify"):
        result = call(command, "vocab")
        assert result.exit_code == 3
        assert "error: vocab: no cache here" in result.stderr
    result = call("inspect", "cache", "--view", "48")
    assert result.exit_code == 2
    assert "found no view 48; expected 0 to 47" in result.stderr


def test_eval_refuses_another_tokenizers_cache_and_a_missing_folder(call):
    result = call("eval", "teacher/model", "--dataset", "held-out.jsonl", "--cache", "cache")
    assert result.exit_code == 3
    assert "student tokenizer, mask_token_id: cache has 383, the model's is 511" in result.stderr
    result = call("eval", "teacher/model", "--dataset", "held-out.jsonl", "--out", "nowhere/report.json")
    assert result.exit_code == 2
    assert "found no folder nowhere" in result.stderr
    assert "nothing to measure on; give --dataset SPEC" in call("eval", "teacher/model").stderr


def test_a_broken_note_beside_a_model_is_named(workshop, call, tmp_path):
    shutil.copytree(workshop.teacher, tmp_path / "model")
    (tmp_path / "model" / "tide_cache.json").write_text("{")
    result = call("generate", tmp_path / "model", "--prompt", "x")
    assert result.exit_code == 3
    assert "tide_cache.json: cannot be read: Expecting property name" in result.stderr
    assert "restore the file, or remove it" in result.stderr
    (tmp_path / "model" / "tide_cache.json").write_text('{"block_size": "wide"}')
    result = call("generate", tmp_path / "model", "--prompt", "x")
    assert "tide_cache.json: found no JSON object with the block_size" in result.stderr
    assert "--block-size" in result.stderr


def test_a_process_that_cannot_reach_the_first_says_so_in_time(call, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TIDE_CACHE_MEET_S", "0.1")
    monkeypatch.setattr("tide_cache_cli.launch.FIRST_SPEAKS_S", 0.0)
    result = call("train", "train.toml", "--dataset", "tasks.jsonl", "--out", "x")
    assert result.exit_code == 1
    assert "process 1 of 2 cannot reach process 0 at MASTER_ADDR:MASTER_PORT = 127.0.0.1:1" in result.stderr


STUDENT = ("train", "train.toml", "--cache", "cache", "--out", "x", "--set", "student.tokenizer.path=vocab/first")


def test_offload_without_the_stage_that_it_needs_is_refused(call):
    result = call(*STUDENT, "--set", "train.offload=optimizer+parameters", "--set", "train.zero_stage=2")
    assert result.exit_code == 2
    assert "offload = 'optimizer+parameters' needs zero_stage >= 3, found 2" in result.stderr
    assert "raise zero_stage, or lower offload" in result.stderr


def test_a_batch_that_the_ranks_cannot_share_is_refused(call):
    result = call(
        *STUDENT, "--num-gpus", "3", "--dry-run", "--set", "train.global_batch=8", "--set", "train.micro_batch=4"
    )
    assert result.exit_code == 2
    assert "found 8, expected a multiple of micro_batch x processes = 4 x 3 = 12" in result.stderr


def test_lanes_that_the_ranks_cannot_share_are_refused(call):
    result = call(*STUDENT, "--num-gpus", "3", "--dry-run", "--set", "train.global_batch=12")
    assert result.exit_code == 2
    assert "processes: found 3, expected a divisor of data.lanes = 64" in result.stderr
    assert "use 1, 2, 4, 8, 16, 32, 64, or begin a run with data.lanes = 66" in result.stderr


def test_a_hot_cache_of_another_version_is_refused(call, tmp_path):
    (tmp_path / "hot").mkdir()
    (tmp_path / "hot/hot-cache.json").write_text('{"version": 1}')
    result = call(*STUDENT, "--dry-run", "--set", f"data.hot_cache={tmp_path / 'hot'}")
    assert result.exit_code == 2
    assert "has version 1, this release reads version 2; remove the folder" in result.stderr


def test_training_on_a_gpu_that_is_not_there_is_refused(workshop, call):
    result = call(*STUDENT, "--set", "train.device=cuda")
    assert result.exit_code == 2
    assert "device 'cuda': found no CUDA devices; use another, 'cpu' or 'auto'" in result.stderr
    assert not (workshop.root / "x").exists()


@pytest.mark.parametrize("command", ["build-teacher-shards", "plan"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(call, monkeypatch, command):
    monkeypatch.setattr("tide_cache.building.prepare.read_checkpoint", None)
    result = call(command, "build.toml", "--set", "teacher.device=cuda", "--out", "elsewhere")
    assert result.exit_code == 2
    assert "device 'cuda': found no CUDA devices; use another, 'cpu' or 'auto'" in result.stderr


def test_flex_attention_without_a_gpu_is_refused(call):
    result = call(*STUDENT, "--set", "student.attention=flex", "--set", "train.device=cpu")
    assert result.exit_code == 2
    assert "student.attention = 'flex': found the device 'cpu'" in result.stderr
    assert "use sdpa, or auto" in result.stderr
