"""The small tools on lists laid end to end say what a loop says, empty lists included."""

from itertools import accumulate

import numpy as np
import pytest

from tide_cache.arrays import evenly, places_in_lists, ranges, sums_before

CASES = ([], [0], [3], [2, 0, 5, 0], [0, 0, 1])


@pytest.mark.parametrize("lengths", CASES)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_lists_laid_end_to_end(lengths, dtype):
    lengths_X = np.array(lengths, dtype)
    first = sums_before(lengths_X)
    assert first.dtype == np.int64
    assert first.tolist() == sums_before(lengths).tolist() == list(accumulate(lengths, initial=0))

    starts = [10 * index for index in range(len(lengths))]
    assert ranges(0, lengths_X).tolist() == [place for length in lengths for place in range(length)]
    assert ranges(np.array(starts, np.int32), lengths_X).tolist() == [
        start + place for start, length in zip(starts, lengths, strict=True) for place in range(length)
    ]

    chosen = list(range(len(lengths)))[::-1]
    assert places_in_lists(lengths_X, np.array(chosen, np.int64)).tolist() == [
        place for index in chosen for place in range(first[index], first[index + 1])
    ]


def test_sums_before_counts_flags():
    assert sums_before(np.array([True, False, True])).tolist() == [0, 1, 1, 2]


def test_evenly_has_both_ends_and_equal_distances():
    assert evenly(28, 4) == [0, 9, 18, 27]
    assert evenly(5, 1) == [0]
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(0, 4) == []
    for count in range(2, 40):
        for wanted in range(2, count + 1):
            found = evenly(count, wanted)
            assert len(set(found)) == wanted
            assert (found[0], found[-1]) == (0, count - 1)
            assert max(np.diff(found)) - min(np.diff(found)) <= 1
