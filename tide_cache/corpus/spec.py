"""The mix syntax: `a.jsonl+b.parquet[train:5000]+org/name[name:python,lang:python,train:1000]`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tide_cache.errors import RunFileError, fault_list

_PIECE = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<selection>[^\[\]]*)\])?")
_PLUS_OUTSIDE_BRACKETS = re.compile(r"\+(?![^\[\]]*\])")
_SPLIT = re.compile(r"[A-Za-z_][\w.]*")
_USUAL_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
_KEYS = "<split>:<N> (the first N rows), <split>: (all of it), name:<hub configuration>, lang:<language>"


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a mix.

    Attributes:
        name: Path or hub name as written.
        split: Split word, or None when the spec names none.
        limit: At most this many rows, counted after all filters; None for all.
        config: Configuration of a hub dataset.
        language: Keep only rows of this language.
    """

    name: str
    split: str | None = None
    limit: int | None = None
    config: str | None = None
    language: str | None = None


def local_path(name: str, folder: Path) -> Path:
    """Resolve a piece's name against `folder`, as an absolute path that need not exist."""
    return Path(os.path.abspath(folder / os.path.expanduser(name)))


def parse_spec(spec: str, folder: Path) -> tuple[Part, ...]:
    """Split a mix into its parts.

    A `+` always separates pieces, except where the whole spec before its `[` is a file or folder that exists.

    Args:
        spec: The mix as the user wrote it.
        folder: Where relative names are looked up.

    Raises:
        RunFileError: Lists every fault of every piece.
    """
    if not spec.strip():
        raise RunFileError("corpus.spec is empty; give a file, a folder or a hub name, for example train.jsonl")
    whole = _PIECE.fullmatch(spec.strip())
    if whole is not None and os.path.exists(local_path(whole["name"], folder)):
        pieces = [spec]
    else:
        pieces = _PLUS_OUTSIDE_BRACKETS.split(spec)
    faults: list[str] = []
    parts = [_parse_piece(piece.strip(), number, faults) for number, piece in enumerate(pieces, start=1)]
    if faults:
        raise RunFileError(fault_list(f"corpus.spec {spec!r} cannot be used:", faults, f"Known in brackets: {_KEYS}."))
    return tuple(parts)


def _parse_piece(piece: str, number: int, faults: list[str]) -> Part:
    """Parse one piece; faults are added to `faults`, and the part is then not used."""
    match = _PIECE.fullmatch(piece)
    if match is None:
        faults.append(f"piece {number}, {piece!r}: unbalanced bracket; expected name or name[selection]")
        return Part(piece)
    name = match["name"].strip()
    if not name:
        faults.append(f"piece {number} is empty; expected a file, a folder or a hub name on both sides of every '+'")
    values: dict[str, str | int | None] = {}
    if match["selection"] is not None:
        for item in match["selection"].split(","):
            for key, value in _parse_item(item.strip(), piece, faults).items():
                if key in values:
                    faults.append(f"{piece!r}: {item.strip()!r} is a second {key}; give one, or name the file twice")
                values[key] = value
    return Part(
        name,
        split=_text(values.get("split")),
        limit=_number(values.get("limit")),
        config=_text(values.get("name")),
        language=_text(values.get("lang")),
    )


def _parse_item(item: str, piece: str, faults: list[str]) -> dict[str, str | int | None]:
    key, colon, value = (text.strip() for text in item.partition(":"))
    if not colon:
        faults.append(f"{piece!r}: found {item!r}; expected key:value, for example train:5000, or train: for a split")
    elif key in ("name", "lang"):
        if value:
            return {key: value}
        faults.append(f"{piece!r}: {key}: has no value")
    elif not _SPLIT.fullmatch(key) or (value and key not in _USUAL_SPLITS and not re.fullmatch(r"[-+.\d]+", value)):
        faults.append(f"{piece!r}: unknown key {key!r} in {item!r}")
    elif not value:
        return {"split": key}
    elif not re.fullmatch(r"[-+]?\d+", value, re.ASCII):
        faults.append(f"{piece!r}: found {value!r} in {item!r}; expected a whole number of rows")
    elif int(value) < 1:
        faults.append(f"{piece!r}: found {value} in {item!r}; expected at least 1 row")
    else:
        return {"split": key, "limit": int(value)}
    return {}


def _text(value: str | int | None) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: str | int | None) -> int | None:
    return value if isinstance(value, int) else None
