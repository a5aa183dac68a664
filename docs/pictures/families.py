"""Writes the table of families into docs/teachers.md, from what the adapters read: `make pictures`."""

from pathlib import Path

from tide_cache.reporting.family_table import COLUMNS, as_markdown, family_rows

PAGE = Path(__file__).parent.parent / "teachers.md"
BEGIN, END = "<!-- table of families: make pictures -->\n", "<!-- end of the table -->\n"


def with_table(text: str) -> str:
    """Give a page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{as_markdown(COLUMNS, family_rows())}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
