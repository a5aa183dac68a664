"""`tide-cache eval-tasks`: student and baseline on tasks from local data, kept task by task."""

import json
import shlex
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import fresh
from helpers.task_examples import write_tasks
from tide_cache.errors import EvaluationError
from tide_cache.evaluation.harness.sandbox import Sandbox

BOTH = "gsm8k_cot,humaneval_instruct"


@pytest.fixture(scope="module")
def models(tiny_teacher, tmp_path_factory):
    """A student that says what it was trained from, and the checkpoint it names."""
    root = tmp_path_factory.mktemp("models")
    start = shutil.copytree(tiny_teacher, root / "start")
    student = shutil.copytree(tiny_teacher, root / "student")
    weights = load_file(student / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    moved = {name: x + 0.3 * torch.randn(x.shape, generator=generator) for name, x in weights.items()}
    save_file(moved, student / "model.safetensors", metadata={"format": "pt"})
    (student / "tide_cache.json").write_text(json.dumps({"block_size": 8, "run": {"student.model": str(start)}}))
    return root


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A task of likelihoods and one of answers, over five questions."""
    root = tmp_path_factory.mktemp("letters")
    write_tasks(root, "dataset_path: letters", root / "letters" / "test.jsonl")
    return root


def untimed(entry):
    """A result without what depends on the clock."""
    counts = entry["decoding"] and {**entry["decoding"], "prefill_s": 0, "decode_s": 0, "tokens_per_s": 0}
    return {**entry, "seconds": 0, "decoding": counts}


def samples(folder, name):
    lines = (folder / f"{name}.samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_real_questions_offline(call_anywhere, models, shared, tmp_path):
    """The real data sets, end to end, both models."""
    out = tmp_path / "out"
    isolation = "namespaces"
    try:
        Sandbox().require_works()
    except EvaluationError:
        isolation = "limits"
    command = [
        *("eval-tasks", models / "student", "--suite", "tide", "--tasks", BOTH, "--task-data", shared / "data"),
        *("--limit", 2, "--out", out, "--allow-code-execution", "--code-isolation", isolation),
    ]
    result = call_anywhere(*command)
    assert result.exit_code == 0, result.stderr
    assert "0.00 ± 0.00" in result.stdout
    document = json.loads((out / "results.json").read_text())
    assert document["baseline"] == str(models / "start")
    assert {role: list(found) for role, found in document["results"].items()} == {
        role: BOTH.split(",") for role in ("student", "baseline")
    }
    for role, found in document["results"].items():
        for name, entry in found.items():
            assert (entry["score"], entry["num_questions"]) == (0.0, 2)  # random weights know nothing
            assert json.loads((out / role / f"{name}.json").read_text()) == entry
    asked = samples(out / "student", "gsm8k_cot")[0]
    assert asked["doc"]["question"].startswith("Janet")
    assert asked["arguments"][0][0].startswith("<role>HUMAN</role>Q: Janet")
    answers = [samples(out / role, "gsm8k_cot")[0]["resps"] for role in ("student", "baseline")]
    assert answers[0] != answers[1]
    assert len(answers[0][0][0]) > 100


def test_a_rerun_computes_what_is_missing_and_refuses_other_questions(call_anywhere, models, letters, tmp_path):
    options = ["--tasks", f"{letters / 'choices.yaml'},{letters / 'answers.yaml'}", "--task-data", letters]
    command = ["eval-tasks", models / "student", *options, "--out", tmp_path, "--num-samples", 1]
    first = call_anywhere(*command, "--json")
    assert first.exit_code == 0, first.stderr
    (tmp_path / "student" / "answers.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.samples.jsonl")}
    assert len(kept) == 4

    again = call_anywhere(*command, "--json")
    assert again.exit_code == 0, again.stderr
    redone = [path for path, then in kept.items() if path.stat().st_mtime_ns != then]
    assert redone == [tmp_path / "student" / "answers.samples.jsonl"]
    found, expected = (json.loads(result.stdout)["results"]["student"]["answers"] for result in (again, first))
    assert untimed(found) == untimed(expected)
    assert "student, answers: 5 of 5 questions" in again.stderr
    assert "choices" not in again.stderr

    refusal = call_anywhere(*command, "--seed", 5)
    assert refusal.exit_code == 3
    assert "student/choices.json, seed: found 0, expected 5" in refusal.stderr
    assert "Give another --out, or remove these files." in refusal.stderr
    (tmp_path / "student" / "answers.json").write_text("[]")
    assert "answers.json: found no result of an evaluation; remove it" in call_anywhere(*command).stderr


def test_two_processes_give_what_one_gives(call_anywhere, models, letters, tmp_path):
    tasks = f"{letters / 'choices.yaml'},{letters / 'answers.yaml'}"
    options = ["--tasks", tasks, "--task-data", letters, "--no-baseline", "--num-samples", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    result = call_anywhere("eval-tasks", models / "student", *options, "--out", one)
    assert result.exit_code == 0, result.stderr
    assert "none: the scores cannot be compared with anything" in result.stdout
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [
        *launcher,
        "-m",
        "tide_cache_cli.main",
        "eval-tasks",
        models / "student",
        *options,
        "--out",
        two,
        "--json",
    ]
    done = fresh.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["results"]["student"]
    for name in ("choices", "answers"):
        expected = json.loads((one / "student" / f"{name}.json").read_text())
        assert untimed(found[name]) == untimed(expected)
    assert samples(one / "student", "answers") == samples(two / "student", "answers")
    pairs = zip(samples(one / "student", "choices"), samples(two / "student", "choices"), strict=True)
    for first, second in pairs:
        logprobs = [[value for ((value, _),) in entry["resps"]] for entry in (first, second)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
        assert len(set(logprobs[0])) == 3


def test_a_curve_over_thresholds(call_anywhere, models, letters, tmp_path):
    command = ["eval-tasks", models / "student", "--tasks", letters / "answers.yaml", "--task-data", letters]
    curve = [*command, "--thresholds", "0.002,1", "--out", tmp_path / "curve"]
    result = call_anywhere(*curve)
    assert result.exit_code == 0, result.stderr
    assert "answers: accuracy under parallelism (AUP)" in result.stdout
    assert "tokens/forward" in result.stdout
    document = json.loads((tmp_path / "curve" / "results.json").read_text())
    assert list(document["results"]["student"]) == ["answers@0.002", "answers@1"]
    fast, slow = (document["results"]["student"][name]["decoding"] for name in ("answers@0.002", "answers@1"))
    assert (slow["tokens"], slow["sequences"]) == (60, 5)
    assert slow["tokens_per_forward"] <= 1 < fast["tokens_per_forward"] <= 8
    assert fast["forwards_per_sequence"] < slow["forwards_per_sequence"]
    assert fast["tokens_per_s"] > 0
    models_of = document["curves"]["answers"]["models"]
    assert sorted(models_of) == ["baseline", "student"]
    assert [point["threshold"] for point in models_of["student"]["points"]] == [0.002, 1.0]
    assert models_of["student"]["aup"] == 0.0

    single = call_anywhere(*command, "--threshold", 0.002, "--no-baseline", "--out", tmp_path / "single", "--json")
    assert single.exit_code == 0, single.stderr
    alone = json.loads(single.stdout)["results"]["student"]["answers"]
    assert untimed(alone) == untimed(document["results"]["student"]["answers@0.002"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--threshold", "1.5"), "threshold is 1.5; expected a probability above 0, and 1 at most"),
        (("--thresholds", "0.5,0"), "threshold is 0.0; expected a probability"),
        (("--thresholds", "0.5,high"), "--thresholds 0.5,high: expected numbers joined by commas"),
        (("--thresholds", "0.5,0.50"), "found a number more than once"),
        (("--thresholds", "0.5", "--threshold", "0.5"), "--threshold and --thresholds: found both"),
        (("--steps-per-block", "9"), "steps_per_block is 9; expected 1 to block_size, which is 8"),
        (("--top-k", "5"), "temperature 0 draws nothing; set a temperature"),
        (("--thresholds", "0.5"), "--thresholds: choices compares likelihoods, which no threshold changes"),
    ],
)
def test_decoding_that_cannot_be_is_refused_before_weights_are_loaded(
    call_anywhere, models, letters, monkeypatch, options, reason
):
    monkeypatch.setattr("tide_cache.modeling.backbone.load_backbone", None)
    where = ("--tasks", letters / "choices.yaml", "--task-data", letters)
    code, message = refused(call_anywhere, models / "student", *where, *options)
    assert code == 2
    assert reason in message.replace("\n", " ")


def refused(call, *options):
    result = call("eval-tasks", *options)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stderr


def test_code_needs_consent(call_anywhere, models, shared):
    code, message = refused(
        call_anywhere, models / "student", "--suite", "tide", "--tasks", BOTH, "--task-data", shared / "data"
    )
    assert code == 2
    assert "humaneval_instruct runs programs that the model writes. Consent with --allow-code-execution" in message


def test_code_is_not_run_where_it_cannot_be_shut_in(call_anywhere, models, shared, monkeypatch):
    monkeypatch.setattr("tide_cache.evaluation.harness.sandbox._UNSHARE", ("false",))
    options = ("--suite", "tide", "--tasks", BOTH, "--task-data", shared / "data", "--allow-code-execution")
    code, message = refused(call_anywhere, models / "student", *options)
    assert code == 3
    assert "this machine cannot run generated programs without network" in message
    assert "--code-isolation limits" in message


def test_missing_data_says_where_it_was_looked_for(call_anywhere, models, tmp_path):
    where = ("--task-data", tmp_path, "--out", tmp_path / "o")
    code, message = refused(call_anywhere, models / "student", "--suite", "tide", "--tasks", "gsm8k_cot", *where)
    assert code == 3
    assert f"looked for {tmp_path}/gsm8k_test, {tmp_path}/gsm8k/main/test" in message
    assert not (tmp_path / "o").exists()
    code, message = refused(call_anywhere, models / "student", "--suite", "tide", "--task-data", tmp_path / "nowhere")
    assert (code, "nowhere: found no such folder" in message) == (2, True)


def test_the_hub_out_of_reach(call_anywhere, models, monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    code, message = refused(call_anywhere, models / "student", "--suite", "tide", "--tasks", "gsm8k_cot")
    assert code == 3
    assert "gsm8k_cot: its data cannot be read: looked for openai/gsm8k main on the hub and in its local" in message
    assert "--task-data FOLDER" in message


def test_a_checkpoint_without_mask_token(call_anywhere, models, tmp_path):
    folder = shutil.copytree(models / "student", tmp_path / "maskless")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    code, message = refused(call_anywhere, folder, "--suite", "tide", "--tasks", "gsm8k_cot")
    assert code == 3
    assert "the tokenizer has no mask token" in message


def test_a_tokenizer_larger_than_the_model(call_anywhere, models, tmp_path):
    folder = shutil.copytree(models / "start", tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    options = ("--suite", "tide", "--tasks", "gsm8k_cot", "--baseline", folder)
    code, message = refused(call_anywhere, models / "student", *options)
    assert code == 2
    assert f"the checkpoint {folder} has 100 embeddings" in message


@pytest.mark.parametrize(
    ("provenance", "reason"),
    [
        (None, "found no tide_cache.json"),
        ({}, "it does not say what the student was trained from"),
        ({"run": {"student.model": None}}, "trained from random weights"),
        ({"run": {"student.model": "/no/such/folder"}}, "checkpoint that is gone"),
        ({"run": {"student.model": "a/b", "student.revision": "c0ffee"}}, "trained from a/b at c0ffee"),
    ],
)
def test_a_baseline_that_cannot_be_found_is_asked_for(call_anywhere, models, tmp_path, provenance, reason):
    folder = shutil.copytree(models / "student", tmp_path / "model")
    (folder / "tide_cache.json").unlink()
    if provenance is not None:
        (folder / "tide_cache.json").write_text(json.dumps(provenance))
    code, message = refused(call_anywhere, folder, "--suite", "tide", "--tasks", "gsm8k_cot")
    assert code == 2
    assert reason in message
    assert "--baseline CHECKPOINT" in message
    assert "--no-baseline" in message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "nothing to score on; give --suite tide or --tasks NAMES"),
        (("--suite", "tied"), "no such suite"),
        (("--suite", "tide", "--baseline", "x", "--no-baseline"), "found both"),
    ],
)
def test_impossible_invocations(call_anywhere, models, options, reason):
    code, message = refused(call_anywhere, models / "student", *options)
    assert code == 2
    assert reason in message


@pytest.mark.parametrize("moved", [("--suite", "tide"), ("--tasks=a b",), ("--no-baseline", "--dataset", "x.jsonl")])
def test_options_of_tasks_given_to_eval_are_refused_with_the_line_to_run(call_anywhere, models, moved):
    result = call_anywhere("eval", models / "student", *moved)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"error: {moved[0].partition('=')[0]}: tasks are scored by `tide-cache eval-tasks`" in result.stderr
    assert f"  tide-cache eval-tasks {shlex.join([str(models / 'student'), *moved])}\n" in result.stderr


def test_lm_eval_not_installed(call_anywhere, models, monkeypatch):
    monkeypatch.setattr("tide_cache_cli.evaluate_tasks.find_spec", lambda name: None)
    code, message = refused(call_anywhere, models / "student", "--suite", "tide")
    assert code == 2
    assert "pip install 'tide-cache[eval]'" in message


def test_ctrl_c_keeps_what_is_done(call_anywhere, models, letters, tmp_path, monkeypatch):
    from tide_cache.evaluation.harness import scoring

    score_task = scoring.score_task

    def stop_at_the_second(lm, task, *rest):
        if task.settings.name == "answers":
            raise KeyboardInterrupt
        return score_task(lm, task, *rest)

    monkeypatch.setattr(scoring, "score_task", stop_at_the_second)
    tasks = f"{letters / 'choices.yaml'},{letters / 'answers.yaml'}"
    result = call_anywhere(
        "eval-tasks", models / "student", "--tasks", tasks, "--task-data", letters, "--no-baseline", "--num-samples", 1,
        "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 130
    assert "keeps 1 of 2 results. Run the same command again to go on." in result.stderr.replace("\n", " ")
    assert (tmp_path / "student" / "choices.json").exists()
