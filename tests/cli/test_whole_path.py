"""The commands one after the other, as a user runs them."""

import json
import shutil
from dataclasses import asdict

import pytest

import tide_cache
from tide_cache.config.base import load_run_file
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.evaluation.measuring import held_out_samples
from tide_cache.evaluation.trained import open_trained
from tide_cache_cli.console import chatter_to_stderr

CROSS = ("--set", "student.tokenizer.path=vocab/first")


def test_inspect_shows_what_the_manifest_says(workshop, call):
    manifest = json.loads((workshop.cache / "manifest.json").read_text())
    found = json.loads(call("inspect", "cache", "--json").stdout)
    assert found["identity"] == manifest["identity"]
    assert found["masked_student_positions"] == manifest["totals"]["plain"]["masked_student_positions"]
    text = call("inspect", "cache").stdout
    for part in (found["cache_id"], "coverage", "top-1 accuracy", "topk_logprobs", "kept mass", "0.9-1.0"):
        assert part in text


def test_inspect_shows_a_view_as_ids_or_as_text(call):
    ids = call("inspect", "cache", "--view", "3")
    text = call("inspect", "cache", "--view", "3", "--tokenizer", "vocab/first")
    assert "View 1 of sample 0/tasks.jsonl#1" in ids.stdout
    assert "<|assistant|>" in text.stdout
    assert "<|assistant|>" not in ids.stdout
    assert "⟦" in text.stdout


def test_verify_accepts_the_cache_and_names_the_shard_with_a_flipped_byte(workshop, tmp_path, call, installed):
    whole = call("verify", "cache", "--deep", "--json")
    assert whole.exit_code == 0, whole.stderr
    assert json.loads(whole.stdout)["ok"]
    shutil.copytree(workshop.cache, tmp_path / "copy")
    damaged = tmp_path / "copy" / "signals" / "plain" / "shard-000001.parquet"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    found = installed("verify", "copy", cwd=tmp_path)
    assert found.returncode == 3
    assert found.stderr.splitlines()[-2] == "error: copy is damaged: signals/plain/shard-000001.parquet"
    assert found.stderr.splitlines()[-1].startswith("`tide-cache repair CACHE` moves them aside")
    assert "found sha256" in " ".join(found.stdout.split())


def test_repair_lists_what_is_bad_and_repairs_it(workshop, tmp_path, call):
    healthy = call("repair", "cache")
    assert healthy.exit_code == 0, healthy.stderr
    assert "Healthy" in healthy.stdout
    copy = tmp_path / "copy"
    shutil.copytree(workshop.cache, copy)
    name = "pairs/shard-000001.parquet"
    (copy / name).write_bytes(b"damaged")
    listed = call("repair", copy, "--dry-run")
    assert listed.exit_code == 3
    assert name in listed.stdout
    assert "without --dry-run to repair it" in listed.stderr
    record = (copy / "build.json").read_text()
    (copy / "build.json").unlink()
    refused = call("repair", copy)
    assert refused.exit_code == 2
    assert "needs the run file" in refused.stderr
    assert "no build.json that they could change" in call("repair", copy, "--set", "teacher.device=cpu").stderr
    (copy / "build.json").write_text(record)
    assert "found the cache" in call("repair", copy, "--out", "elsewhere").stderr
    document = json.loads(call("repair", "build.toml", "--out", copy, "--dry-run", "--json").stdout)
    assert (document["ok"], document["moved"], document["problems"][0]["file"]) == (False, [], name)
    repaired = call("repair", copy)  # the folder alone: build.json in it says how it was built
    assert repaired.exit_code == 0, repaired.stderr
    assert "Repaired" in repaired.stdout
    assert (copy / name).read_bytes() == (workshop.cache / name).read_bytes()
    document = json.loads(call("repair", "build.toml", "--out", copy, "--json").stdout)
    assert document == {
        "cache": str(copy), "ok": True, "dry_run": False, "problems": [], "quarantine": None, "moved": [],
        "recomputed": [],
    }  # fmt: skip


def test_repair_of_a_folder_that_is_not_there_speaks_of_folders(call, tmp_path):
    done = call("repair", tmp_path / "gone")
    assert done.exit_code == 3
    assert f"{tmp_path / 'gone'}: no such folder; give the folder of a cache" in done.stderr
    assert "run file" not in done.stderr
    assert "no such run file" in call("repair", tmp_path / "gone.toml").stderr


def test_two_processes_train_a_student_and_one_of_them_speaks(student_run):
    done = student_run.again
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # nothing but the document: no chatter of libraries, and rank 0 alone
    assert summary["steps"] == 100
    assert set(summary["last"]["losses"]) == {"ce", "calm"}
    assert done.stderr.count("100 of 100 steps") == 1
    run = json.loads((student_run.out / "run.json").read_text())
    assert [entry["weight"] for entry in run["objective"]] == [1.0, 0.5]


def test_one_process_gives_the_losses_of_two_that_were_stopped_on_the_way(workshop, student_run, tmp_path, installed):
    done = installed(
        *("train", "train.toml", *CROSS, "--cache", "cache", "--objective", "ce", "--objective", "calm:0.5"),
        *("--set", "train.steps=100", "--set", "train.checkpoint_every=0", "--out", tmp_path / "alone"),
        cwd=workshop.root,
    )
    assert done.returncode == 0, done.stderr
    alone, together = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (tmp_path / "alone", student_run.out)
    )
    assert len(alone) == 100
    for one, two in zip(alone, together, strict=True):
        assert one["losses"] == pytest.approx(two["losses"], rel=1e-4), one["step"]


def test_eval_measures_the_student_and_its_agreement_with_the_teacher(student_run, call, tmp_path):
    model, out = student_run.out / "model", tmp_path / "eval.json"
    options = ("--dataset", "held-out.jsonl", "--cache", "cache", "--max-length", "64", "--limit", "5")
    report = json.loads(call("eval", model, *options, "--json", "--out", out).stdout)
    assert report == json.loads(out.read_text())
    assert report["block_size"] == 16, "as trained"
    assert report["nll"]["num_samples"] == 5
    assert report["nll"]["nats_per_byte"] > 0
    assert report["agreement"]["num_views"] == 5 * 2
    table = call("eval", model, *options).stdout
    assert f"{report['nll']['mean_nll']:.4f}" in table
    assert "Agreement with the teacher" in table


def test_python_measures_what_eval_measures_to_the_last_digit(student_run, call, workshop, monkeypatch):
    model = student_run.out / "model"
    options = ("--dataset", "held-out.jsonl", "--cache", "cache", "--max-length", "64", "--limit", "5", "--seed", "3")
    report = json.loads(call("eval", model, *options, "--json").stdout)
    monkeypatch.chdir(workshop.root)
    seen = []
    found = tide_cache.measure(
        model, "held-out.jsonl", cache="cache", max_length=64, limit=5, seed=3, progress=lambda *done: seen.append(done)
    )
    assert json.loads(json.dumps(asdict(found.nll))) == report["nll"]
    assert json.loads(json.dumps(asdict(found.agreement))) == report["agreement"]
    assert list(found.remarks) == report["remarks"]
    assert {("held-out NLL", 50, 50), ("agreement", 10, 10)} <= set(seen)
    opened = open_trained(str(model))
    pairs = held_out_samples("held-out.jsonl", opened, 64, limit=5).pairs
    assert tide_cache.measure(opened, pairs, seed=3).nll == found.nll
    with pytest.raises(tide_cache.RunFileError, match="the model's limit"):
        tide_cache.measure(model, "held-out.jsonl", max_length=10**6)


def test_generate_answers_each_prompt(student_run, call):
    model = student_run.out / "model"
    prompts = ("--prompt", "copy: axe", "--prompt", "add: 1 2", "--max-new-tokens", "5")
    answers = json.loads(call("generate", model, *prompts, "--json").stdout)["answers"]
    assert [entry["prompt"] for entry in answers] == ["copy: axe", "add: 1 2"]
    assert call("generate", model, *prompts).stdout.startswith("> copy: axe\n")


def test_a_build_says_what_it_built_and_what_comes_next(workshop, tmp_path, call):
    result = call("build-teacher-shards", "build.toml", "--out", "cache")
    text = " ".join(result.stdout.split())
    assert "2 (2 already existed)" in text, "the same command finds its own work"
    assert "of supervised tokens are in chunks" in text
    assert f"tide-cache train --student CHECKPOINT --cache {workshop.cache} --objective calm" in result.stderr
    document = json.loads(call("build-teacher-shards", "build.toml", "--out", "cache", "--json").stdout)
    assert document["cache_id"] in text


def test_rows_left_out_are_counted_and_listed(workshop, tmp_path, call):
    bad = tmp_path / "bad.jsonl"
    bad.write_text((workshop.root / "tasks.jsonl").read_text().split("\n")[0] + '\n{"no": "field"}\n')
    build = ("build-teacher-shards", "build.toml", "--dataset", bad, "--out", tmp_path / "cache")
    refused = call(*build)
    assert refused.exit_code == 3
    assert "bad.jsonl:2" in refused.stderr
    result = call(*build, "--on-bad-row", "skip")
    assert result.exit_code == 0, result.stderr
    assert "bad rows left out" in result.stdout
    assert "bad.jsonl:2" in result.stderr


@pytest.mark.parametrize(
    ("command", "model", "options"),
    [
        ("build-teacher-shards", BuildRun, ["build.toml", "--out", "new-cache"]),
        ("train", TrainRun, ["train.toml", "--dataset", "tasks.jsonl", "--out", "new-run"]),
    ],
)
def test_dry_run_prints_a_run_file_that_gives_the_same_run(workshop, tmp_path, call, command, model, options):
    result = call(command, *options, "--dry-run")
    assert result.exit_code == 0, result.stderr
    saved = tmp_path / "saved.toml"
    saved.write_text(result.stdout)
    document = json.loads(call(command, *options, "--dry-run", "--json").stdout)
    assert load_run_file(model, saved).model_dump(mode="json") == document["run"]
    assert not (workshop.root / options[-1]).exists()


def test_dry_run_of_a_build_estimates_shards_and_bytes(call):
    first, second = call("build-teacher-shards", "build.toml", "--out", "new", "--dry-run").stdout.splitlines()[:2]
    assert "24 rows in 2 shards, 2 views each" in first
    assert "at most about" in second
    assert "rough" in second


def test_options_take_the_place_of_the_run_files_entries(call, tmp_path):
    document = json.loads(
        call(
            *("train", "train.toml", "--student", "teacher/model", "--dataset", "tasks.jsonl", "--out", tmp_path / "x"),
            *("--set", "train.steps=7", "--set", "data.corpus.on_bad_row=error", "--on-bad-row", "skip"),
            *("--objective", "ce", "--semantics", "paper", "--dry-run", "--json"),
        ).stdout
    )
    run = document["run"]
    assert run["student"]["shape"] is None
    assert run["student"]["model"].endswith("/teacher/model")
    assert run["train"]["steps"] == document["steps"] == 7
    assert run["data"]["corpus"]["on_bad_row"] == "error", "--set wins over the other options"
    assert run["semantics"] == "paper"
    (objective,) = run["objective"]
    assert (objective["kind"], objective["weight"], objective["time_weight"]) == ("ce", 1.0, "scheduler")


def test_schema_check_names_what_drifted_and_the_command_that_fixes_it(call, tmp_path):
    assert call("schema", "--out", tmp_path).exit_code == 0
    assert call("schema", "--check", tmp_path).exit_code == 0
    (tmp_path / "plan.json").write_text("{}")
    result = call("schema", "--check", tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path / 'plan.json'}: differs" in result.stdout
    assert "make schemas" in result.stderr
    assert call("schema").exit_code == 2


def test_what_libraries_print_does_not_reach_stdout(capfd):
    import os

    with chatter_to_stderr():
        print("from Python")
        os.write(1, b"from C\n")
    print("a result")
    captured = capfd.readouterr()
    assert captured.out == "a result\n"
    assert "from Python" in captured.err
    assert "from C" in captured.err
