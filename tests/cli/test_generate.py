"""`generate` and `convert` as a user meets them: answers, conversations, streaming, refusals."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from tide_cache.evaluation import generate_text
from tide_cache.evaluation.trained import TrainedModel, open_trained
from tide_cache.pairing import TextTokenizer
from tide_cache.records import Message
from tide_cache_cli.main import app

SHORT = ("--max-new-tokens", "12", "--steps-per-block", "4")


@pytest.fixture
def say(call, workshop):
    """Hold a conversation, its turns on stdin."""

    def run(*arguments, turns):
        result = CliRunner().invoke(app, ["generate", "teacher/model", *arguments], input=turns)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return run


def answer_to(call, *arguments):
    document = json.loads(call("generate", "teacher/model", *arguments, *SHORT, "--json").stdout)
    return document["answers"][0]["answer"]


def test_options_of_sampling_reach_the_sampler(call):
    prompt = ("--prompt", "copy: axe", "--temperature", "3")
    free = answer_to(call, *prompt)
    assert answer_to(call, *prompt) == free
    assert answer_to(call, *prompt, "--no-cache") == free, "the same tokens, and the same draws"
    for option in (["--cfg-scale", "90"], ["--remasking", "random"], ["--seed", "1"], ["--system", "be very brief"]):
        assert answer_to(call, *prompt, *option) != free, option
    assert answer_to(call, *prompt, "--stop", free[1:3]) == free[: free.index(free[1:3])]


def test_a_streamed_answer_is_the_answer(call):
    options = ("--prompt", "copy: axe", "--temperature", "3", *SHORT)
    want = answer_to(call, *options)
    streamed = call("generate", "teacher/model", *options, "--stream")
    assert streamed.stdout == want + "\n"
    assert "tokens at most" not in streamed.stderr, "no progress bar cuts through the answer"


def test_a_conversation_remembers_its_turns(say, call, workshop):
    turns = "copy: axe\n\n  add: 1 2  \n"
    plain = say("--chat", *SHORT, "--no-stream", turns=turns)
    assert say("--chat", *SHORT, "--stream", turns=turns) == plain
    model = open_trained(str(workshop.teacher), as_trained=False)
    backbone, messages, want = model.backbone, [], ""
    for text in ("copy: axe", "add: 1 2"):
        messages.append(Message("user", text))
        options = {"block_size": model.block_size, "max_new_tokens": 12, "steps_per_block": 4}
        (answer,) = generate_text(backbone, model.tokenizer, [messages], **options)
        messages.append(Message("assistant", answer))
        want += answer + "\n"
    assert plain == want


def test_a_conversation_through_a_pipe(workshop, installed, say):
    """The installed command: stdout holds the answers and nothing else."""
    turns = "copy: axe\nadd: 1 2\n"
    done = installed("generate", "teacher/model", "--chat", *SHORT, cwd=workshop.root, stdin=turns)
    assert done.returncode == 0, done.stderr
    assert done.stdout == say("--chat", *SHORT, turns=turns)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], "found no prompt; give --prompt TEXT, or --chat"),
        (["--chat", "--prompt", "a"], "--chat reads what the user says from stdin; leave --prompt out"),
        (["--chat", "--json"], "--json prints one document, --chat holds a live conversation"),
        (["--prompt", "a", "--json", "--stream"], "--json prints at the end, --stream prints as blocks finish"),
        (["--prompt", "a", "--prompt", "b", "--stream"], "--stream: found 2 prompts, which are sampled in one batch"),
        (["--prompt", "a", "--stop", ""], "--stop: found an empty string"),
        (["--prompt", "a", "--steps-per-block", "17"], "steps_per_block is 17; expected 1 to block_size, which is 16"),
        (["--prompt", "a", "--block-size", "4"], "was trained with blocks of 16, and with another size it meets masks"),
        (["--prompt", "a", "--cfg-scale", "-1"], "--cfg-scale"),
        (["--prompt", "a", "--threshold", "1.5"], "threshold is 1.5; expected a probability above 0"),
        (["--prompt", "a", "--threshold", "0.9", "--remasking", "random"], "threshold needs remasking"),
        (["--prompt", "a", "--top-p", "0.9"], "temperature 0 draws nothing"),
        (["--prompt", "a", "--remasking", "best"], "low_confidence"),
    ],
)
def test_options_that_contradict_each_other_are_refused(call, monkeypatch, options, found):
    monkeypatch.setattr(TrainedModel, "backbone", property(lambda _: pytest.fail("weights were loaded")))
    result = call("generate", "teacher/model", *options)
    assert result.exit_code == 2
    assert found in result.stderr


def test_contradictions_are_listed_together(call):
    result = call("generate", "teacher/model", "--chat", "--prompt", "a", "--json", "--stream", "--stop", "")
    assert result.stderr.count("  - ") == 4


@pytest.fixture(scope="module")
def causal(workshop, tmp_path_factory):
    """A causal checkpoint of a family, its tokenizer without a mask token."""

    def make(family):
        folder = tmp_path_factory.mktemp(family)
        shutil.copytree(workshop.root / "vocab/second", folder, dirs_exist_ok=True)
        for name, gone in (("tokenizer.json", "added_tokens"), ("tokenizer_config.json", "mask_token")):
            content = json.loads((folder / name).read_text())
            if gone == "mask_token":
                del content[gone]
            else:
                content[gone] = [token for token in content[gone] if token["content"] != "<|mask|>"]
            (folder / name).write_text(json.dumps(content))
        torch.manual_seed(1)
        config = AutoConfig.for_model(
            family, vocab_size=511, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, max_position_embeddings=256, bos_token_id=None, eos_token_id=507,
            pad_token_id=508,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_a_converted_checkpoint_is_trained_measured_and_asked(call, causal, tmp_path, family):
    source, start, out = causal(family), tmp_path / "start", tmp_path / "run"
    done = json.loads(call("convert", source, "--out", start, "--json").stdout)
    assert (done["mask_id"], done["num_rows_before"], done["num_rows"]) == (511, 511, 512)
    command = ["train", "--student", start, "--dataset", "tasks.jsonl", "--objective", "ce", "--out", out]
    for setting in ("train.steps=2", "train.global_batch=4", "train.micro_batch=4", "train.precision=float32",
                    "student.max_length=64", "student.block_size=16", "optimizer.lr=1e-3"):  # fmt: skip
        command += ["--set", setting]
    result = call(*command)
    assert result.exit_code == 0, result.stderr
    for model in (start, out / "model"):
        report = json.loads(call("eval", model, "--dataset", "held-out.jsonl", "--max-length", "64", "--json").stdout)
        assert report["nll"]["num_samples"] > 0
        answers = json.loads(call("generate", model, "--prompt", "copy: axe", *SHORT, "--json").stdout)["answers"]
        assert len(answers) == 1
    assert TextTokenizer.load(str(out / "model")).mask_id == 511


def test_convert_says_what_it_did(call, causal, tmp_path):
    source = causal("qwen3")
    text = call("convert", source, "--out", tmp_path / "start").stdout
    assert "Mask token <|mask|>, id 511: added; the embedding grew from 511 to 512 rows." in text
    assert "a2d-qwen3 student to start from. Train it before" in text
    result = call("convert", source, "--out", tmp_path / "start")
    assert result.exit_code == 2
    assert "already exists; give a new folder" in result.stderr
    with_mask = tmp_path / "with-mask"
    shutil.copytree(tmp_path / "start", with_mask)
    config = json.loads((with_mask / "config.json").read_text())
    (with_mask / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    text = call("convert", with_mask, "--out", tmp_path / "kept").stdout
    assert "Mask token <|mask|>, id 511: already there, all weights are kept." in text


@pytest.mark.parametrize("command", [("generate", "--prompt", "a"), ("eval", "--dataset", "held-out.jsonl")])
def test_a_checkpoint_without_a_mask_token_names_the_way_out(call, causal, command):
    source = causal("qwen2")
    name, *options = command
    result = call(name, source, *options)
    assert result.exit_code == 3
    assert "the tokenizer has no mask token" in result.stderr
    assert f"tide-cache convert {source} --out FOLDER" in result.stderr
