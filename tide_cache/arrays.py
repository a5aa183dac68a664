"""Small tools on numbers: concatenated lists, and members of a range at even distances.

Shape suffixes: X lists (or ranges), I items of all of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Int64s = npt.NDArray[np.int64]


def sums_before(values: npt.NDArray[Any] | Sequence[int]) -> Int64s:
    """Return the sum of the values before each place, and of all: one entry more than there are values.

    For lengths it is where each list begins in the concatenation; of flags, how many are set before each place.
    """
    result = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=result[1:])
    return result


def ranges(starts_X: Ints | int, lengths_X: Ints) -> Int64s:
    """Return the numbers of several ranges, one range after the other [I].

    Args:
        starts_X: First number of each; with 0, each item gets its place in its list.
        lengths_X: How many numbers each has.
    """
    ends_X = np.cumsum(lengths_X, dtype=np.int64)
    shifts_X = starts_X - (ends_X - lengths_X)
    result: Int64s = np.arange(ends_X[-1] if len(ends_X) else 0) + np.repeat(shifts_X, lengths_X)
    return result


def places_in_lists(lengths_X: Ints, chosen_X: Ints) -> Int64s:
    """Return where the items of some lists lie among those of all, laid end to end.

    Args:
        lengths_X: Of all lists.
        chosen_X: Places of the lists wanted, in the order wanted.
    """
    return ranges(sums_before(lengths_X)[:-1][chosen_X], lengths_X[chosen_X])


def evenly(count: int, wanted: int) -> list[int]:
    """Return numbers below `count` at even distances, the first and the last among them.

    Args:
        count: Of all, from 0 on.
        wanted: How many; all where there are no more.
    """
    if wanted >= count:
        return list(range(count))
    return [round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted)]
