"""Transfers of tensors to a model's device, without waiting for the device."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch

Record = TypeVar("Record")


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; a GPU fetches it while it computes, which takes pinned memory.

    Args:
        tensor: Already on that device, or on the CPU, where it must not be changed afterwards.
        device: The target.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pinned(record: Record) -> Record:
    """Copy a record's tensors to pinned memory, from which a GPU fetches them while it computes."""
    return with_tensors(record, torch.Tensor.pin_memory)


def on_device(record: Record, device: torch.device | str) -> Record:
    """Return a record with its tensors on a device; everything else is the same.

    Args:
        record: A dataclass.
        device: The target.
    """
    where = torch.device(device)
    return with_tensors(record, lambda tensor: moved(tensor, where))


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
