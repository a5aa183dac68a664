"""The page on messages quotes what the code says, and leaves no error out."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tide_cache import errors

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
HOLE = "…"


def _text(node):
    """Return a string of the code with a hole for every value, or None where it is no string."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or HOLE for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_text(left) or HOLE) + (_text(right) or HOLE)
        case ast.Call(func=ast.Name(id="fault_list"), args=[title, *_]):
            return _text(title)
    return None


def _code():
    """Return all strings of the code, and by class the messages of its errors with their places."""
    texts, messages = set(), defaultdict(list)
    for path in sorted([*(ROOT / "tide_cache").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if (text := _text(node)) is not None:
                texts.add(text)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
                message = _text(node.args[0])
                if message is not None and re.search(
                    r"[a-z]{3}", message
                ):  # else made elsewhere, or nothing but values
                    messages[node.func.id].append((f"{path.relative_to(ROOT)}:{node.lineno}", message))
    return texts, messages


TEXTS, MESSAGES = _code()
END = "\0"
ALL_TEXTS = END.join(TEXTS)
"""In one string, so that one search asks all of them."""


def _quotes(section):
    """Return the messages that a section quotes: first cells of its tables."""
    return re.findall(r"^\| `([^`]+)` \| [^|\n]*\S", section, re.MULTILINE)


def _is_quoted_from(quote, text):
    """Tell whether a text has the pieces of a quote, in their order; texts may be several with `END` between them."""
    pieces = [re.escape(piece.strip()) for piece in quote.split(HOLE) if piece.strip(" :.")]
    return re.search(f"[^{END}]*".join(pieces), text) is not None


QUOTES = [quote for section in SECTIONS for quote in _quotes(section)]


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_the_codes(quote):
    assert re.search(r"[a-z]{3}", quote), "a quote of nothing but holes says nothing"
    assert _is_quoted_from(quote, ALL_TEXTS)


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_every_error_is_on_the_page(kind):
    quotes = [quote for section in SECTIONS if f"`{kind}`" in section.split("\n")[0] for quote in _quotes(section)]
    missing = [
        f"{where}: {text}" for where, text in MESSAGES[kind] if not any(_is_quoted_from(q, text) for q in quotes)
    ]
    assert not missing, f"add to the section of {kind} in docs/troubleshooting.md:\n" + "\n".join(missing)


@pytest.mark.parametrize(("name", "kind"), sorted(KINDS.items()))
def test_every_kind_has_its_exit_code_and_section(name, kind):
    row = next(line for line in PAGE.split("\n") if line.startswith("|") and f"`{name}`" in line)
    assert row.startswith(f"| {kind.exit_code}")
    assert any(f"`{name}`" in section.split("\n")[0] for section in SECTIONS)


def test_there_is_something_to_hold():
    assert len(QUOTES) > 120
    assert sum(map(len, MESSAGES.values())) > 140
