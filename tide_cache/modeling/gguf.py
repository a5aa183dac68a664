"""Checkpoints as GGUF, as llama.cpp and Ollama use them: unpacked once into a folder in Hugging Face layout.

Quantised weights become float32; what quantisation lost is not restored. The tokenizer and the chat template are
read from the same file.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tide_cache.errors import ModelError, UnreadableError
from tide_cache.hub import open_repository
from tide_cache.locations import nowhere
from tide_cache.modeling.checkpoint import write_json
from tide_cache.progress import doing
from tide_cache.unreadable import is_file, is_there, require_readable, told_apart


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file to read, and the commit of the hub's repository that it came from."""

    path: Path
    commit: str | None = None


def find_gguf(location: str, revision: str | None = None, name: str | None = None) -> GGUFFile | None:
    """Return the GGUF file that a location names: the file itself, or the only one of a folder or a hub's repository.

    Only that file of a hub's repository is fetched.

    Args:
        location: Folder, file or hub name.
        revision: Branch, tag or commit of a hub's repository.
        name: File of the folder or repository; without a name, a folder with a config.json is no GGUF checkpoint.

    Returns:
        None if there is no GGUF file, or if it is a checkpoint in Hugging Face layout.

    Raises:
        ModelError: There are several and no name, or none of this name; or the hub does not provide it.
        UnreadableError: The folder cannot be listed now.
    """
    path = Path(location)
    if path.suffix == ".gguf" and is_file(path):
        if name is not None:
            raise ModelError(f"--gguf {name}: {location} is a GGUF file already; leave --gguf out")
        return GGUFFile(path)
    if path.suffix == ".gguf" and nowhere(location):
        raise ModelError(f"{location}: found no such file; expected a GGUF file, a folder or a hub name")
    repository = open_repository(location, revision)
    if name is None and is_there(repository.folder / "config.json"):
        return None
    found = [file for file in repository.names() if file.endswith(".gguf")]
    listed = ", ".join(found) or "none"
    if name is not None and name not in found:
        raise ModelError(f"--gguf {name}: {location} holds no such file; its GGUF files: {listed}")
    if len(found) > 1 and name is None:
        raise ModelError(f"{location}: found {len(found)} GGUF files, expected one; choose it with --gguf: {listed}")
    if not found:
        return None
    chosen = name or found[0]
    _require_package(chosen)
    repository.fetch([chosen])
    return GGUFFile(repository.folder / chosen, repository.commit)


def unpack_gguf(file: Path, folder: Path) -> None:
    """Write the model, configuration and tokenizer of a GGUF file as safetensors and JSON.

    Args:
        file: The GGUF file.
        folder: Made if missing.

    Raises:
        ModelError: The package `gguf` is not installed, or transformers cannot read the file.
        UnreadableError: The file cannot be read now.
    """
    require_readable(file)
    _require_package(file)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with told_apart(file), doing(f"Unpacking {file.name}"):
            model = AutoModelForCausalLM.from_pretrained(**source)
            tokenizer = AutoTokenizer.from_pretrained(**source)
    except UnreadableError:
        raise
    except Exception as error:  # its readers raise ValueError, KeyError, OSError and IndexError for bad files
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{file}: transformers cannot read this GGUF file: {reason}; expected one of a Qwen3, Qwen2 or Llama "
            "model. Copy or download it again, or give the original checkpoint."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_without(folder / "config.json", model.config.to_dict(), "quantization_config", "_name_or_path")
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    written = json.loads(settings.read_text(encoding="utf-8"))
    # transformers 4 does not know the class that transformers 5 names here
    _write_without(settings, written | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _require_package(file: str | Path) -> None:
    if find_spec("gguf") is None:
        raise ModelError(f"{file}: reading GGUF needs the package gguf: pip install 'tide-cache[gguf]'")


def _write_without(path: Path, content: dict[str, object], *names: str) -> None:
    write_json(path, {name: value for name, value in content.items() if name not in names})
