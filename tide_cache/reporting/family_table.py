"""The table of what is supported, as text: for `doctor --teachers` and for docs/teachers.md."""

import html
from collections.abc import Sequence

from tide_cache.families import FAMILIES, Family

COLUMNS = (
    *("model_type", "published", "served by", "contexts", "logits", "mask token", "block size", "bits, device_map"),
    *("student too", "licence"),
)


def family_rows() -> list[tuple[str, ...]]:
    """Return a row of text for each family; code is in backquotes."""
    return [_row(family) for family in FAMILIES.values()]


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for the docs; a bar in a cell of code would end the cell."""
    lines = [columns, ["---"] * len(columns), *([_cell(text) for text in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(family: Family) -> tuple[str, ...]:
    others = {name for other in FAMILIES.values() if other is not family for name in other.model_types}
    shares = not others.isdisjoint(family.model_types)
    names = ", ".join(f"`{name}`" for name in family.model_types)
    if family.native == "causal":
        contexts = "causal; block, full once trained"
    else:
        contexts = ", ".join(sorted(family.contexts, key=lambda context: context != family.native))
    mask = family.mask_text if family.mask_id is None else f"{family.mask_text}, id {family.mask_id}"
    return (
        f"{names} with `{family.architectures[0]}`" if shares else names,
        family.models,
        family.shape,
        contexts,
        "shifted" if family.is_shifted else "own position",
        mask,
        f"`{family.block_field}` of config.json" if family.block_field else "the run's",
        "yes" if family.is_stock else "no",
        "yes" if family.is_student else "no",
        family.licence,
    )


def _cell(text: str) -> str:
    parts = text.split("`")
    code = [
        f"<code>{html.escape(part).replace('|', '&#124;')}</code>" if "|" in part else f"`{part}`" for part in parts
    ]
    return "".join(code[i] if i % 2 else part for i, part in enumerate(parts))
