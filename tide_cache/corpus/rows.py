"""What every source yields: rows as they lie in the file, before anyone knows what their fields mean."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


class RowFault(ValueError):
    """Why one row cannot be used; what was found and what was expected, without the place."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a source.

    Attributes:
        number: 0-based row number in its source; blank lines do not count, broken ones do.
        line: 1-based line where the row starts, or None where a file has no lines.
        value: The decoded row, of any type, or the fault that kept it from being decoded.
    """

    number: int
    line: int | None
    value: object

    def place_in(self, name: str) -> str:
        """Return where the row is: `name:17`, or `name row 16` (0-based, as in sample ids)."""
        return f"{name} row {self.number}" if self.line is None else f"{name}:{self.line}"


@dataclass(frozen=True, slots=True)
class Source:
    """One file, saved dataset or hub split.

    Attributes:
        name: File or hub name, which enters sample ids: never a whole path, so a corpus can be moved.
        label: Its location, for messages.
        rows: Starts one pass over the rows; raises CorpusError when the source as a whole is unreadable.
    """

    name: str
    label: str
    rows: Callable[[], Iterator[RawRow]]


def kind_of(value: object) -> str:
    """Name a decoded value's type in JSON's words, with its article."""
    kinds: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), f"a value of type {type(value).__name__}")
