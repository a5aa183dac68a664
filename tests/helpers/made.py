"""Checkpoints and a cache that several test folders read, made anew."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config

from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.demo.tasks import make_tasks, write_tasks
from tide_cache.demo.vocabularies import train_vocabularies
from tide_cache.modeling.backbone import new_backbone
from tide_cache.modeling.checkpoint import save_student
from tide_cache.pairing import TextTokenizer

NUM_TASKS, NUM_VIEWS = 20, 3


@dataclass(frozen=True)
class Built:
    """A cache and what it was built from."""

    run: BuildRun
    cache: Path
    tokenizer: Path
    other_tokenizer: Path


def tiny_teacher(folder: Path, tokenizer_folder: Path) -> Path:
    """Make a checkpoint with random weights."""
    tokenizer = TextTokenizer.load(str(tokenizer_folder))
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    backbone = new_backbone(config, torch.float32, "cpu", seed=3)
    weights = {name: tensor * 3 for name, tensor in backbone.model.state_dict().items()}
    save_student(folder, weights, config, tokenizer, {})
    return folder


def built(root: Path) -> Built:
    """Build a small cache from a teacher with random weights."""
    vocabularies = train_vocabularies(root / "vocab", 0)
    write_tasks(root / "tasks.jsonl", make_tasks(NUM_TASKS, seed=3))
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    teacher = new_backbone(config, torch.float32, "cpu", seed=0)
    save_student(root / "teacher", teacher.model.state_dict(), teacher.model.config, tokenizer, {})
    run = BuildRun.model_validate(
        {
            "corpus": {"spec": "tasks.jsonl", "folder": str(root)},
            "teacher": {"model": str(root / "teacher"), "max_length": 64, "dtype": "float32"},
            "student": {"tokenizer": {"path": str(vocabularies.second)}, "max_length": 64, "block_size": 16},
            "views": {"num_views": NUM_VIEWS},
            "signals": {"top_k": 8},
            "build": {"out": str(root / "cache"), "samples_per_shard": 8},
        }
    )
    build_cache(run)
    return Built(run, root / "cache", vocabularies.second, vocabularies.first)
