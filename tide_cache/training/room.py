"""Disk space for what a run writes: checked before it begins, and found elsewhere if the disk is full at its end."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from tide_cache.config.train import TrainRun
from tide_cache.disk import require_room, second_places
from tide_cache.errors import WriteError, first_line
from tide_cache.modeling.backbone import DTYPES, CheckpointInfo
from tide_cache.modeling.fingerprint import weights_bytes
from tide_cache.modeling.safetensors_loading import stored_dtype
from tide_cache.training.checkpoints import CHECKPOINTS, KEPT, committed_checkpoints, remove_checkpoint
from tide_cache.wording import size

STATE_BYTES = 12
"""Of a trained parameter in a checkpoint: float32 master and the two moments of AdamW."""
EMA_BYTES = 4


def require_room_for(run: TrainRun, checkpoint: CheckpointInfo | None, config: Any, steps: int) -> None:
    """Refuse a run whose model and checkpoints do not fit on the disk.

    Args:
        run: The run file.
        checkpoint: That it starts from, if any.
        config: Of the model.
        steps: Of the whole run.

    Raises:
        WriteError: Says how much they take.
    """
    num_parameters, train = _num_parameters(checkpoint, config), run.train
    model_bytes = num_parameters * DTYPES[train.precision].itemsize * (2 if train.ema_decay else 1)
    state_bytes = 0 if run.student.lora else num_parameters * (STATE_BYTES + (EMA_BYTES if train.ema_decay else 0))
    num_saved = (steps - 1) // train.checkpoint_every if train.checkpoint_every else 0
    num_there = len(committed_checkpoints(train.out / CHECKPOINTS))
    num_new = max(0, min(KEPT + 1, num_saved) - num_there)  # a new one is written before the oldest goes
    what = f"the run, a model of {size(model_bytes)} and {num_new} new checkpoints of {size(state_bytes)} at a time,"
    way_out = "train.checkpoint_every = 0 writes no checkpoints." if num_new else ""
    require_room(train.out, model_bytes + num_new * state_bytes, what, way_out)


def _num_parameters(checkpoint: CheckpointInfo | None, config: Any) -> int:
    folder = Path(checkpoint.location) if checkpoint else None
    if folder and (num_bytes := weights_bytes(folder)):
        return num_bytes // stored_dtype(folder).itemsize
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config) if checkpoint else Qwen3ForCausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


def save_finished(save: Callable[[Path], None], folder: Path, needed: float) -> None:
    """Save a finished model where it belongs, or else where there is room, so that the work is not lost.

    Where its disk is full, older checkpoints than the newest make room first.

    Args:
        save: Writes the model into a folder that it makes.
        folder: Where it belongs, in the run's own.
        needed: Bytes.

    Raises:
        WriteError: It is elsewhere, and where; or nowhere, and what is left.
    """
    try:
        save(folder)
        return
    except WriteError as error:
        reason = first_line(error)
    checkpoints = committed_checkpoints(folder.parent / CHECKPOINTS)
    for older in checkpoints[:-1]:
        remove_checkpoint(older)
        with suppress(WriteError):
            save(folder)
            return
    for place in second_places(folder, needed):
        second = Path(tempfile.mkdtemp(prefix=f"tide-cache-{folder.parent.name}-", dir=place))
        try:
            save(second / folder.name)
        except WriteError:
            shutil.rmtree(second, ignore_errors=True)
            continue
        raise WriteError(
            f"{reason}\nThe finished weights are in {second / folder.name} instead; move them to {folder}."
        )
    left = (
        f"Free space and run the same command with --resume: it goes on from {checkpoints[-1]}."
        if checkpoints
        else "There is no checkpoint either: free space, and train again."
    )
    raise WriteError(f"{reason}\nNo other disk here has {size(needed)} for the finished weights. {left}")
