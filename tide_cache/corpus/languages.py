"""Which programming language a row is about, for `lang:python` (pure).

A search for the word "python" in the text would keep every row that mentions the language or the snake, so the answer
comes from a field of the row, else from a fence, else from text that really is Python.
"""

import ast
import re
import warnings
from collections.abc import Sequence

from tide_cache.corpus.shapes import LANGUAGE_FIELDS
from tide_cache.records import Message

_ALIASES = {
    "py": "python",
    "python2": "python",
    "python3": "python",
    "js": "javascript",
    "ts": "typescript",
    "c++": "cpp",
    "cs": "csharp",
    "c#": "csharp",
    "golang": "go",
    "rs": "rust",
    "rb": "ruby",
    "sh": "bash",
    "shell": "bash",
}
_FENCE = re.compile(
    r"^[ \t]*(?P<mark>`{3,}|~{3,})[ \t]*(?P<tag>[^\s`]*)[^\n`]*\n(?P<body>.*?)(?:^[ \t]*(?P=mark)|\Z)", re.M | re.S
)
_MAYBE_PYTHON = re.compile(r"^[ \t]*(?:async\s+def|def|class|import|from)\s", re.M)
_TELLING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def canonical_language(name: str) -> str:
    """Lower-case a language's name and resolve common short forms: `py`, `python3` and `Python` are `python`."""
    lowered = name.strip().lower()
    return _ALIASES.get(lowered, lowered)


def language_of(row: object, messages: Sequence[Message]) -> str | None:
    """Return the language of a row, or None when nothing says it.

    The row's own `language`, `lang` or `programming_language` field decides where there is one; else the tag of the
    first fenced code block of the assistant; else the assistant's text (or the untagged block), when it parses as
    Python and defines or imports something.

    Args:
        row: The decoded row.
        messages: Its messages.
    """
    for name in LANGUAGE_FIELDS:
        field = row.get(name) if isinstance(row, dict) else None
        if isinstance(field, str) and field.strip():
            return canonical_language(field)
    texts = [message.content for message in messages if message.role == "assistant"]
    for text in texts:
        if fence := _FENCE.search(text):
            if fence["tag"]:
                return canonical_language(fence["tag"])
            return "python" if _is_python(fence["body"]) else None
    return "python" if any(_is_python(text) for text in texts) else None


def _is_python(text: str) -> bool:
    if not _MAYBE_PYTHON.search(text):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the corpus's invalid escapes are not the user's concern
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, _TELLING) for node in ast.walk(tree))
