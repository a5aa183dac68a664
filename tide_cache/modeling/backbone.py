"""From a checkpoint to a denoiser: its adapter, its configuration, and its weights.

Remote code is never run. A new family of checkpoints is one small file with an `Adapter`, named in `ADAPTERS`.
"""

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from tide_cache.config.sections import LoadingConfig
from tide_cache.config.settings import AttentionKind, DeviceMap, Quantisation
from tide_cache.errors import ModelError, RunFileError, fault_list
from tide_cache.hub import Repository, open_repository
from tide_cache.modeling.adapter import (
    Adapter,
    Backbone,
    CheckpointInfo,
    LoadOptions,
    no_room,
    num_token_ids,
)
from tide_cache.modeling.checkpoint import read_provenance
from tide_cache.modeling.fingerprint import weights_bytes
from tide_cache.modeling.mixture import MIXTURE_ADAPTERS
from tide_cache.modeling.safetensors_loading import weight_names
from tide_cache.modeling.stock import STOCK_ADAPTERS, new_backbone
from tide_cache.places import own_code_of, read_config, require_family
from tide_cache.progress import doing
from tide_cache.unreadable import is_file

__all__ = [
    "ADAPTERS",
    "DTYPES",
    "Backbone",
    "CheckpointInfo",
    "fetch_weights",
    "load_backbone",
    "new_backbone",
    "read_checkpoint",
    "require_means",
    "resolve_device",
    "student_faults",
    "unsupported_loading",
]

ADAPTERS: dict[str, Adapter] = {**STOCK_ADAPTERS, **MIXTURE_ADAPTERS}
"""The adapter of each family."""

_SHOWN_FILES = 6

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def read_checkpoint(location: str, revision: str | None = None) -> CheckpointInfo:
    """Read a checkpoint's configuration; only the small files of a hub's repository are fetched, no weights.

    Args:
        location: Folder, or name on a hub.
        revision: Branch, tag or commit of a hub's repository.

    Raises:
        ModelError: There is no config.json, or it is not JSON; an unsupported model_type; custom code; an adapter next
            to the weights; or features that would be computed wrongly.
    """
    repository = open_repository(location, revision)
    raw = _read_config(repository)
    family = require_family(location, raw)
    adapter, own_code = ADAPTERS[family.name], own_code_of(raw)
    if own_code and not family.replaces_code:
        raise ModelError(
            f"{location}: it asks for its own code ({own_code}), which is never run, and may differ from the stock "
            f"{family.name}. If it is a plain {family.name}, remove auto_map from config.json; if not, "
            "docs/teachers.md says how to add an adapter."
        )
    if bits := raw.get("quantization_config"):
        method = bits.get("quant_method") if isinstance(bits, dict) else bits
        raise ModelError(
            f"{location}/config.json: found weights that are quantised already ({method}); expected the original ones, "
            "which teacher.quantisation can load in fewer bits"
        )
    config = adapter.read_config(raw, location)
    block_size = raw.get(family.block_field) if family.block_field else None
    if block_size is not None and (not isinstance(block_size, int) or block_size < 1):
        raise ModelError(
            f"{location}/config.json: {family.block_field}: found {block_size!r}, expected the number of tokens in a "
            "block of its training; fix it"
        )
    num_token_ids(config, f"{location}/config.json")  # it may state an impossible number
    return CheckpointInfo(
        location,
        family.name,
        config,
        mask_id=family.mask_id_in(raw),
        repository=repository,
        converted_from=read_provenance(repository.folder).get("converted_from"),
        block_size=block_size,
    )


def _read_config(repository: Repository) -> dict[str, Any]:
    location, path = repository.location, repository.folder / "config.json"
    if not is_file(path):
        raise ModelError(_no_checkpoint(location, repository.names()))
    if is_file(repository.folder / "adapter_config.json"):
        raise ModelError(
            f"{location}: found adapter_config.json next to the weights; expected a whole model. Whether such an "
            "adapter is applied depends on what is installed, so it is never read here. Merge it into the weights "
            "first (peft: merge_and_unload, then save_pretrained), or, if they hold it already, remove the file."
        )
    return read_config(location, path)


def _no_checkpoint(location: str, names: Sequence[str]) -> str:
    """Return what is in a place without config.json, and what to use instead."""
    found = ", ".join(names[:_SHOWN_FILES]) + (", ..." if len(names) > _SHOWN_FILES else "")
    if "adapter_config.json" in names:
        return (
            f"{location}: found an adapter (adapter_config.json) without the model that it changes; expected a whole "
            "model. Load both with peft, merge them (merge_and_unload), save that (save_pretrained), and give its "
            "folder."
        )
    if any(name.endswith(".gguf") for name in names):
        return (
            f"{location}: found GGUF files and no config.json; expected a checkpoint in Hugging Face layout. Give the "
            "one that they were made from; `tide-cache convert` alone reads GGUF."
        )
    return (
        f"{location}: found no config.json{f' among {found}' if found else ''}; expected a checkpoint in Hugging Face "
        "layout: config.json, safetensors and a tokenizer"
    )


def load_backbone(
    info: CheckpointInfo,
    dtype: torch.dtype,
    device: str,
    *,
    quantisation: Quantisation = "none",
    device_map: DeviceMap | None = None,
    attention: AttentionKind = "sdpa",
    compile: bool = False,
) -> Backbone:
    """Load a checkpoint's weights from safetensors.

    Args:
        info: From `read_checkpoint`, which has chosen the commit of a hub's repository.
        dtype: Type of the parameters.
        device: Where to put them.
        quantisation: See `LoadingConfig`.
        device_map: See `LoadingConfig`.
        attention: See `LoadingConfig`.
        compile: See `LoadingConfig`.

    Raises:
        ModelError: This machine or the checkpoint does not have what was asked for, or weights are missing, left
            over, or of another shape; lists them.
    """
    loading = LoadingConfig(quantisation, device_map, attention, compile)
    if faults := unsupported_loading(info, loading):
        title = f"{info.location} cannot be loaded with these settings:"
        raise ModelError(fault_list(title, faults, "Nothing was loaded."))
    require_means(device, loading)
    options = LoadOptions(dtype, device, loading)
    fetch_weights(info)
    try:
        with doing(f"Loading weights of {info.location}", weights_bytes(info.folder)):
            backbone = ADAPTERS[info.model_type].load(info, options)
    except torch.OutOfMemoryError as error:
        raise no_room(info, options, error) from None
    if compile:
        backbone.compile_trunk()
    return backbone


def fetch_weights(info: CheckpointInfo) -> None:
    """Fetch the weights of a hub's repository if they are not local yet; done last, after all other checks.

    Args:
        info: From `read_checkpoint`.

    Raises:
        ModelError: The hub does not provide them.
    """
    if info.repository is not None:
        info.repository.fetch(weight_names(info.folder))


def unsupported_loading(info: CheckpointInfo, loading: LoadingConfig) -> list[str]:
    """Return settings with which a checkpoint cannot be loaded on any machine.

    Args:
        info: The checkpoint.
        loading: The settings.
    """
    wanted = {
        "quantisation": None if loading.quantisation == "none" else loading.quantisation,
        "device_map": loading.device_map,
    }
    faults = [
        f"teacher.{name} = '{value}': not for {info.model_type}, whose weights are read by a module of our own that "
        "bitsandbytes and accelerate do not know; leave it out"
        for name, value in wanted.items()
        if value is not None and not ADAPTERS[info.model_type].family.is_stock
    ]
    if loading.attention == "flex" and loading.device_map is not None:
        faults.append(
            f"teacher.attention = 'flex' with device_map = '{loading.device_map}': FlexAttention's mask lies on one "
            "GPU, and layers on others would read it there; use sdpa"
        )
    return faults


def student_faults(info: CheckpointInfo) -> list[str]:
    """Return why a checkpoint cannot be trained.

    Args:
        info: The checkpoint.
    """
    family = ADAPTERS[info.model_type].family
    if family.is_student:
        return []
    trained = ", ".join(sorted(name for name, adapter in ADAPTERS.items() if adapter.family.is_student))
    why = ""
    if family.is_shifted:
        why = " (its rows speak of the next token, and a saved student's of their own)"
    elif family.has_experts:
        why = " (a student is trained and saved as a stock dense model, and its experts are in a module of our own)"
    return [f"student.model: {info.model_type} can be a teacher, not a student{why}; expected one of {trained}"]


def require_means(device: str, loading: LoadingConfig) -> None:
    """Raise an error if this machine cannot do what is asked for, before anything is loaded or written.

    Args:
        device: Device of the weights.
        loading: How to load them.

    Raises:
        ModelError: CUDA is missing, or a package is not installed; lists everything.
    """
    needs: dict[str, tuple[str, ...]] = {}
    if loading.quantisation != "none":
        needs[f"teacher.quantisation = '{loading.quantisation}'"] = ("bitsandbytes", "accelerate")
    if loading.device_map is not None:
        needs[f"teacher.device_map = '{loading.device_map}'"] = ("accelerate",)
    if loading.attention == "flex":
        needs["teacher.attention = 'flex'"] = ()
    faults = []
    for setting, packages in needs.items():
        if not device.startswith("cuda"):
            faults.append(f"{setting}: found the device {device!r}, expected CUDA; leave it out, or use a GPU")
        if absent := [package for package in packages if find_spec(package) is None]:
            faults.append(f"{setting}: not installed: {', '.join(absent)}; pip install 'tide-cache[quantised]'")
    compiler = os.environ.get("CXX", "g++")
    if loading.compile and not device.startswith("cuda") and shutil.which(compiler) is None:
        faults.append(
            f"teacher.compile: found no C++ compiler ({compiler}); install one, name it in CXX, or leave it out"
        )
    if faults:
        raise ModelError(
            fault_list("This machine cannot run the teacher with these settings:", faults, "Nothing was loaded.")
        )


def resolve_device(wanted: str) -> str:
    """Return the device for `auto`: cuda if there is one, otherwise cpu; a named device must exist.

    Raises:
        RunFileError: It is not a device, or there is no CUDA device of that number.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise RunFileError(f"device {wanted!r}: is not a device; expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type == "cuda" and (device.index or 0) >= (found := torch.cuda.device_count()):
        raise RunFileError(f"device {wanted!r}: found {found or 'no'} CUDA devices; use another, 'cpu' or 'auto'")
    return wanted
