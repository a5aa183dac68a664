"""A smaller student from a larger checkpoint: some of its layers, or its embedding for another tokenizer.

Shape suffixes: V ids of the old tokenizer, W ids of the new one, D hidden size.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tide_cache.arrays import evenly
from tide_cache.errors import RunFileError
from tide_cache.pairing import TextTokenizer

_LAYER = re.compile(r"(model\.layers\.)(\d+)(\..+)")


def evenly_spaced(num_kept: int, num_layers: int) -> tuple[int, ...]:
    """Return which layers to keep: the first, the last, and others evenly spaced between them.

    Args:
        num_kept: How many to keep.
        num_layers: Layers of the checkpoint.

    Raises:
        RunFileError: `num_kept` is 0, or more than there are.
    """
    if not 1 <= num_kept <= num_layers:
        raise RunFileError(
            f"--num-layers {num_kept}: the checkpoint has {num_layers} layers; expected 1 to {num_layers}"
        )
    return tuple(evenly(num_layers, num_kept))


def require_layers(layers: Sequence[int], num_layers: int) -> None:
    """Raise an error for layers that a checkpoint does not have, or that do not increase; needs no weights.

    Args:
        layers: Numbers of the layers to keep.
        num_layers: Layers of the checkpoint.

    Raises:
        RunFileError: A number is out of range, or they do not increase.
    """
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= num_layers:
        shown = ",".join(map(str, layers))
        raise RunFileError(f"--layers {shown}: expected increasing numbers from 0 to {num_layers - 1}")


def keep_layers(weights: Mapping[str, torch.Tensor], config: Any, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the weights of some layers, renumbered, and adapt the configuration.

    Args:
        weights: State of a stock model, by parameter name; not copied.
        config: Its configuration; changed.
        layers: Numbers of the layers to keep, as `require_layers` takes them.
    """
    place = {old: new for new, old in enumerate(layers)}
    kept = {}
    for name, tensor in weights.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            kept[name] = tensor
        elif (old := int(match[2])) in place:
            kept[f"{match[1]}{place[old]}{match[3]}"] = tensor
    config.num_hidden_layers = len(layers)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[layer] for layer in layers]
    return kept


def rows_for_tokenizer(rows_VD: torch.Tensor, old: TextTokenizer, new: TextTokenizer) -> torch.Tensor:
    """Return an embedding, or an output head, for another tokenizer, shape [W, D].

    A token whose text is one token of the old vocabulary gets that token's row. Any other gets the mean of the rows of
    the old tokens that spell its bytes, the longest possible one first. A token without text, or with bytes that the
    old vocabulary cannot spell, gets the mean of all rows, except that end-of-text and padding get the rows of the old
    tokenizer.

    Args:
        rows_VD: Rows by id of the old tokenizer; further rows are padding.
        old: The checkpoint's tokenizer.
        new: The student's tokenizer, with its mask token.

    Source: Fast Vocabulary Transfer, Gee et al. 2022, arXiv:2402.09977.
    """
    by_bytes = _ids_by_bytes(old)
    longest = max(map(len, by_bytes))
    # the mask token's row, if the old tokenizer has one, is not part of any mean
    same_role = {new.eos_id: old.eos_id, new.pad_id: old.pad_id}
    if not old.is_mask_added:
        same_role[new.mask_id] = old.mask_id
    num_old = min(old.vocab_size, len(rows_VD))
    mean_D = rows_VD[:num_old].mean(dim=0, dtype=torch.float32)
    made_WD = torch.empty(new.vocab_size, rows_VD.shape[1], dtype=rows_VD.dtype)
    for i in range(new.vocab_size):
        if i in same_role and same_role[i] < num_old:
            pieces = [same_role[i]]
        else:
            pieces = [] if new.is_special_V[i] else _spell(new.token_bytes.of(i), by_bytes, longest)
        row_D = rows_VD[pieces].mean(dim=0, dtype=torch.float32) if pieces else mean_D
        made_WD[i] = row_D.to(rows_VD.dtype)
    return made_WD


def _ids_by_bytes(tokenizer: TextTokenizer) -> dict[bytes, int]:
    """Return the id of each text that is one token; the lowest of several."""
    found: dict[bytes, int] = {}
    for i, token in enumerate(tokenizer.tokens):
        if token is not None and not tokenizer.is_special_V[i]:
            found.setdefault(tokenizer.token_bytes.of(i), i)
    found.pop(b"", None)
    return found


def _spell(data: bytes, by_bytes: Mapping[bytes, int], longest: int) -> list[int]:
    """Return the ids that spell some bytes, with the longest token at each place; empty if that fails."""
    pieces, start = [], 0
    while start < len(data):
        for stop in range(min(len(data), start + longest), start, -1):
            if (found := by_bytes.get(data[start:stop])) is not None:
                pieces.append(found)
                start = stop
                break
        else:
            return []
    return pieces
