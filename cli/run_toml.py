"""A resolved run file as TOML, so that what `--dry-run` prints can be saved, edited and run again."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tide_cache.config.base import Frozen

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def run_toml(run: Frozen) -> str:
    """Write a run file; `load_run_file` reads it back as the same run, from any folder.

    Args:
        run: Its paths become absolute; what is None is left out, since TOML has no word for it.
    """
    return "\n".join(_section("", run.model_dump(exclude_none=True))).strip() + "\n"


def _section(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one table: plain values first, because a heading ends a table."""
    tables = {key: value for key, value in values.items() if _is_table(value) or _is_tables(value)}
    yield from (f"{_key(key)} = {_value(value)}" for key, value in values.items() if key not in tables)
    for key, value in tables.items():
        dotted = f"{name}.{_key(key)}" if name else _key(key)
        for heading, table in [(f"[{dotted}]", value)] if _is_table(value) else [(f"[[{dotted}]]", v) for v in value]:
            yield from ("", heading, *_section(dotted, table))


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return _string(str(value.resolve() if isinstance(value, Path) else value))


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
