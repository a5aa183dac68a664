"""How a run file becomes frozen models: TOML in, `--set` on top, every fault reported at once."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from tide_cache.errors import RunFileError, fault_list
from tide_cache.locations import RemotePath, cache_path, is_url


class Frozen(BaseModel):
    """Base of every run-file section: immutable, and unknown keys are refused, as are NaN and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


RunFile = TypeVar("RunFile", bound=Frozen)


def load_run_file(model: type[RunFile], path: Path | None, overrides: Mapping[str, Any] | None = None) -> RunFile:
    """Read a TOML run file, apply overrides, and validate it.

    Paths inside the file are relative to the file's folder, paths in overrides to the working folder;
    both are made absolute here, so the result can be used from anywhere.

    Args:
        model: The run file's model.
        path: The TOML file; None if everything comes from overrides.
        overrides: Dotted keys and their values, as `parse_assignments` returns them; they win over the file.

    Raises:
        RunFileError: The file is missing or not TOML, or the models refuse it; lists every fault.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        raw = _read_toml(path)
        _resolve_paths(model, raw, path.resolve().parent, with_defaults=True)
    if overrides:
        layer: dict[str, Any] = {}
        for key, value in overrides.items():
            _assign(layer, raw, key, value)
        _resolve_paths(model, layer, Path.cwd())
        raw = _merged(raw, layer)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        where = f"{path}" if path is not None else "the command line"
        raise RunFileError(_describe(error, model, where)) from None


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Split `key=value` strings of `--set`; a value is TOML if it parses, otherwise a plain string.

    Raises:
        RunFileError: An item has no `=`.
    """
    result: dict[str, Any] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise RunFileError(f"--set {item!r}: found no '='; expected key=value, for example --set train.steps=500")
        try:
            result[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            result[key.strip()] = text
    return result


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFileError(f"{path}: no such run file; give the path of a TOML file (see examples/)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunFileError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read: {error.strerror}") from None


def _assign(layer: dict[str, Any], base: Mapping[str, Any], dotted: str, value: Any) -> None:
    """Put a dotted key into `layer`; a step into a list (`objective.0.weight`) copies that list from `base`."""
    keys = dotted.split(".")
    here: Any = layer
    there: Any = base
    for key in keys[:-1]:
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise RunFileError(f"--set {dotted}: {key!r} is not an index of a list of {len(here)} entries")
            here, there = here[int(key)], None
            continue
        if key.isdigit():
            raise RunFileError(f"--set {dotted}: found no list to take entry {key} of; write it in the run file")
        there = there.get(key) if isinstance(there, Mapping) else None
        if key not in here:
            here[key] = [dict(entry) for entry in there] if isinstance(there, list) else {}
        here = here[key]
        if not isinstance(here, (dict, list)):
            raise RunFileError(f"--set {dotted}: {key!r} is not a section")
    if isinstance(here, list):
        raise RunFileError(f"--set {dotted}: give the entry's number and key, for example objective.0.weight=1.0")
    here[keys[-1]] = value


def _merged(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


def _resolve_paths(model: type[BaseModel], raw: Any, folder: Path, with_defaults: bool = False) -> None:
    """Make every value of a `Path` field absolute, in place; hub names are left alone."""
    if not isinstance(raw, dict):
        return
    for name, field in model.model_fields.items():
        value = raw.get(name)
        if value is None:
            if with_defaults and isinstance(field.default, Path):
                raw[name] = str((folder / field.default).resolve())
            continue
        types = [*field.metadata, *_types_in(field.annotation)]
        if Path in types and isinstance(value, str):
            raw[name] = _resolved_path(value, folder, name, may_be_url=RemotePath in types)
        elif LocationMark in types and isinstance(value, str):
            raw[name] = _resolved_location(value, folder)
        else:
            for inner in (t for t in types if isinstance(t, type) and issubclass(t, BaseModel)):
                for entry in value if isinstance(value, list) else [value]:
                    _resolve_paths(inner, entry, folder, with_defaults)


def _resolved_path(value: str, folder: Path, name: str, may_be_url: bool) -> str:
    if may_be_url:
        value = str(cache_path(value))
    if not is_url(value):
        return str((folder / Path(value).expanduser()).resolve())
    if not may_be_url:
        raise RunFileError(f"{name}: found the URL {value}; only a cache may lie in an object store, give a folder")
    return value


class LocationMark:
    """Annotates a string that is a path if it exists or is written like one, otherwise a hub name."""


def _resolved_location(value: str, folder: Path) -> str:
    candidate = folder / Path(value).expanduser()
    is_path = value.startswith((".", "/", "~")) or candidate.exists()
    return str(candidate.resolve()) if is_path else value


def _types_in(annotation: Any) -> list[Any]:
    """Return the types in an annotation, and what annotates them."""
    arguments = getattr(annotation, "__args__", None)
    inner = [t for argument in arguments for t in _types_in(argument)] if arguments else [annotation]
    return [*getattr(annotation, "__metadata__", ()), *inner]


UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls it in a model, and in a dataclass."""


def _describe(error: ValidationError, model: type[BaseModel], where: str) -> str:
    faults = []
    found = error.errors(include_url=False)
    for fault in found:
        if fault["type"] == "too_short" and any(
            f["loc"][: len(fault["loc"])] == fault["loc"] != f["loc"] for f in found
        ):
            continue  # it is too short because its entries were refused, each with its own fault
        key = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
        if fault["type"] in UNKNOWN_KEY:
            known = _known_keys(model, fault["loc"][:-1])
            faults.append(f"{key}: unknown key; {_hint(str(fault['loc'][-1]), known)}")
        elif fault["type"] == "missing":
            faults.append(f"{key}: missing; it has no default")
        elif fault["type"] == "union_tag_invalid":
            tag, known = fault["ctx"]["tag"], re.findall(r"'([^']+)'", fault["ctx"]["expected_tags"])
            faults.append(f"{key}: found kind {tag!r}; {_hint(tag, known, is_short=True)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            value = fault.get("input")
            shown = "" if isinstance(value, (dict, list)) else f"found {value!r}; "
            faults.append(f"{key}: {shown}{message}")
    return fault_list(f"{where} cannot be used:", faults, "Fix these and run it again; --dry-run only checks.")


def _hint(found: str, known: list[str], is_short: bool = False) -> str:
    """Return a hint: the nearest name, and all of them if none is near or the list is short."""
    hints = [f"did you mean {close!r}?" for close in difflib.get_close_matches(found, known, n=1)]
    if is_short or not hints:
        hints.append(f"known here: {', '.join(sorted(known))}")
    return " ".join(hints)


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the keys that the models at a location know; a tagged union contributes all its members' keys."""
    here: list[dict[str, Any]] = [_fields(model)]
    for part in location:
        types = [t for known in here if part in known for t in _types_in(known[part])]
        if types:
            here = [_fields(t) for t in types if isinstance(t, type)]
        elif isinstance(part, str):  # the tag of a union
            here = [known for known in here if part in get_args(known["kind"])]
    return sorted({key for known in here for key in known})


def _fields(section: type) -> dict[str, Any]:
    """Return the fields of a section, a model or a dataclass, with their types; none of any other type."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    return {field.name: field.type for field in dataclass_fields(section)} if is_dataclass(section) else {}
