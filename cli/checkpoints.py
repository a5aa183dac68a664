"""Opening a trained model for `eval` and `generate`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tide_cache.errors import ModelError, RunFileError, fault_list

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


def open_model(checkpoint: str, block_size: int | None) -> OpenModel:
    """Read a checkpoint's configuration and tokenizer.

    Args:
        checkpoint: Folder or hub name.
        block_size: Tokens per block; None for what the model was trained with.

    Raises:
        TideCacheError: There is no usable model or tokenizer.
    """
    from tide_cache.modeling.backbone import read_checkpoint
    from tide_cache.pairing import TextTokenizer

    info = read_checkpoint(checkpoint)
    return OpenModel(
        info, TextTokenizer.load(checkpoint, mask_id=info.mask_id), block_size or _trained_block_size(checkpoint)
    )


def _trained_block_size(checkpoint: str) -> int:
    provenance = Path(checkpoint, "tide_cache.json")
    if not provenance.is_file():
        return DEFAULT_BLOCK_SIZE
    try:
        content = json.loads(provenance.read_text(encoding="utf-8"))
        return int(content.get("block_size", DEFAULT_BLOCK_SIZE))
    except (ValueError, TypeError, AttributeError):
        raise ModelError(
            f"{provenance}: found no JSON object with the block_size of training; restore the file, or remove it and "
            "give --block-size"
        ) from None
