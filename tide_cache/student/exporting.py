"""Students in the layouts that other programs serve and load.

`sdar` is what SGLang and LMDeploy serve as block diffusion: a Qwen3 under the block-causal mask, with logits at their
own position, as in an `a2d-qwen3` student. `a2d` is what `train` writes. `hf` is the stock causal architecture: every
library loads its weights, and reads them as an autoregressive model.

Source of the layout: SDAR's published configuration, arXiv:2510.06303; SGLang's `srt/dllm/config.py` and LMDeploy's
`pytorch/configurations/sdar.py` for what engines read.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tide_cache.disk import new_folder
from tide_cache.errors import ModelError, RunFileError, fault_list
from tide_cache.modeling.backbone import CheckpointInfo, fetch_weights, read_checkpoint
from tide_cache.modeling.card import model_card
from tide_cache.modeling.checkpoint import (
    PUBLISHED_TYPE,
    published_config,
    read_provenance,
    require_as_trained,
    write_json,
)
from tide_cache.modeling.fingerprint import weights_bytes
from tide_cache.pairing import TextTokenizer
from tide_cache.places import require_new

ModelFormat = Literal["sdar", "a2d", "hf"]

SDAR_MASK_ID = 151669
"""`<|MASK|>` of Qwen3's vocabulary, which LMDeploy and SGLang hold in their code."""

CONFIGURATION = '''"""Configuration of a block-diffusion model of Qwen3's shape, for transformers."""

from transformers import Qwen3Config


class SDARConfig(Qwen3Config):
    """Qwen3's configuration under the name that serving engines look for."""

    model_type = "sdar"
'''


@dataclass(frozen=True)
class ExportedModel:
    """What was written.

    Attributes:
        folder: Folder of the model.
        format: Its layout.
        model_type: As its config.json says.
        block_size: Tokens per block that it was trained with.
        mask_id: Id of its mask token.
        threshold: Default confidence of decoding.
    """

    folder: Path
    format: ModelFormat
    model_type: str
    block_size: int
    mask_id: int
    threshold: float


_MEASURED = ("held-out.json", "eval.json")
"""Files of a run's folder whose figures go into the card of its model."""


def export_model(
    source: str,
    out: Path,
    format: ModelFormat = "sdar",
    *,
    block_size: int | None = None,
    threshold: float = 0.9,
    any_mask_id: bool = False,
    revision: str | None = None,
) -> ExportedModel:
    """Write a student in another layout: weights bit for bit, tokenizer, decoding defaults, and a model card.

    Args:
        source: Folder of a training run, model folder, or hub name of an `a2d-*` student.
        out: Folder to write; must not exist.
        format: `sdar` for SGLang and LMDeploy, `a2d` as `train` writes it, `hf` for the stock causal architecture.
        block_size: Tokens per block; needed only if the checkpoint does not say what it was trained with.
        threshold: Confidence for `generation_config.json`, in (0, 1].
        any_mask_id: Write `sdar` even if the mask id is not the one in the engines' code.
        revision: Commit of a hub checkpoint.

    Raises:
        RunFileError: An option is impossible, or `out` exists; lists every fault.
        ModelError: The checkpoint is not a trained student, or no engine serves it; says which.
        WriteError: The disk has no room for the model, or the write fails; no folder is left behind.
    """
    require_new(out)
    if format not in get_args(ModelFormat):
        raise RunFileError(f"--format {format}: expected one of {', '.join(get_args(ModelFormat))}")
    if not 0 < threshold <= 1:
        raise RunFileError(f"--threshold {threshold}: expected a probability above 0, and 1 at most")
    model = Path(source, "model")
    location = str(model) if (model / "config.json").is_file() else source
    info = read_checkpoint(location, revision=revision)
    provenance = read_provenance(info.folder)
    tokenizer = TextTokenizer.load(location, revision=info.commit, mask_id=info.mask_id)
    block_size = _block_size(location, provenance.get("block_size", info.block_size), block_size)
    if faults := _faults(info, tokenizer, format, any_mask_id):
        raise ModelError(fault_list(f"{location} cannot be exported as {format}:", faults, "Nothing was written."))
    fetch_weights(info)
    with new_folder(out, needed=weights_bytes(info.folder) or 0):
        for file in sorted(info.folder.glob("model*.safetensors*")):
            shutil.copyfile(file, out / file.name)
        tokenizer.save(out)
        decoding = {"block_size": block_size, "mask_token_id": tokenizer.mask_id}
        provenance |= {"block_size": block_size}
        write_json(out / "tide_cache.json", provenance)
        write_json(out / "generation_config.json", decoding | _generation(tokenizer, block_size, threshold))
        (out / "README.md").write_text(
            model_card(provenance, info.config.model_type, format, threshold, _measured(Path(source))), encoding="utf-8"
        )
        if format == "sdar":
            (out / "configuration_sdar.py").write_text(CONFIGURATION, encoding="utf-8")
        config = _config(info, format, decoding)
        write_json(out / "config.json", config)  # last: without it, no model
    return ExportedModel(out, format, config["model_type"], block_size, tokenizer.mask_id, threshold)


def _measured(run: Path) -> list[dict[str, Any]]:
    """Return what was measured of a run's student, as a sweep or `eval --out RUN/eval.json` left it there."""
    found = []
    for name in _MEASURED:
        try:
            content = json.loads((run / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or not ours
            continue
        if isinstance(content, dict) and {"nll", "max_length"} <= content.keys():
            found.append(content)
    return found


def _block_size(location: str, trained: Any, wanted: int | None) -> int:
    if trained is None:
        if wanted is None:
            raise RunFileError(
                f"{location}: its tide_cache.json does not say which block size it was trained with; give --block-size"
            )
        return wanted
    if wanted is not None:
        require_as_trained(location, trained, wanted)
    return int(trained)


def _faults(info: CheckpointInfo, tokenizer: TextTokenizer, format: ModelFormat, any_mask_id: bool) -> list[str]:
    stock = info.config.model_type
    if info.converted_from is not None:
        return [f"it was converted from {info.converted_from} and never trained to denoise; train it first"]
    if stock not in PUBLISHED_TYPE or not info.model_type.startswith(("a2d-", "sdar")):
        return [f"found a {info.model_type} model, expected a student (a2d-*), as `tide-cache train` writes them"]
    faults = info.fit_faults(tokenizer.vocab_size, 0, "tokenizer")
    if format == "sdar" and stock != "qwen3":
        faults.append(
            f"found the shape of {stock}; SGLang and LMDeploy serve block diffusion of Qwen3's shape alone. Export it "
            "as a2d, or distil into a Qwen3 student"
        )
    if format == "sdar" and tokenizer.mask_id != SDAR_MASK_ID and not any_mask_id:
        faults.append(
            f"its mask token {tokenizer.mask_token!r} has id {tokenizer.mask_id}, and LMDeploy and SGLang take "
            f"{SDAR_MASK_ID} for SDAR whatever config.json says. For an engine that reads mask_token_id, give "
            "--any-mask-id"
        )
    return faults


def _config(info: CheckpointInfo, format: ModelFormat, decoding: dict[str, Any]) -> dict[str, Any]:
    stored = json.loads((info.folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: stored[key] for key in ("dtype", "tie_word_embeddings") if key in stored}
    config = published_config(info.config) | kept
    if format == "sdar":
        names = {"model_type": "sdar", "architectures": ["SDARForCausalLM"]}
        return config | names | decoding | {"auto_map": {"AutoConfig": "configuration_sdar.SDARConfig"}}
    if format == "hf":
        architecture = type(info.config).__name__.replace("Config", "ForCausalLM")
        return config | {"model_type": info.config.model_type, "architectures": [architecture]}
    return config


def _generation(tokenizer: TextTokenizer, block_size: int, threshold: float) -> dict[str, Any]:
    """Return decoding defaults: transformers' own keys, and those of block diffusion in SDAR's names."""
    return {
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "do_sample": False,
        "block_length": block_size,
        "denoising_steps": block_size,
        "remasking_strategy": "low_confidence_dynamic",
        "confidence_threshold": threshold,
    }
