"""Spellings that were found before, in arrays: a hash table that is asked for many tuples at once.

A dictionary of tuples is asked in Python, one by one, which takes longer than all else about candidates of chunks.

Shape suffixes: J tuples asked for, X tuples remembered, M tokens of a tuple, F tokens of all spellings, concatenated.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Int64s, Ints, ranges, sums_before

_MIX = np.uint64(0x9E3779B97F4A7C15)


class Remembered:
    """Tuples of one length, numbered in the order in which they came, each with its spelling."""

    def __init__(self, length: int) -> None:
        """Remember nothing yet.

        Args:
            length: Tokens of a tuple.
        """
        self._count = self._num_ids = 0
        self._tuples_XM = np.zeros((1, length), np.int64)
        self._starts_X, self._sizes_X = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._ids_F = np.zeros(1, np.int32)
        self._slots = np.full(2, -1, np.int64)

    def __len__(self) -> int:
        """Return how many there are."""
        return self._count

    def find(self, tuples_JM: Ints) -> Int64s:
        """Return the numbers of tuples, -1 where one is not remembered."""
        place_J = self._first_places(tuples_JM)
        number_J: Int64s = self._slots[place_J]
        left_J = np.flatnonzero(~self._is_settled(number_J, tuples_JM))
        while len(left_J):
            place_J[left_J] = self._next(place_J[left_J])
            number_J[left_J] = self._slots[place_J[left_J]]
            left_J = left_J[~self._is_settled(number_J[left_J], tuples_JM[left_J])]
        return number_J

    def add(self, tuples: Sequence[tuple[int, ...]], spelled: Sequence[Sequence[int]]) -> None:
        """Remember tuples that differ, and that were not remembered.

        Args:
            tuples: The tuples.
            spelled: Their spellings.
        """
        ids = np.fromiter(chain.from_iterable(spelled), np.int32)
        sizes = np.fromiter(map(len, spelled), np.int64, len(spelled))
        before, self._count = self._count, self._count + len(tuples)
        first, self._num_ids = self._num_ids, self._num_ids + len(ids)
        self._tuples_XM = _with_more(self._tuples_XM, before, np.array(tuples, np.int64).reshape(len(tuples), -1))
        self._starts_X = _with_more(self._starts_X, before, first + sums_before(sizes)[:-1])
        self._sizes_X = _with_more(self._sizes_X, before, sizes)
        self._ids_F = _with_more(self._ids_F, first, ids)
        if 2 * self._count > len(self._slots):
            self._slots = np.full(2 * _power_of_two(self._count), -1, np.int64)
            before = 0
        self._place(np.arange(before, self._count))

    def spellings(self, number_J: Int64s) -> tuple[npt.NDArray[np.int32], Int64s]:
        """Return the spellings of tuples, by number: their tokens, end to end, and how many each has."""
        sizes_J = self._sizes_X[number_J]
        return self._ids_F[ranges(self._starts_X[number_J], sizes_J)], sizes_J

    def _place(self, number_X: Int64s) -> None:
        """Give tuples the first free slots; of several that meet at one, the others go on."""
        place_X = self._first_places(self._tuples_XM[number_X])
        while len(number_X):
            is_free_X = self._slots[place_X] < 0
            self._slots[place_X[is_free_X]] = number_X[is_free_X]
            is_left_X = self._slots[place_X] != number_X
            number_X, place_X = number_X[is_left_X], self._next(place_X[is_left_X])

    def _first_places(self, tuples_JM: Ints) -> Int64s:
        key_J = np.zeros(len(tuples_JM), np.uint64)
        for tokens_J in tuples_JM.T:
            key_J = (key_J + tokens_J.astype(np.uint64)) * _MIX
        bits = len(self._slots).bit_length() - 1
        return (key_J >> np.uint64(64 - bits)).astype(np.int64)

    def _next(self, place_J: Int64s) -> Int64s:
        return (place_J + 1) & (len(self._slots) - 1)

    def _is_settled(self, number_J: Int64s, tuples_JM: Ints) -> npt.NDArray[np.bool_]:
        """Whether a slot is free, or has the tuple itself."""
        is_equal_J = np.logical_and.reduce([self._tuples_XM[number_J, m] == of_J for m, of_J in enumerate(tuples_JM.T)])
        settled: npt.NDArray[np.bool_] = (number_J < 0) | is_equal_J
        return settled


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 1).bit_length()


def _with_more(array: Any, used: int, more: Any) -> Any:
    """Return an array with more behind the entries used; it has twice as many as before where it had no room."""
    end = used + len(more)
    if end > len(array):
        grown = np.zeros((_power_of_two(end), *array.shape[1:]), array.dtype)
        grown[:used] = array[:used]
        array = grown
    array[used:end] = more
    return array
