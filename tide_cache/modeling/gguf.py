"""Checkpoints as GGUF, as llama.cpp and Ollama use them: unpacked once into a folder in Hugging Face layout.

Quantised weights become float32; what quantisation took from them stays lost. The tokenizer and the chat template are
read from the same file.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tide_cache.errors import ModelError
from tide_cache.progress import doing


def find_gguf(location: str) -> Path | None:
    """Return the GGUF file that a location names: the file itself, or a folder's only one beside no config.json.

    Args:
        location: Folder, file or hub name.

    Raises:
        ModelError: The folder holds several.
    """
    path = Path(location)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ModelError(f"{location}: found {len(found)} GGUF files, expected one; name it: {names}")
    return found[0] if found else None


def unpack_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, configuration and tokenizer as safetensors and JSON.

    Args:
        file: The GGUF file.
        folder: Made if missing.

    Raises:
        ModelError: The package `gguf` is not installed, or transformers cannot read the file.
    """
    if find_spec("gguf") is None:
        raise ModelError(f"{file}: reading GGUF needs the package gguf: pip install 'tide-cache[gguf]'")
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with doing(f"Unpacking {file.name}"):
            model = AutoModelForCausalLM.from_pretrained(**source)
            tokenizer = AutoTokenizer.from_pretrained(**source)
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
    _drop(folder / "config.json", model.config.to_dict(), "quantization_config", "_name_or_path")
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    written = json.loads(settings.read_text(encoding="utf-8"))
    # transformers 4 does not know the class that transformers 5 names here
    _drop(settings, written | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _drop(path: Path, content: dict[str, object], *names: str) -> None:
    kept = {name: value for name, value in content.items() if name not in names}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
