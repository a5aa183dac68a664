"""Gradients at ZeRO 0, where every rank holds all of them: added up over the ranks, clipped, forgotten.

DeepSpeed does the same with one copy more, a norm and a product for every weight, and several walks over the modules;
it copies and sends also where there is one rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

MOST_ELEMENTS = 1 << 26
"""Of a message: 256 MiB in float32. Gradients are copied next to each other, and this much is there twice."""


class Gradients:
    """The gradients of a module's trained weights.

    Attributes:
        norm: Of all of them, before they were clipped; None before the first time.
    """

    def __init__(self, module: nn.Module, world_size: int) -> None:
        """Look at the weights once.

        Args:
            module: Its weights are whole on every rank, and stay the same objects.
            world_size: Number of ranks.
        """
        self.norm: torch.Tensor | None = None
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._messages = list(_messages(self._trained))
        self._world_size = world_size
        self._held: list[torch.Tensor] = []

    def average(self) -> None:
        """Make the gradients their mean over the ranks; every rank calls this."""
        for parameter in self._trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self._world_size == 1:
            self._held = [_gradient(parameter) for parameter in self._trained]
            return
        self._held, under_way = [], []
        for parameters in self._messages:
            flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in parameters])
            under_way.append(dist.all_reduce(flat, async_op=True))
            for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
                parameter.grad = part.view_as(parameter)
            self._held.append(flat)
        for work, flat in zip(under_way, self._held, strict=True):
            work.wait()
            flat.div_(self._world_size)

    def clip(self, max_norm: float) -> None:
        """Shorten the averaged gradients to a norm; it is computed from the same numbers on every rank."""
        norms = torch.stack([torch.linalg.vector_norm(tensor) for tensor in self._held])
        self.norm = torch.linalg.vector_norm(norms)
        factor = (max_norm / (self.norm + 1e-6)).clamp(max=1.0)
        for tensor in self._held:
            tensor.mul_(factor)

    def forget(self) -> None:
        """Drop them."""
        self._held = []
        for parameter in self._trained:
            parameter.grad = None

    def take_over(self, engine: Any) -> None:
        """Do this in place of a DeepSpeed engine without ZeRO.

        Args:
            engine: Of the module.
        """

        def clip() -> None:
            self.clip(engine.gradient_clipping())
            engine.optimizer._global_grad_norm = self.norm  # where DeepSpeed looks for it after the step

        engine.buffered_allreduce_fallback = lambda **_: self.average()
        engine.clip_fp32_gradients = clip
        engine.zero_grad = lambda *_, **__: self.forget()


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, "average gives one to each"
    return parameter.grad


def _messages(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield consecutive weights of one dtype and device, at most `MOST_ELEMENTS` together unless it is one."""
    message: list[nn.Parameter] = []
    for parameter in parameters:
        is_alike = not message or (parameter.dtype, parameter.device) == (message[0].dtype, message[0].device)
        if message and (not is_alike or sum(map(torch.numel, [*message, parameter])) > MOST_ELEMENTS):
            yield message
            message = []
        message.append(parameter)
    if message:
        yield message
