"""Prompts with further fields, and teachers of each kind that write quickly."""

import json

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tide_cache.config.answers import AnswersRun
from tide_cache.pairing import TextTokenizer

ROWS = [
    {"question": "copy: axe", "answer": "axe", "difficulty": 3, "tags": ["a", {"b": None}]},
    {"messages": [{"role": "user", "content": "add: 1 2"}], "id": "x-1"},
    {"prompt": "reverse: one two three"},
    {"instruction": "copy this:", "input": "bee", "output": "bee"},
    {"messages": [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "copy: ox"},
        {"role": "assistant", "content": "ox"}, {"role": "user", "content": "copy: cow"},
        {"role": "assistant", "content": "cow"},
    ]},
    *({"question": f"copy: {word}", "number": number} for number, word in enumerate(["ant", "bat", "cat", "dog"])),
]  # fmt: skip


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="session")
def causal_teacher(tmp_path_factory, vocabularies):
    """A stock Qwen3 as transformers saves it, with a tokenizer that names no mask token."""
    folder = tmp_path_factory.mktemp("causal-teacher")
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in stated.items() if name != "mask_token"}))
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, initializer_range=0.2, bos_token_id=None,
        eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_run(prompts, tiny_teacher):
    def make(out, teacher=tiny_teacher, corpus=(), decoding=(), answers=(), of_teacher=()):
        steps = {"steps_per_block": 4} if teacher == tiny_teacher else {}
        return AnswersRun.model_validate(
            {
                "corpus": {"spec": str(prompts), **dict(corpus)},
                "teacher": {
                    "model": str(teacher), "dtype": "float32", "device": "cpu", "block_size": 8, **dict(of_teacher),
                },
                "decoding": {"max_new_tokens": 6, "temperature": 2.0, "seed": 5, **steps, **dict(decoding)},
                "answers": {"out": str(out), "samples_per_shard": 3, "batch_size": 2, **dict(answers)},
            }
        )  # fmt: skip

    return make


@pytest.fixture
def run_of(tmp_path, make_run):
    return lambda name="answers.jsonl", **changes: make_run(tmp_path / name, **changes)
