"""A trained model to measure or to ask: configuration and tokenizer are read first, weights when they are needed."""

import datetime
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tide_cache.config.settings import Precision
from tide_cache.errors import ModelError, RunFileError, fault_list
from tide_cache.modeling.backbone import (
    DTYPES,
    Backbone,
    CheckpointInfo,
    load_backbone,
    read_checkpoint,
    resolve_device,
)
from tide_cache.modeling.checkpoint import read_provenance, require_as_trained
from tide_cache.pairing import TextTokenizer

DEFAULT_BLOCK_SIZE = 32


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A checkpoint's configuration and tokenizer.

    Attributes:
        info: The checkpoint.
        tokenizer: The checkpoint's tokenizer.
        block_size: Tokens per diffusion block.
        dtype: Of the weights.
        device: Where they go: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    info: CheckpointInfo
    tokenizer: TextTokenizer
    block_size: int
    dtype: Precision = "float32"
    device: str = "auto"

    @cached_property
    def backbone(self) -> Backbone:
        """The model with its weights, loaded on first use."""
        return load_backbone(self.info, DTYPES[self.dtype], resolve_device(self.device))

    def require_fits(self, length: int) -> None:
        """Raise an error if the tokenizer has more ids than the model has embeddings, or sequences exceed its limit.

        Args:
            length: Longest sequence, in tokens.

        Raises:
            RunFileError: Something does not fit; lists every fault.
        """
        if faults := self.info.fit_faults(self.tokenizer.vocab_size, length, "eval"):
            raise RunFileError(fault_list("The evaluation cannot start:", faults, "Nothing was loaded."))


def open_trained(
    checkpoint: str,
    block_size: int | None = None,
    *,
    as_trained: bool = True,
    day: datetime.date | None = None,
    dtype: Precision = "float32",
    device: str = "auto",
) -> TrainedModel:
    """Read a checkpoint's configuration and tokenizer; no weights are loaded.

    Args:
        checkpoint: Folder or hub name.
        block_size: Tokens per block, where the checkpoint does not say what it was trained with; None for that.
        as_trained: A template that writes the date writes the one it wrote in training, so that figures do not change
            overnight; otherwise `day`.
        day: The date for such a template if there was no training; by default today.
        dtype: Of the weights.
        device: Where they go.

    Raises:
        RunFileError: It was trained with another block size.
        TideCacheError: There is no usable model or tokenizer.
    """
    info = read_checkpoint(checkpoint)
    provenance = read_provenance(info.folder)
    tokenizer = TextTokenizer.load(
        checkpoint,
        revision=info.commit,
        mask_id=info.mask_id,
        today=(_day_of_training(provenance) if as_trained else None) or day,
    )
    trained = provenance.get("block_size", info.block_size)
    if block_size is None:
        block_size = _as_trained(info.folder / "tide_cache.json", trained)
    require_as_trained(checkpoint, trained, block_size)
    return TrainedModel(info, tokenizer, block_size, dtype, device)


def _as_trained(path: Path, trained: Any) -> int:
    try:
        return DEFAULT_BLOCK_SIZE if trained is None else int(trained)
    except (ValueError, TypeError):
        raise ModelError(
            f"{path}: found no JSON object with the block_size of training; restore the file, or remove it and give "
            "--block-size"
        ) from None


def _day_of_training(provenance: dict[str, Any]) -> datetime.date | None:
    """Return the day that the template wrote in training; None if it writes none, or several were mixed."""
    identity = provenance.get("cache_identity") or {}
    day = provenance.get("template_date") or identity.get("pairing", {}).get("date")
    return datetime.date.fromisoformat(day) if day else None
