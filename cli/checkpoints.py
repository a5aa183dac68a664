"""Opening a trained model for `eval` and `generate`."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tide_cache.errors import ModelError, RunFileError, fault_list

from .console import say

if TYPE_CHECKING:
    from tide_cache.modeling.backbone import Backbone, CheckpointInfo
    from tide_cache.pairing import TextTokenizer

DEFAULT_BLOCK_SIZE = 32

Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Model folder that `train` wrote (OUT/model), or a hub name.")
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Tokens per block; by default what the model was trained with, else 32.", show_default=False
    ),
]


@dataclass(frozen=True)
class OpenModel:
    """A checkpoint's configuration and tokenizer; weights are loaded on demand, after all checks."""

    info: "CheckpointInfo"
    tokenizer: "TextTokenizer"
    block_size: int

    def require_fits(self, length: int) -> None:
        """Refuse a tokenizer with more ids than the model has embeddings, and sequences above its limit.

        Args:
            length: Longest sequence, in tokens.

        Raises:
            RunFileError: Something does not fit; lists all that does not.
        """
        if faults := self.info.require_fits(self.tokenizer.vocab_size, length, "eval"):
            raise RunFileError(fault_list("The evaluation cannot start:", faults, "Nothing was loaded."))

    def load(self, dtype: str = "float32") -> "Backbone":
        """Load the weights onto the GPU, where there is one.

        Args:
            dtype: Of the weights: `float32` or `bfloat16`.
        """
        from tide_cache.modeling.backbone import DTYPES, load_backbone, resolve_device

        return load_backbone(self.info, DTYPES[dtype], resolve_device("auto"))


def open_model(checkpoint: str, block_size: int | None, as_trained: bool = False) -> OpenModel:
    """Read a checkpoint's configuration and tokenizer; warn of a model that was never trained.

    Args:
        checkpoint: Folder or hub name.
        block_size: Tokens per block; None for what the model was trained with.
        as_trained: A template that writes the date writes the day that it wrote in training, so that figures do not
            change overnight; else today's.

    Raises:
        TideCacheError: There is no usable model or tokenizer.
    """
    from tide_cache.modeling.backbone import read_checkpoint
    from tide_cache.modeling.checkpoint import read_provenance
    from tide_cache.pairing import TextTokenizer

    info = read_checkpoint(checkpoint)
    provenance = read_provenance(info.folder)
    if info.converted_from is not None:
        say(
            f"warning: {checkpoint} was converted from {info.converted_from} and never trained to denoise: what it "
            "says means nothing yet. Train it first: tide-cache train --student."
        )
    tokenizer = TextTokenizer.load(
        checkpoint,
        revision=info.commit,
        mask_id=info.mask_id,
        today=_day_of_training(provenance) if as_trained else None,
    )
    return OpenModel(info, tokenizer, block_size or _trained_block_size(info.folder / "tide_cache.json", provenance))


def _trained_block_size(path: Path, provenance: dict[str, Any]) -> int:
    try:
        return int(provenance.get("block_size", DEFAULT_BLOCK_SIZE))
    except (ValueError, TypeError):
        raise ModelError(
            f"{path}: found no JSON object with the block_size of training; restore the file, or remove it and give "
            "--block-size"
        ) from None


def _day_of_training(provenance: dict[str, Any]) -> datetime.date | None:
    """Give the day that the template wrote in training; None where it writes none, or several were mixed."""
    identity = provenance.get("cache_identity") or {}
    day = provenance.get("template_date") or identity.get("pairing", {}).get("date")
    return datetime.date.fromisoformat(day) if day else None
