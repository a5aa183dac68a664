"""The table of families on the page is what the adapters read."""

import families

from tide_cache.families import FAMILIES


def test_the_table_is_current():
    text = families.PAGE.read_text()
    assert families.with_table(text) == text, "run `make pictures`"
    assert all(f"| `{family.model_types[0]}`" in text for family in FAMILIES.values())
