"""AdamW that keeps a running mean of the weights as one more of its states.

As a state of the optimizer it is float32, is stored with the other states (spread over the ranks, or in the machine's
memory), and is saved and restored with them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

EMA = "ema"
"""Name of the state."""


class AveragingAdamW(torch.optim.AdamW):
    """AdamW whose state `ema` is the mean of the weights: decay * mean + (1 - decay) * weight, after every step."""

    def __init__(
        self, parameters: Iterable[torch.Tensor] | Iterable[dict[str, Any]], *, ema_decay: float, **options: Any
    ):
        super().__init__(parameters, **options)
        self._decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take a step, then follow it; the mean starts from the weights before the first step."""
        moved = [
            parameter for group in self.param_groups for parameter in group["params"] if parameter.grad is not None
        ]
        start = {parameter: parameter.detach().clone() for parameter in moved if not self.state.get(parameter)}
        result = super().step(closure)
        for parameter in moved:
            state = self.state[parameter]
            if parameter in start:
                state[EMA] = start[parameter]
            state[EMA].lerp_(parameter, 1 - self._decay)
        return result
