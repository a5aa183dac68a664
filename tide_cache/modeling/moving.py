"""Putting tensors where a model is, without waiting for what the device is doing."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch

Record = TypeVar("Record")


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; a GPU fetches it while it computes, which takes pinned memory.

    Args:
        tensor: On that device already, or on the CPU, where it must not be changed afterwards.
        device: Where to.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pinned(record: Record) -> Record:
    """Copy a record's tensors to memory from which a GPU fetches them while it computes."""
    return with_tensors(record, torch.Tensor.pin_memory)


def on_device(record: Record, device: torch.device | str) -> Record:
    """Move a record's tensors to a device; the rest stays.

    Args:
        record: A dataclass.
        device: Where to.
    """
    where = torch.device(device)
    return with_tensors(record, lambda tensor: moved(tensor, where))


def with_tensors(record: Record, change: Callable[[torch.Tensor], torch.Tensor]) -> Record:
    """Return a record whose tensors are changed, those of its parts too; the rest stays.

    Args:
        record: A dataclass.
        change: Of each tensor.
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
