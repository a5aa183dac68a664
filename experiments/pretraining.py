"""Where teacher and students start: causal models of the training text, as those of the paper start from causal ones.

A causal model learns from every token of a row; a denoiser of a block mask computes two or more copies of it and learns
from the masked tokens of its answer. Where computing is scarce, a start from such a model gives the better denoiser.
"""

import os
from pathlib import Path
from random import Random

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from tide_cache.config.train import ModelShape
from tide_cache.corpus import open_corpus
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.training.prepare import shape_config

WINDOW = 256
"""Tokens of a row of training; conversations follow each other in it."""
_UNCUT = 4096


def windows(rows: Path, tokenizer: TextTokenizer) -> Dataset:
    """Return a file's conversations one after the other, in random order, cut into windows."""
    pairs = encode_student(
        list(open_corpus(str(rows), folder=rows.parent)),
        tokenizer,
        max_length=_UNCUT,
        block_size=1,
        fill_last_block=False,
    ).pairs
    texts = [pair.student_ids_L.tolist() for pair in pairs]
    Random(0).shuffle(texts)
    ids = [token for text in texts for token in text]
    cut = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
    return Dataset.from_dict({"input_ids": cut, "labels": cut})


def model_shape(hidden_and_layers: tuple[int, int]) -> ModelShape:
    """Return a shape in the proportions of all models here: heads of 32, two of them to each key."""
    hidden, layers = hidden_and_layers
    return ModelShape(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_layers=layers,
        num_heads=max(1, hidden // 32),
        num_kv_heads=max(1, hidden // 64),
        rope_theta=10_000.0,
    )


def pretrain(
    out: Path,
    rows: Path,
    tokenizer_folder: Path,
    hidden_and_layers: tuple[int, int],
    epochs: int,
    device: str,
    threads: int,
    precision: str = "float32",
) -> None:
    """Train a causal Qwen3 on a file's conversations and save it with its tokenizer; go on where a run was cut.

    Needs a separate process, whose environment and threads it sets.

    Args:
        out: Folder of the checkpoint.
        rows: Conversations, JSON lines.
        tokenizer_folder: The model's tokenizer.
        hidden_and_layers: The model's size.
        epochs: Passes over the text.
        device: `cpu` or `cuda`.
        threads: Of the CPU.
        precision: `float32`, or `bfloat16` for matrix products in it and weights in float32.
    """
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # DeepSpeed leaves some: the Trainer would wait for others
        os.environ.pop(name, None)
    torch.set_num_threads(threads)
    tokenizer = TextTokenizer.load(str(tokenizer_folder))
    config = shape_config(model_shape(hidden_and_layers), tokenizer)
    torch.manual_seed(0)
    settings = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=1.5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=50,
        save_steps=100,
        save_total_limit=1,
        use_cpu=device == "cpu",
        bf16=precision == "bfloat16",
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    trainer = Trainer(model, settings, train_dataset=windows(rows, tokenizer))
    cut = Path(settings.output_dir).exists() and get_last_checkpoint(settings.output_dir)
    trainer.train(resume_from_checkpoint=cut or None)
    tokenizer.save(out)
    model.save_pretrained(out)
