"""Opening a trained model for `eval`, `eval-tasks` and `generate`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say

if TYPE_CHECKING:
    from tide_cache.evaluation.trained import TrainedModel

Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Model folder written by `train` (OUT/model), or a hub name.")
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens per block, if the model does not state what it was trained with; else 32.",
        show_default=False,
    ),
]


def open_model(checkpoint: str, block_size: int | None, **options: Any) -> "TrainedModel":
    """Read a checkpoint's configuration and tokenizer; warn of a model that was never trained.

    Args:
        checkpoint: Folder or hub name.
        block_size: Tokens per block; None for the block size of its training.
        options: As for `open_trained`.

    Raises:
        TideCacheError: There is no usable model or tokenizer.
    """
    from tide_cache.evaluation.trained import open_trained

    model = open_trained(checkpoint, block_size, **options)
    if model.info.converted_from is not None:
        say(
            f"warning: {checkpoint} was converted from {model.info.converted_from} and never trained to denoise: its "
            "output means nothing yet. Train it first: tide-cache train --student."
        )
    return model
