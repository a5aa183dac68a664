"""What is checked and rounded of many short lists, laid end to end; in blocks that stay in a processor's cache.

A whole row group has millions of values. One pass over all of them after another moves them through memory each time,
and a copy of them is memory that the system has to clear first.

Shape suffixes: X lists, I items of all of them, B lists of a block, K items of its longest list.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Ints, sums_before
from tide_cache.records import Bools, Float32s, UInt32s

BLOCK = 1 << 15
"""Items of a block: 128 KiB of them, and room for what is made of them."""

NO_ID = np.iinfo(np.uint32).max


def unordered_items(values_I: Float32s, counts_X: Ints) -> Bools:
    """Return which items but the first are greater than the one before in their list [I - 1]."""
    rises: Bools = values_I[1:] > values_I[:-1]
    if rises.any():  # between two lists it is lawful
        starts_X = sums_before(counts_X)[:-1]
        rises[starts_X[(starts_X > 0) & (starts_X < len(values_I))] - 1] = False
    return rises


def lists_with_twins(ids_I: UInt32s, counts_X: Ints) -> Ints:
    """Return the lists in which an id occurs twice; sorting each apart takes a seventh of the time of one sort."""
    found: list[Ints] = [np.zeros(0, np.int64)]
    for lists, items in blocks(counts_X):
        ids_BK = _as_matrix(ids_I[items], counts_X[lists])
        ids_BK.sort(axis=1)
        flat = ids_BK.reshape(-1)
        places = np.flatnonzero(flat[1:] == flat[:-1])  # nearly always none
        within = places[(places + 1) % ids_BK.shape[1] != 0]
        found.append(lists.start + np.unique(within // ids_BK.shape[1]))
    return np.concatenate(found)


def probabilities(logprobs_I: Float32s, counts_X: Ints) -> Float32s:
    """Return the sum of probabilities of each list, in single precision.

    It is not a product with ones: the threads of a BLAS wait for each other under full load, which doubled the time.
    """
    sums_X = np.zeros(len(counts_X), np.float32)
    for lists, items in blocks(counts_X):
        sums_X[lists] = sums(np.exp(logprobs_I[items]), counts_X[lists], np.float32)
    return sums_X


def sums(values_I: npt.NDArray[np.float32], counts_X: Ints, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """Return the sum of each list."""
    sums_X = np.zeros(len(counts_X), dtype)
    if len(values_I):
        starts_X = sums_before(counts_X)[:-1]
        # an empty list would get the first value of the next one
        sums_X[counts_X > 0] = np.add.reduceat(values_I, starts_X[counts_X > 0], dtype=dtype)
    return sums_X


def blocks(counts_X: Ints) -> Iterator[tuple[slice, slice]]:
    """Yield runs of lists with at most `BLOCK` items together, or a longer list alone, and the place of these items.

    Every item is in one of them; empty lists may be in none.
    """
    before_X = sums_before(counts_X)
    first, total = 0, int(before_X[-1])
    while (start := int(before_X[first])) < total:
        end = max(first + 1, int(np.searchsorted(before_X, start + BLOCK, side="right")) - 1)
        if before_X[end] > start:
            yield slice(first, end), slice(start, int(before_X[end]))
        first = end


def round_to_half(values_I: Float32s) -> None:
    """Round to the values of float16 in place, as numpy's conversion does; that takes several times as long.

    Half of the last bit kept is added to the bit pattern, or a little less where that bit is 0: ties go to even.
    """
    bits_I = values_I.view(np.uint32)
    scratch = np.empty(min(BLOCK, len(bits_I)), np.uint32)
    for start in range(0, len(bits_I), BLOCK):
        bits, values = bits_I[start : start + BLOCK], values_I[start : start + BLOCK]
        made = scratch[: len(bits)]
        np.bitwise_and(bits, 0x7FFFFFFF, out=made)
        made -= np.uint32(_SMALLEST)
        special = np.flatnonzero(made >= _LARGEST - _SMALLEST)
        with np.errstate(over="ignore"):
            rounded = values[special].astype(np.float16).astype(np.float32)
        np.right_shift(bits, 13, out=made)
        made &= 1
        made += np.uint32(0xFFF)
        bits += made
        bits &= np.uint32(0xFFFFE000)
        values[special] = rounded


_SMALLEST, _LARGEST = (int(np.float32(x).view(np.uint32)) for x in (2.0**-14, 65520))
"""Bit patterns of the smallest number that a float16 holds in full precision, and of the first that it cannot hold."""


def _as_matrix(ids_I: UInt32s, counts_B: Ints) -> UInt32s:
    """Copy lists into the rows of a matrix [B, K]; what is left of a row is filled with numbers that are no ids."""
    width = int(counts_B.max())
    if (counts_B == width).all():  # as at a fixed k
        return ids_I.reshape(len(counts_B), width).copy()
    places_K = np.arange(width, dtype=np.uint32)
    is_inside_BK = places_K < counts_B[:, None]
    result = np.where(is_inside_BK, np.uint32(0), NO_ID - places_K)
    result[is_inside_BK] = ids_I
    return result
