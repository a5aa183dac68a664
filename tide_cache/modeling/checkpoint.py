"""Saved models that other libraries can load: safetensors, an `a2d-*` config.json, the original tokenizer files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig

from tide_cache.disk import new_folder
from tide_cache.errors import ModelError, RunFileError
from tide_cache.modeling.card import model_card
from tide_cache.modeling.safetensors_loading import EMBEDDING, HEAD
from tide_cache.progress import doing
from tide_cache.unreadable import is_file, told_apart

PUBLISHED_TYPE = {
    "qwen3": ("a2d-qwen3", "A2DQwen3LMHeadModel"),
    "qwen2": ("a2d-qwen2", "A2DQwen2LMHeadModel"),
    "llama": ("a2d-llama", "A2DLlamaLMHeadModel"),
}
"""model_type and architecture under which a stock architecture is saved, as the dllm library registers them."""


class SavesTokenizer(Protocol):
    """What saving needs of a tokenizer."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder."""


def save_student(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: PretrainedConfig,
    tokenizer: SavesTokenizer,
    provenance: Mapping[str, Any],
) -> None:
    """Write a student that our tools, transformers and dllm's pinned release all load in the same way.

    Args:
        folder: Created; files of the same names are replaced.
        weights: State of the stock model, by its parameter names.
        config: Its configuration.
        tokenizer: Saved with it.
        provenance: What the student learned from; goes to `tide_cache.json`, and if it was trained to a README.md card.

    Raises:
        WriteError: The disk is full, or the folder cannot be written; a new folder is not left behind.
    """
    head, embedding = weights.get(HEAD), weights.get(EMBEDDING)
    is_tied = bool(config.tie_word_embeddings)
    if is_tied and head is not None and embedding is not None and not torch.equal(head, embedding):
        is_tied = False  # whatever the configuration says, what was learnt is kept
    tied = {HEAD} if is_tied else set()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items() if name not in tied}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    with new_folder(folder, needed=sum(tensor.nbytes for tensor in tensors.values())):
        with doing(f"Writing {folder}", sum(tensor.nbytes for tensor in tensors.values())):
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "tide_cache.json", dict(provenance))
        tokenizer.save(folder)
        if "steps" in provenance:
            (folder / "README.md").write_text(model_card(provenance, config.model_type), encoding="utf-8")
        stored = {"dtype": dtype, "tie_word_embeddings": is_tied}
        write_json(folder / "config.json", published_config(config) | stored)  # last: without it, no model


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read `tide_cache.json`, which says what a model was made from; empty if there is none.

    Args:
        folder: Folder of the model.

    Raises:
        ModelError: It is not a JSON object.
        UnreadableError: It cannot be read now.
    """
    path = folder / "tide_cache.json"
    if not is_file(path):
        return {}
    try:
        with told_apart(path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}; restore the file, or remove it") from None
    if not isinstance(content, dict):
        raise ModelError(
            f"{path}: found {type(content).__name__}, expected a JSON object; restore the file, or remove it"
        )
    return content


def require_as_trained(location: str, trained: object, block_size: int) -> None:
    """Refuse another block size than a model was trained with: it would meet masks that it has never seen.

    Args:
        location: Of the checkpoint.
        trained: What the checkpoint says; anything but a number says nothing.
        block_size: What is asked for.

    Raises:
        RunFileError: They differ.
    """
    if isinstance(trained, int) and block_size != trained:
        raise RunFileError(
            f"--block-size {block_size}: {location} was trained with blocks of {trained}, and with another size it "
            "meets masks that it has never seen; leave the block size out"
        )


def published_config(config: PretrainedConfig) -> dict[str, Any]:
    """Return config.json's content, with `rope_theta` and `rope_scaling` at the top level too.

    transformers 5 writes only `rope_parameters`; a 4.57 reader would then silently use theta = 10,000 and no scaling.
    The mask token is left to the tokenizer saved next to it, since the model may have been trained with another one
    than the checkpoint it started from. The checkpoint's path is not written: it is no property of the model, and would
    change its fingerprint.
    """
    left_out = {"mask_token_id", "_name_or_path"}
    content = {name: value for name, value in config.to_dict().items() if name not in left_out}
    content["model_type"], architecture = PUBLISHED_TYPE[config.model_type]
    content["architectures"] = [architecture]
    rope = config.rope_parameters
    content["rope_theta"] = rope["rope_theta"]
    is_scaled = rope.get("rope_type", "default") != "default"
    content["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"} if is_scaled else None
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file of a checkpoint's folder, with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
