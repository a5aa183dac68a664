"""The global order of samples: a pure function of (key, seed, epoch), whatever the number of ranks.

Samples lie in groups (the row groups of a cache). An epoch lays its groups end to end in a keyed permutation, each with
its samples shuffled, and cuts the whole into lanes of equal length. Turn t comes from lane t mod C. A rank r of W takes
the turns t with t mod W = r, so it reads the lanes r mod W and no others. The stream of turns goes on from epoch to
epoch without a gap; its whole state is the number of turns taken.

Neighbouring lanes begin or end in the same group. They go through it at the same time, since every other lane runs
backwards, and nearly always on the same rank; docs/decisions/lanes.md says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from tide_cache.arrays import Int64s, sums_before
from tide_cache.loading.groups import Groups
from tide_cache.loading.permutation import KeyedPermutation
from tide_cache.views.random import KeyedRandom

HELD_EPOCHS = 8
"""In a mix the lanes of one source may be some epochs apart."""
PLACES_PER_BLOCK = 1024
"""Groups whose sizes are summed at once. What is kept of a long permutation is one sum for each block."""


@dataclass(frozen=True)
class Visit:
    """One sample's turn: which sample, and in which epoch."""

    sample: int
    epoch: int


class Order(Protocol):
    """An endless stream of turns."""

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""

    @property
    def lanes(self) -> int | None:
        """Number of lanes, a multiple of the number of ranks; None where every rank needs all groups."""

    def visits(self, turns: Sequence[int]) -> list[Visit]:
        """Return the visits of some turns of the endless stream."""


class LaneOrder:
    """The order in which the samples of a source are visited."""

    def __init__(self, groups: Groups, key: str, seed: int, lanes: int):
        """Compute nothing yet.

        Args:
            groups: Of the source.
            key: Name of the data, for example the cache id.
            seed: Of the order.
            lanes: Number of lanes, C.
        """
        self.key, self.lanes, self.num_samples = key, lanes, groups.num_samples
        self._epoch = lru_cache(HELD_EPOCHS)(lambda epoch: _Epoch(groups, key, seed, lanes, epoch))

    def visits(self, turns: Sequence[int]) -> list[Visit]:
        """Return the visits of some turns of the endless stream."""
        epochs = ((turn, turn // self.num_samples) for turn in turns)
        return [Visit(self._epoch(epoch).sample(turn), epoch) for turn, epoch in epochs]


class _Epoch:
    """The lanes of one epoch, computed where they are looked at."""

    def __init__(self, groups: Groups, key: str, seed: int, lanes: int, epoch: int):
        self._groups, self._key = groups, (key, seed, epoch)
        self._permutation = KeyedPermutation(groups.num_groups, "lanes", *self._key)
        num_samples = groups.num_samples
        first_turn = epoch * num_samples
        # Lane l has the turns of this epoch that are l mod C; their number is the same for all, or one less.
        offset_C = (np.arange(lanes) - first_turn) % lanes
        self._count_C = np.maximum(0, -(-(num_samples - offset_C) // lanes)).tolist()
        self._first_turn_C = (first_turn + offset_C).tolist()
        place_C = lane_places(lanes)
        by_place = np.argsort(place_C)
        self._start_C = sums_before(np.array(self._count_C)[by_place])[place_C].tolist()
        self._is_forward_C = (place_C % 2 == 0).tolist()
        self._lanes = lanes
        num_blocks = -(-groups.num_groups // PLACES_PER_BLOCK)
        self._block_start_B = sums_before([int(self._sizes(block).sum()) for block in range(num_blocks)])
        self._ends = lru_cache(maxsize=2 * lanes)(self._ends_of_block)
        self._samples = lru_cache(maxsize=2 * lanes)(self._samples_of_group)
        self._open: dict[int, tuple[int, int, Int64s]] = {}
        """For each lane the group that it is in: where this begins and ends in the epoch, and its samples."""

    def sample(self, turn: int) -> int:
        """Return the sample of a turn of this epoch."""
        lane = turn % self._lanes
        number = (turn - self._first_turn_C[lane]) // self._lanes
        place = self._start_C[lane] + (number if self._is_forward_C[lane] else self._count_C[lane] - 1 - number)
        start, end, samples = self._open.get(lane, (0, 0, None))
        if not start <= place < end:
            start, end, samples = self._open[lane] = self._group_at(place)
        assert samples is not None
        return int(samples[place - start])

    def _group_at(self, place: int) -> tuple[int, int, Int64s]:
        block = int(np.searchsorted(self._block_start_B, place, side="right")) - 1
        ends = self._ends(block)
        within = int(np.searchsorted(ends, place, side="right"))
        group = int(self._permutation(np.array([block * PLACES_PER_BLOCK + within]))[0])
        samples = self._samples(group)
        return int(ends[within]) - len(samples), int(ends[within]), samples

    def _sizes(self, block: int) -> Int64s:
        first = block * PLACES_PER_BLOCK
        places = np.arange(first, min(first + PLACES_PER_BLOCK, self._groups.num_groups))
        start_G, end_G = self._groups.spans(self._permutation(places))
        return end_G - start_G

    def _ends_of_block(self, block: int) -> Int64s:
        return int(self._block_start_B[block]) + np.cumsum(self._sizes(block))

    def _samples_of_group(self, group: int) -> Int64s:
        (start,), (end,) = self._groups.spans(np.array([group]))
        return int(start) + KeyedRandom("lane group", *self._key, group).permutation(int(end - start))


def lane_places(lanes: int) -> Int64s:
    """Return the place of each lane in the epoch: those that share a rank lie together, for most numbers of ranks.

    These are 2, 4, 8 and so on where they divide `lanes`; in general the products of its smallest prime factors.
    """
    place_C, number_C, size = np.zeros(lanes, np.int64), np.arange(lanes), lanes
    for factor in _prime_factors(lanes):
        size //= factor
        place_C += number_C % factor * size
        number_C //= factor
    return place_C


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        if number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        else:
            divisor += 1
    return factors
