"""Targets by the names of their arrays, whichever part holds them, and spellings as arrays."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from tide_cache.records import Targets


def leaves(record: Any) -> dict[str, Any]:
    """Every field of a record and of its parts, by name."""
    result: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        result |= leaves(value) if is_dataclass(value) else {field.name: value}
    return result


def changed(targets: Targets, **changes: Any) -> Targets:
    """The same targets with some arrays in place of theirs."""
    parts = {name: getattr(targets, name) for name in ("truth", "topk", "chunks")}
    for name, part in parts.items():
        parts[name] = replace(part, **{key: changes.pop(key) for key in leaves(part) if key in changes})
    return replace(targets, **parts, **changes)


def end_to_end(spelled: Sequence[Sequence[int] | None]) -> tuple[np.ndarray, np.ndarray]:
    """Spellings as `Speller.several` gives them: their tokens, concatenated, and how many each has."""
    sizes = [len(ids or ()) for ids in spelled]
    return np.array([i for ids in spelled for i in ids or ()], np.int32), np.array(sizes)
