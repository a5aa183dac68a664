"""From safetensors files straight into tensors that already lie where they belong, one at a time, all of them."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tide_cache.errors import ModelError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_SHOWN = 8


def load_tensors(folder: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors from a checkpoint's files; nothing is copied unless all of them are there and fit.

    Every tensor is read onto the device of the one it fills, and cast there: no copy of the model stays in memory.

    Args:
        folder: Of the checkpoint.
        into: The tensors to fill, by published name.

    Raises:
        ModelError: A file is missing or damaged, or tensors are missing, left over, not floating point, or of another
            shape; lists them.
    """
    device = str(next(iter(into.values())).device)
    files = _files_of(folder)
    try:
        _require_fit(folder, files, into)
        for path in files:
            with safe_open(path, framework="pt", device=device) as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    into[name].copy_(opened.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{folder}: the weights cannot be read: {error}; expected whole .safetensors files. Copy or download "
            "them again."
        ) from None


def stored_dtype(folder: Path) -> torch.dtype:
    """Give the dtype in which a checkpoint's weights lose nothing: their own, where all have the same.

    Args:
        folder: Of the checkpoint.

    Raises:
        ModelError: A file is missing or damaged, or holds no floating point numbers.
    """
    found: set[str] = set()
    for path in _files_of(folder):
        try:
            with safe_open(path, framework="pt") as opened:
                found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: the weights cannot be read: {error}; expected whole .safetensors files. Copy or download "
                "them again."
            ) from None
    if not found or not found <= FLOATS.keys():
        raise ModelError(f"{folder}: found weights of {sorted(found)}, expected floating point: {', '.join(FLOATS)}")
    return reduce(torch.promote_types, (FLOATS[name] for name in found))


def require_all_weights(
    location: str | Path, missing: Iterable[str], unknown: Iterable[str], misshapen: Iterable[str]
) -> None:
    """Refuse weights that are not exactly those of the model.

    Args:
        location: Of the checkpoint.
        missing: Names that the model needs and no file has.
        unknown: Names that files have and the model does not.
        misshapen: Names, with what is wrong, of tensors that do not fit.

    Raises:
        ModelError: There is any; lists them.
    """
    faults = [f"missing {name}" for name in sorted(missing)] + [f"unknown {name}" for name in sorted(unknown)]
    faults += [f"shape of {what}" for what in sorted(misshapen)]
    if faults:
        shown = "; ".join(faults[:_SHOWN]) + (f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else "")
        raise ModelError(f"{location}: the weights do not fit its config.json: {shown}")


def _files_of(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise ModelError(
                f"{folder}: found neither {SINGLE} nor {INDEX}; expected safetensors weights, pickles are never read"
            )
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if strange := [name for name in names if not _PLAIN_NAME.fullmatch(name)]:
            raise ModelError(f"{index}: found the file name {strange[0]!r}, expected one like {SINGLE!r}, beside it")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{index}: no usable index ({type(error).__name__}: {error}); expected an object with weight_map, from "
            "tensor to file. Copy or download it again."
        ) from None
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(
            f"{folder}: {len(absent)} of the {len(names)} files that {INDEX} names are missing: {', '.join(absent)}; "
            "copy or download them"
        )
    return [folder / name for name in names]


def _require_fit(folder: Path, files: list[Path], into: Mapping[str, torch.Tensor]) -> None:
    found: dict[str, str] = {}
    misshapen = []
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                tensor = opened.get_slice(name)
                shape = list(into[name].shape) if name in into else tensor.get_shape()
                if tensor.get_shape() != shape or tensor.get_dtype() not in FLOATS:
                    misshapen.append(f"{name}: found {tensor.get_dtype()} {tensor.get_shape()}, expected {shape}")
                if name in found:
                    misshapen.append(f"{name}: found in {found[name]} and in {path.name}, expected once")
                found[name] = path.name
    require_all_weights(folder, into.keys() - found.keys(), found.keys() - into.keys(), misshapen)
