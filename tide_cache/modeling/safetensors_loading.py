"""Loading of safetensors files, one tensor at a time, into tensors that are already on their device."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tide_cache.errors import ModelError
from tide_cache.unreadable import is_file, require_readable, told_apart

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ROWS_COMPARED = 8192
_SHOWN = 8


def load_tensors(folder: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors from a checkpoint's files; nothing is copied unless all of them exist and fit.

    Each is read onto the device of the tensor it fills, and cast there: no copy of the model stays in memory.

    Args:
        folder: Folder of the checkpoint.
        into: The tensors to fill, by published name.

    Raises:
        ModelError: A file is missing or damaged, or tensors are missing, left over, not floating point, or of another
            shape; lists them.
    """
    device = str(next(iter(into.values())).device)
    files = weight_files(folder)
    try:
        _require_fit(folder, files, into)
        for path in files:
            with told_apart(path), safe_open(path, framework="pt", device=device) as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    into[name].copy_(opened.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{folder}: the weights cannot be read: {error}; expected whole .safetensors files. Copy or download "
            "them again."
        ) from None


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype in which a checkpoint's weights lose nothing: their own, if all have the same.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        ModelError: A file is missing or damaged, or holds no floating point numbers.
    """
    found: set[str] = set()
    for path in weight_files(folder):
        try:
            with told_apart(path), safe_open(path, framework="pt") as opened:
                found |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: the weights cannot be read: {error}; expected whole .safetensors files. Copy or download "
                "them again."
            ) from None
    if not found or not found <= FLOATS.keys():
        raise ModelError(f"{folder}: found weights of {sorted(found)}, expected floating point: {', '.join(FLOATS)}")
    return reduce(torch.promote_types, (FLOATS[name] for name in found))


def has_own_head(folder: Path, head: str = HEAD, embedding: str = EMBEDDING) -> bool:
    """Return whether a checkpoint stores an output head that is not its embedding.

    Args:
        folder: Folder of a stock checkpoint.
        head: Its name for the output head.
        embedding: Its name for the embedding.

    Raises:
        ModelError: A file is missing or damaged.
    """
    files = {name: path for path in weight_files(folder) for name in _tensor_names(path)}
    if head not in files or embedding not in files:
        return False
    with safe_open(files[head], framework="pt") as one, safe_open(files[embedding], framework="pt") as other:
        head_VD, embedding_VD = one.get_slice(head), other.get_slice(embedding)
        if head_VD.get_shape() != embedding_VD.get_shape():
            return True
        rows = range(0, head_VD.get_shape()[0], _ROWS_COMPARED)
        return not all(
            torch.equal(head_VD[at : at + _ROWS_COMPARED], embedding_VD[at : at + _ROWS_COMPARED]) for at in rows
        )


def _tensor_names(path: Path) -> list[str]:
    try:
        with told_apart(path), safe_open(path, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: the weights cannot be read: {error}; expected whole .safetensors files. Copy or download them "
            "again."
        ) from None


def require_all_weights(
    location: str | Path, missing: Iterable[str], unknown: Iterable[str], misshapen: Iterable[str]
) -> None:
    """Raise an error if the weights are not exactly those of the model.

    Args:
        location: Location of the checkpoint.
        missing: Names that the model needs and no file has.
        unknown: Names that files have and the model does not.
        misshapen: Names of tensors that do not fit, with the fault.

    Raises:
        ModelError: There is at least one; lists them.
    """
    missing, unknown = sorted(missing), sorted(unknown)
    faults = [f"missing {name}" for name in missing] + [f"unknown {name}" for name in unknown]
    faults += [f"shape of {what}" for what in sorted(misshapen)]
    if faults:
        shown = "; ".join(faults[:_SHOWN]) + (f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else "")
        has_experts, wants_experts = (any(".experts." in name for name in names) for names in (unknown, missing))
        hint = ""
        if has_experts != wants_experts:
            found, expected = ("a mixture of experts", "a dense model")[:: 1 if has_experts else -1]
            hint = f". These are weights of {found}, and its config.json describes {expected}: give the right one"
        raise ModelError(f"{location}: the weights do not fit its config.json: {shown}{hint}")


def weight_names(folder: Path) -> list[str]:
    """Return the names of the files of a checkpoint's weights, whether they exist or not.

    Args:
        folder: Folder of the checkpoint. A single file takes precedence over an index, as in transformers.

    Raises:
        ModelError: The index cannot be used.
        UnreadableError: It cannot be read now.
    """
    index = folder / INDEX
    if is_file(folder / SINGLE) or not is_file(index):
        return [SINGLE]
    try:
        with told_apart(index):
            content = index.read_text(encoding="utf-8")
        names = sorted(set(json.loads(content)["weight_map"].values()))
        if strange := [name for name in names if not _PLAIN_NAME.fullmatch(name)]:
            raise ModelError(
                f"{index}: found the file name {strange[0]!r}, expected one like {SINGLE!r}, in its folder"
            )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{index}: no usable index ({type(error).__name__}: {error}); expected an object with weight_map, from "
            "tensor to file. Copy or download it again."
        ) from None
    return names


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's weights.

    Args:
        folder: Folder of the checkpoint.

    Raises:
        ModelError: One is missing, or the index cannot be used.
        UnreadableError: One cannot be read now.
    """
    names = weight_names(folder)
    absent = [name for name in names if not is_file(folder / name)]
    if absent == [SINGLE]:
        raise ModelError(
            f"{folder}: found neither {SINGLE} nor {INDEX}; expected safetensors weights, pickles are never read"
        )
    if absent:
        raise ModelError(
            f"{folder}: {len(absent)} of the {len(names)} files that {INDEX} names are missing: {', '.join(absent)}; "
            "copy or download them"
        )
    files = [folder / name for name in names]
    for file in files:
        require_readable(file)  # safetensors reports a file that it may not open as missing
    return files


def _require_fit(folder: Path, files: list[Path], into: Mapping[str, torch.Tensor]) -> None:
    found: dict[str, str] = {}
    misshapen = []
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                tensor = opened.get_slice(name)
                shape = list(into[name].shape) if name in into else tensor.get_shape()
                if tensor.get_shape() != shape or tensor.get_dtype() not in FLOATS:
                    misshapen.append(f"{name}: found {tensor.get_dtype()} {tensor.get_shape()}, expected {shape}")
                if name in found:
                    misshapen.append(f"{name}: found in {found[name]} and in {path.name}, expected once")
                found[name] = path.name
    require_all_weights(folder, into.keys() - found.keys(), found.keys() - into.keys(), misshapen)
