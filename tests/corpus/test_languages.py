"""Which language a row is of: field, then fence, then text that is Python; never a mention of the word."""

import pytest

from tide_cache.corpus.languages import canonical_language, language_of
from tide_cache.records import Message

PYTHON = "import os\n\nprint(os.sep)\n"


def language(text: str, user: str = "", **fields: object) -> str | None:
    return language_of(fields, [Message("user", user), Message("assistant", text)])


@pytest.mark.parametrize("name", ["python", "Python", " py ", "python3", "PY"])
def test_short_forms_are_one_language(name: str) -> None:
    assert canonical_language(name) == "python"
    assert language("no code", language=name) == "python"
    assert language(f"Here:\n```{name.strip()}\nx\n```\n") == "python"


@pytest.mark.parametrize("field", ["language", "lang", "programming_language"])
def test_the_rows_own_field_decides(field: str) -> None:
    assert language(f"```python\n{PYTHON}```", **{field: "C++"}) == "cpp"
    assert language(f"```python\n{PYTHON}```", **{field: None}) == "python"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First:\n```js\nlet x\n```\nthen\n```python\nx\n```", "javascript"),
        ("~~~ rust\nfn main() {}\n~~~", "rust"),
        ("  ```python title='x'\nx\n  ```", "python"),
        (f"```\n{PYTHON}```\nin python", "python"),
        ("```\nls -l\n```\nin python", None),
        ("```python\ncut off in the midd", "python"),
        (PYTHON, "python"),
        ("def f(x):\n    return x\n", "python"),
        ("class A: pass", "python"),
        (r"import re; re.compile('\d')", "python"),
        ("I love python, and import duties are high", None),
        ("Pythons are snakes.\nfrom here on it is cold", None),
        ("x = 1", None),
        ("import Foundation\nlet x: Int = 1", None),
        ("def f(:", None),
        ("import a\x00", None),
        ("import a\n" + "(" * 5000, None),
        ("import a\nx = " + "-" * 50_000 + "1", None),
        ("\n" * 200_000 + "no code", None),
    ],
)
def test_the_assistants_text_decides_without_a_field(text: str, expected: str | None) -> None:
    assert language(text) == expected


def test_what_the_user_writes_does_not_count() -> None:
    assert language("No.", user=f"```python\n{PYTHON}```") is None
