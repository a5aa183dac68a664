"""Loading ahead: a thread prepares the batches of the next steps while the current one is taken.

What is loaded, and in which order, does not change. A resumed run prepares from its own step on.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")


class Prefetcher(AbstractContextManager["Prefetcher[Item]"], Generic[Item]):
    """Returns what a function loads, step after step; a thread loads ahead.

    Attributes:
        stall_s: Seconds that `take` has waited for a step to be loaded.
    """

    def __init__(self, load: Callable[[int], Item], steps: range, ahead: int, device: torch.device | None = None):
        """Start to load; leaving the `with` block ends the thread after its current step.

        Args:
            load: Returns the item of a step; called for one step at a time, in order.
            steps: All steps that will be asked for.
            ahead: How many are kept ready; with 0 there is no thread, and each is loaded when it is asked for.
            device: The training's device: a new thread is on the first GPU, whichever its process uses.
        """
        self.stall_s = 0.0
        self._load, self._steps, self._ahead, self._device = load, iter(steps), ahead, device
        self._loaded: deque[Future[Item]] = deque()
        self._thread = ThreadPoolExecutor(1, "prefetch", self._choose_device) if ahead else None
        for _ in range(ahead):
            self._submit()

    def take(self) -> Item:
        """Return the item of the next step; an error in loading it is raised here."""
        start_s = perf_counter()
        try:
            if self._thread is None:
                return self._load(next(self._steps))
            self._submit()
            return self._loaded.popleft().result()
        finally:
            self.stall_s += perf_counter() - start_s

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; steps that it has not begun are not loaded."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _submit(self) -> None:
        assert self._thread is not None
        if (step := next(self._steps, None)) is not None:
            self._loaded.append(self._thread.submit(self._load, step))

    def _choose_device(self) -> None:
        if self._device is not None and self._device.type == "cuda":
            torch.cuda.set_device(self._device)
