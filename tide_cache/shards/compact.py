"""The codec `compact`: the same ids and log-probs as `plain`, to the last bit, in about three quarters of the bytes.

Zstd encodes bytes one by one, each block of a stream by how often each byte occurs in it. So ids and log-probs are cut
into bytes, and similar bytes are brought together:

- ids: the low byte of a frequent id is far from uniform, that of a rare one is not. Low bytes are sorted by the size of
  the bits above them, which are stored first.
- log-probs: they fall within a list, so the float16 bit patterns rise a little at each step. The size of a step depends
  on the rank, so the steps are sorted by rank.

Both orders follow from what is read before, so they are not stored. The streams belong to the row group as a whole: a
row's share is as long as its list, but only all shares together can be decoded.

Shape suffixes: E ids or log-probs of a row group, R lists of log-probs, B values of a block.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import sums_before
from tide_cache.records import Float32s, UInt32s
from tide_cache.shards.columns import Column, Columns, Ragged, ragged
from tide_cache.shards.value_faults import Ints, require, require_lengths
from tide_cache.signal_table import CHUNKS, PROJECTED, TAIL, TOPK

Bytes = npt.NDArray[np.uint8]
UInt16s = npt.NDArray[np.uint16]

LISTS = tuple(
    (part.counts.column, *(field.column for field in part.having("teacher id", "student id", "rounded logprob")))
    for part in (TOPK, TAIL, CHUNKS, PROJECTED)
)
"""Columns of counts, ids and log-probs that belong together."""

ESCAPE = 255
"""High byte of an id whose upper 24 bits do not fit a byte; they are then in the wide column."""

SIZES = np.array([1, 2, 4, 8, 16, 32, 64, 128], np.uint8)
"""Smallest high byte of each class except the first; a class is a number of bits, 0 to 8."""

FLOATS = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""The value of every float16 bit pattern; a lookup takes half the time of a conversion."""

BLOCK = 1 << 14
"""How many ids are sorted at once; few enough to stay in a processor's cache."""


def pack(columns: Columns) -> dict[str, Column]:
    """Return the columns of one row group with packed ids and log-probs.

    Args:
        columns: The plain columns by name; log-probs are values of float16.
    """
    result = dict(columns)
    for counts_name, ids_name, logprobs_name in LISTS:
        if ids_name not in columns:
            continue
        counts, ids, logprobs = (ragged(columns, name) for name in (counts_name, ids_name, logprobs_name))
        del result[ids_name], result[logprobs_name]
        high_E, wide_W, low_E = split_ids(ids.values)
        step_E = steps_by_rank(logprobs.values, counts.values)
        result |= {
            f"{ids_name}_high": Ragged(ids.offsets, high_E),
            f"{ids_name}_wide": Ragged(np.searchsorted(escapes(high_E), ids.offsets).astype(np.int32), wide_W),
            f"{ids_name}_low": Ragged(ids.offsets, low_E),
            f"{logprobs_name}_high": Ragged(logprobs.offsets, (step_E >> 8).astype(np.uint8)),
            f"{logprobs_name}_low": Ragged(logprobs.offsets, step_E.astype(np.uint8)),
        }
    return result


def unpack(columns: Columns) -> dict[str, Column]:
    """Return the plain columns of one row group.

    Args:
        columns: The packed columns by name.

    Raises:
        ValueFault: Columns contradict each other, and cannot be unpacked.
    """
    result = dict(columns)
    for counts_name, ids_name, logprobs_name in LISTS:
        if f"{ids_name}_high" not in columns:
            continue
        high, wide, low = (_popped(result, f"{ids_name}_{part}") for part in ("high", "wide", "low"))
        step_high, step_low = (_popped(result, f"{logprobs_name}_{part}") for part in ("high", "low"))
        counts = ragged(columns, counts_name)
        escapes_W = escapes(high.values)
        _check_ids(ids_name, high, escapes_W, wide, low)
        _check_steps(logprobs_name, step_high, step_low, counts_name, counts)
        result[ids_name] = Ragged(high.offsets, join_ids(high.values, escapes_W, wide.values, low.values))
        step_E = np.left_shift(step_high.values, 8, dtype=np.uint16)
        step_E |= step_low.values
        result[logprobs_name] = Ragged(step_high.offsets, logprobs_of_steps(step_E, counts.values))
    return result


def split_ids(ids_E: UInt32s) -> tuple[Bytes, UInt32s, Bytes]:
    """Split ids into high bytes, the upper 24 bits of those with an escape there, and sorted low bytes."""
    upper_E = ids_E >> np.uint32(8)
    high_E = np.minimum(upper_E, ESCAPE).astype(np.uint8)
    low_E, sorted_E = ids_E.astype(np.uint8), np.empty(len(ids_E), np.uint8)
    for block, order_B, shares in _sorted_blocks(high_E):
        low_B, done = low_E[block][order_B], 0
        for share in shares:
            sorted_E[share] = low_B[done : (done := done + share.stop - share.start)]
    return high_E, upper_E[high_E == ESCAPE], sorted_E


def join_ids(high_E: Bytes, escapes_W: Ints, wide_W: UInt32s, sorted_E: Bytes) -> UInt32s:
    """Invert `split_ids`; `escapes_W` are the places of the escapes among the high bytes."""
    low_E = np.empty_like(sorted_E)
    for block, order_B, shares in _sorted_blocks(high_E):
        low_E[block][order_B] = np.concatenate([sorted_E[share] for share in shares])
    ids_E = np.left_shift(high_E, 8, dtype=np.uint32)
    ids_E[escapes_W] = wide_W << np.uint32(8)
    ids_E |= low_E
    return ids_E


def escapes(high_E: Bytes) -> Ints:
    """Return the places of the high bytes that mark a wide value."""
    return np.flatnonzero(high_E == ESCAPE)


def steps_by_rank(logprobs_E: Float32s, counts_R: Ints) -> UInt16s:
    """Return the step to each float16 bit pattern, modulo 2^16, sorted by rank; each list starts at zero."""
    halves_E = logprobs_E.astype(np.float16)
    assert np.array_equal(halves_E, logprobs_E), "log-probs that a float16 cannot hold"
    bits_E = halves_E.view(np.uint16)
    steps_E = np.diff(bits_E, prepend=np.uint16(0))
    starts_R = sums_before(counts_R)[:-1][counts_R > 0]
    steps_E[starts_R] = bits_E[starts_R]
    sorted_E = np.empty_like(steps_E)
    for share, places in _ranks(counts_R):
        sorted_E[share] = steps_E[places]
    return sorted_E


def logprobs_of_steps(sorted_E: UInt16s, counts_R: Ints) -> Float32s:
    """Invert `steps_by_rank`."""
    bits_E, bits_R = np.empty_like(sorted_E), np.zeros(len(counts_R), np.uint16)
    for share, places in _ranks(counts_R):
        bits_R = bits_R[: len(places)]
        bits_R += sorted_E[share]
        bits_E[places] = bits_R
    return np.take(FLOATS, bits_E, mode="wrap")  # no pattern is out of range, and this mode does not check


def _sorted_blocks(high_E: Bytes) -> Iterator[tuple[slice, Ints, list[slice]]]:
    """Yield for each block its place, its order by high byte, and its shares of the stream.

    The stream has class after class, and inside a class block after block; a block's share is sorted by high byte.
    """
    next_of_class = [0, *(len(high_E) - np.count_nonzero(high_E >= size) for size in SIZES)]
    for start in range(0, len(high_E), BLOCK):
        block = slice(start, start + BLOCK)
        high_B = high_E[block]
        order_B = np.argsort(high_B, kind="stable")
        bounds = [0, *np.searchsorted(high_B, SIZES, sorter=order_B).tolist(), len(high_B)]
        shares = []
        for size, (first, end) in enumerate(pairwise(bounds)):
            shares.append(slice(next_of_class[size], next_of_class[size] + end - first))
            next_of_class[size] += end - first
        yield block, order_B, shares


def _ranks(counts_R: Ints) -> Iterator[tuple[slice, Ints]]:
    """Yield for each rank its share of the stream, and the places of its values; the longest lists come first."""
    order_R = np.argsort(-counts_R.astype(np.int64), kind="stable")
    places = sums_before(counts_R)[order_R]
    longer = len(counts_R) - np.searchsorted(np.sort(counts_R), np.arange(counts_R.max(initial=0)), side="right")
    done = 0
    for num_lists in longer.tolist():
        places = places[:num_lists]
        yield slice(done, done + num_lists), places
        places = places + 1
        done += num_lists


def _check_ids(name: str, high: Ragged, escapes_W: Ints, wide: Ragged, low: Ragged) -> None:
    require_lengths(f"{name}_low", low.lengths, high.lengths, f"{name}_high")
    escapes_S = np.diff(np.searchsorted(escapes_W, high.offsets))
    require_lengths(f"{name}_wide", wide.lengths, escapes_S, f"the number of {ESCAPE} in {name}_high")
    is_lawful = (wide.values >= ESCAPE) & (wide.values < 1 << 24)
    require(f"{name}_wide", is_lawful, wide.row_of_value, f"a value is outside {ESCAPE} to 2^24 - 1")


def _check_steps(name: str, high: Ragged, low: Ragged, counts_name: str, counts: Ragged) -> None:
    require_lengths(f"{name}_low", low.lengths, high.lengths, f"{name}_high")
    require(counts_name, counts.values >= 0, counts.row_of_value, "a count is negative")
    before = sums_before(counts.values)
    total_S = np.diff(before[counts.offsets])
    require_lengths(f"{name}_high", high.lengths, total_S, f"the sum of {counts_name}")


def _popped(columns: dict[str, Column], name: str) -> Ragged:
    column = ragged(columns, name)
    del columns[name]
    return column
