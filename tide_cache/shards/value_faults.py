"""How a broken law of the format is reported: column, row, and what is wrong."""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]


class ValueFault(Exception):
    """A value breaks a law. Callers turn it into an error that names the shard."""

    def __init__(self, column: str, row: int, problem: str) -> None:
        super().__init__(problem)
        self.column = column
        self.row = row
        self.problem = problem


def require(name: str, is_lawful: npt.NDArray[np.bool_], row_of: Ints | None, problem: str) -> None:
    """Raise the first fault, if there is one.

    Args:
        name: Column to test.
        is_lawful: Whether each tested value obeys the law.
        row_of: Row of each tested value; None when each row was tested once.
        problem: What is wrong with a value that does not.

    Raises:
        ValueFault: A value breaks the law.
    """
    if is_lawful.all():
        return
    first = int(np.argmin(is_lawful))
    raise ValueFault(name, first if row_of is None else int(row_of[first]), problem)


def require_lengths(name: str, found_S: Ints, expected_S: Ints, of_what: str) -> None:
    """Raise the first fault of a list in a column whose length is not the expected one.

    Args:
        name: Column to test.
        found_S: Length of its list in each row.
        expected_S: The length expected.
        of_what: What has the expected length, for the message.

    Raises:
        ValueFault: A length differs.
    """
    require(name, found_S == expected_S, None, f"the length differs from {of_what}")
