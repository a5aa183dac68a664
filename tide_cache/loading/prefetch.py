"""Loading ahead: a thread prepares the batches of the next steps while the current one is taken.

What is loaded, and in which order, does not change. A resumed run prepares from its own step on.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from time import perf_counter
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

Item = TypeVar("Item")
Record = TypeVar("Record")


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


def pinned(record: Record) -> Record:
    """Copy a record's tensors to pinned memory, from which a GPU fetches them while it computes."""
    return with_tensors(record, torch.Tensor.pin_memory)


def with_tensors(record: Record, change: Callable[[torch.Tensor], torch.Tensor]) -> Record:
    """Return a record with changed tensors, also those of its parts; everything else is the same.

    Args:
        record: A dataclass.
        change: Returns the new tensor for each one.
    """
    dataclass: Any = record
    changed: dict[str, Any] = {}
    for field in fields(dataclass):
        value = getattr(dataclass, field.name)
        if isinstance(value, torch.Tensor):
            changed[field.name] = change(value)
        elif is_dataclass(value):
            changed[field.name] = with_tensors(value, change)
    result: Record = replace(dataclass, **changed)
    return result
