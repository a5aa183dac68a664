"""What a run must remember of its weights, as plain tensors by parameter name.

Float32 masters and AdamW's states are gathered from wherever the ZeRO stage keeps them, and spread again on loading, so
a checkpoint fits any number of processes and any stage. It is safetensors: to read it runs no code, unlike DeepSpeed's
own files, which are pickles cut for one number of processes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tide_cache.disk import writing
from tide_cache.errors import CheckpointError
from tide_cache.progress import doing
from tide_cache.training.quiet_deepspeed import deepspeed

MASTER = "master"
"""The float32 weight itself, next to the optimizer's states."""

STEPS = "adamw_steps"


def save_state(engine: Any, folder: Path) -> None:
    """Write a part of the state from each rank; every rank calls this.

    Args:
        engine: The DeepSpeed engine, after at least one step.
        folder: Exists.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    kinds = [MASTER, *_state_kinds(engine)]
    _link_states(engine)
    mine = {}
    for index, (name, parameter) in enumerate(_trained(engine.module)):
        for kind in kinds:
            whole = _gather(engine, parameter, kind)
            if index % size == rank:
                mine[f"{kind}/{name}"] = whole.detach().cpu().clone()
    path, needed = folder / f"state-{rank:05d}.safetensors", sum(tensor.nbytes for tensor in mine.values())
    with writing(path, needed=needed), doing(f"Writing checkpoint {folder}", needed):
        save_file(mine, path, metadata={STEPS: str(_adamw_steps(engine))})


class SavedState:
    """The tensors that `save_state` wrote, read one at a time.

    Raises:
        CheckpointError: They are not those of the model that is trained.
    """

    def __init__(self, folder: Path, module: nn.Module):
        self._files: dict[str, Any] = {}
        self.steps = 0
        for path in sorted(folder.glob("state-*.safetensors")):
            reader: Any = safe_open(path, framework="pt")
            self.steps = int(reader.metadata()[STEPS])
            self._files.update(dict.fromkeys(reader.keys(), reader))
        self.kinds = sorted({key.split("/", 1)[0] for key in self._files})
        expected = {f"{kind}/{name}" for kind in self.kinds for name, _ in _trained(module)}
        if differing := sorted(expected ^ self._files.keys()):
            raise CheckpointError(
                f"{folder}: its tensors are not those of the model that is trained: {', '.join(differing[:3])}"
                f"{' ...' if len(differing) > 3 else ''}. Resume with the model that the run began with."
            )

    def tensor(self, kind: str, name: str) -> torch.Tensor:
        """Read a tensor."""
        key = f"{kind}/{name}"
        tensor: torch.Tensor = self._files[key].get_tensor(key)
        return tensor

    def load_weights(self, module: nn.Module) -> None:
        """Load the masters into a module that no engine holds yet, rounded to its dtype."""
        with torch.no_grad():
            for name, parameter in _trained(module):
                parameter.copy_(self.tensor(MASTER, name))

    def load_optimizer(self, engine: Any) -> None:
        """Load masters and states into a fresh engine around that module; every rank calls this."""
        adamw = _adamw(engine)
        kinds = [kind for kind in self.kinds if kind != MASTER]
        for held in _held_tensors(engine):
            states = {kind: torch.zeros_like(held) for kind in kinds}
            step = torch.tensor(float(self.steps), device=held.device)  # where fused AdamW counts
            adamw.state[held] = {"step": step, **states}
        _link_states(engine)
        for name, parameter in _trained(engine.module):
            for kind in (MASTER, *kinds):
                _scatter(engine, parameter, kind, self.tensor(kind, name))


def gathered_weights(engine: Any, module: nn.Module, kind: str | None = None) -> dict[str, torch.Tensor]:
    """Gather a module's weights on the CPU of rank 0, one at a time; every rank calls this.

    Args:
        engine: The DeepSpeed engine.
        module: The engine's, or a part of it.
        kind: State of the optimizer to give in place of each weight that is trained; by default none.

    Returns:
        By parameter name, in the weights' dtype; empty on other ranks.
    """
    result = {}
    if kind is not None:
        _link_states(engine)
    for name, parameter in module.named_parameters():
        is_state = kind is not None and parameter.requires_grad
        whole = _gather(engine, parameter, str(kind)) if is_state else _whole(parameter)
        if dist.get_rank() == 0:
            result[name] = whole.detach().to(device="cpu", dtype=parameter.dtype, copy=True)
    return result


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _whole(parameter: nn.Parameter) -> torch.Tensor:
    if not hasattr(parameter, "ds_id"):
        return parameter
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def _is_plain(engine: Any) -> bool:
    """Return whether the optimizer is torch's own, on the model's weights: stage 0."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def _adamw(engine: Any) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = engine.optimizer if _is_plain(engine) else engine.optimizer.optimizer
    return optimizer


def _held_tensors(engine: Any) -> list[torch.Tensor]:
    """Return the tensors that AdamW updates on this rank: weights, or flat parts of many."""
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):  # stage 3 hands them to AdamW in its step only
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [tensor for group in _adamw(engine).param_groups for tensor in group["params"]]


def _first_state(engine: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = _adamw(engine).state[_held_tensors(engine)[0]]
    return state


def _state_kinds(engine: Any) -> list[str]:
    return sorted(_first_state(engine).keys() - {"step"})


def _adamw_steps(engine: Any) -> int:
    return int(_first_state(engine)["step"])


def _link_states(engine: Any) -> None:
    """Tell weights where all their states are.

    DeepSpeed does it once. Under ZeRO 1 and 2 that is after the step of the first group, when others have none yet.
    """
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _gather(engine: Any, parameter: nn.Parameter, kind: str) -> torch.Tensor:
    """Return a whole master or state."""
    if _is_plain(engine):
        return parameter if kind == MASTER else engine.optimizer.state[parameter][kind]
    if kind == MASTER:
        whole: torch.Tensor = deepspeed.utils.safe_get_full_fp32_param(parameter)
    else:
        whole = deepspeed.utils.safe_get_full_optimizer_state(parameter, kind)
    return whole


def _scatter(engine: Any, parameter: nn.Parameter, kind: str, whole: torch.Tensor) -> None:
    """Put this rank's part of a whole master or state in its place."""
    if _is_plain(engine):
        if kind != MASTER:  # the module was given the masters
            engine.optimizer.state[parameter][kind].copy_(whole)
    elif hasattr(parameter, "ds_id"):
        part = _stage_3_part(parameter, whole)
        if kind == MASTER:
            deepspeed.utils.safe_set_local_fp32_param(parameter, part)
        else:
            deepspeed.utils.safe_set_local_optimizer_state(parameter, part, kind)
    elif kind == MASTER:
        deepspeed.utils.safe_set_full_fp32_param(parameter, whole)
    else:
        deepspeed.utils.safe_set_full_optimizer_state(parameter, whole, kind)


def _stage_3_part(parameter: Any, whole: torch.Tensor) -> torch.Tensor:
    """Cut out this rank's part, padded: DeepSpeed's own cut fails where the ranks do not divide a weight."""
    length, start = parameter.ds_tensor.numel(), parameter.ds_tensor.numel() * dist.get_rank()
    part = torch.zeros(length, dtype=whole.dtype)
    found = whole.flatten()[start : start + length]
    part[: found.numel()] = found
    return part
