"""How figures are written for people, on the terminal and on pages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = ".:-=+*#@"
"""For terminals whose encoding lacks the others."""


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash for none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def shared_views(context: object, num_views: int) -> str:
    """Return the words after the number of stored views if all views of training read that one; otherwise nothing.

    Args:
        context: What the teacher is shown.
        num_views: Views of training.
    """
    return f", read by all {num_views} views of training (context causal)" if context == "causal" else ""


def percent(value: float | None) -> str:
    """Write a share."""
    return "-" if value is None else f"{value:.1%}"


def size(num_bytes: float) -> str:
    """Write a number of bytes in the largest unit that keeps it at 1 or more."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def sparkline(values: Sequence[float | None], low: float, high: float, bars: str = BARS) -> str:
    """Draw values as a line of bars, one character each; what is not known is a space.

    Args:
        values: From left to right.
        low: Value of the lowest bar; what is below gets it too.
        high: Value of the highest bar.
        bars: Characters from low to high.
    """
    span = (high - low) or 1.0

    def bar(value: float | None) -> str:
        if value is None:
            return " "
        return bars[min(max(int((value - low) / span * len(bars)), 0), len(bars) - 1)]

    return "".join(map(bar, values))


def visible(text: str) -> str:
    """Make line breaks, and spaces at the ends, visible in the text of a few tokens."""
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if inner else len(text)
    after = len(text) - before - len(inner)
    return ("␣" * before + inner + "␣" * after).replace("\n", "↵")


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values under dotted names; hashes are shortened, and sections in a list are numbered."""
    for name, value in values.items():
        is_list = isinstance(value, list | tuple) and value and all(isinstance(entry, Mapping) for entry in value)
        inner = {str(index): entry for index, entry in enumerate(value)} if is_list else value
        if isinstance(inner, Mapping):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _leaf(value)


def _leaf(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_leaf, value))
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    text = str(value)
    return text[:16] if len(text) == 64 else text
