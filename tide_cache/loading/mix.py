"""Several caches in one run: which one has the next turn, and their records as one source.

Every turn goes to one of the caches, in proportion to the weights; a cache's turns follow its own order and
epochs. So each cache is visited as it would be alone, with samples of the others in between.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tide_cache.arrays import sums_before
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.order import Ints, SampleOrder, Visit
from tide_cache.loading.source import TeacherSource
from tide_cache.records import ViewRecord
from tide_cache.views.random import KeyedRandom

TURNS_PER_BLOCK = 1 << 16
"""Turns drawn from one key. To find a position, the blocks before it are counted once, a millisecond each."""


class MixedOrder:
    """The order in which the samples of several sources are visited.

    A pure function of the sources' orders, the weights and the seed. Turns are drawn independently of each other; the
    share of a source is exact to 2^-24.
    """

    def __init__(self, orders: Sequence[SampleOrder], weights: Sequence[float], seed: int):
        """Mix orders.

        Args:
            orders: One per source, each with its own key.
            weights: Positive; only their ratios count.
            seed: Seed of the turns.
        """
        self._orders, self._seed = tuple(orders), seed
        self._edges = np.cumsum(weights)[:-1] / np.sum(weights)
        self._first_sample = sums_before([order.num_samples for order in orders])
        self._counts_before: list[Ints] = [np.zeros(len(orders), np.int64)]
        self._block = lru_cache(maxsize=2)(self._draw_block)

    @property
    def num_samples(self) -> int:
        """Number of samples of all sources."""
        return int(self._first_sample[-1])

    def visits(self, start: int, count: int) -> list[Visit]:
        """Return turns `start` to `start + count - 1` of the endless stream; samples are numbered over all sources."""
        sources = self.sources_of(start, count)
        done = self.counts_before(start)
        counts = np.bincount(sources, minlength=len(self._orders))
        streams = [
            iter(order.visits(int(first), int(number)))
            for order, first, number in zip(self._orders, done, counts, strict=True)
        ]
        result = []
        for source in sources.tolist():
            visit = next(streams[source])
            result.append(Visit(visit.sample + int(self._first_sample[source]), visit.epoch))
        return result

    def sources_of(self, start: int, count: int) -> Ints:
        """Return which source has each of turns `start` to `start + count - 1`."""
        blocks = range(start // TURNS_PER_BLOCK, -(-(start + count) // TURNS_PER_BLOCK))
        drawn = [np.zeros(0, np.int64), *(self._block(block) for block in blocks)]
        within = start - blocks.start * TURNS_PER_BLOCK
        return np.concatenate(drawn)[within : within + count]

    def counts_before(self, turn: int) -> Ints:
        """Return how many of the turns before this one each source had."""
        block, within = divmod(turn, TURNS_PER_BLOCK)
        while len(self._counts_before) <= block:
            counts = self._count(self._draw_block(len(self._counts_before) - 1))
            self._counts_before.append(self._counts_before[-1] + counts)
        return self._counts_before[block] + (self._count(self._block(block)[:within]) if within else 0)

    def _draw_block(self, block: int) -> Ints:
        random = KeyedRandom("mix", self._seed, block, *(order.key for order in self._orders))
        return np.searchsorted(self._edges, random.uniform(TURNS_PER_BLOCK), side="right")

    def _count(self, sources: Ints) -> Ints:
        return np.bincount(sources, minlength=len(self._orders))


class MixedSource:
    """Several sources as one: samples are numbered over all of them, and a record says which source it is from."""

    def __init__(self, sources: Sequence[TeacherSource]):
        self._sources = tuple(sources)
        totals = [sum(source.group_sizes) for source in sources]
        self._first_sample = sums_before(totals).tolist()

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Samples of each group, source by source."""
        return tuple(size for source in self._sources for size in source.group_sizes)

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return this epoch's view of each of the samples, in the given order."""
        of_sample = np.searchsorted(self._first_sample, samples, side="right") - 1
        result: dict[int, ViewRecord] = {}
        for number in np.unique(of_sample).tolist():
            places = np.flatnonzero(of_sample == number).tolist()
            own = [samples[place] - self._first_sample[number] for place in places]
            for place, record in zip(places, self._sources[number].records(own, epoch), strict=True):
                result[place] = ViewRecord(record.pair, record.view, record.signal, number)
        return [result[place] for place in range(len(samples))]


def mixed_layout(layouts: Sequence[BatchLayout]) -> BatchLayout:
    """Return the layout for records of several sources, whose ids and block size are the same.

    Its temperatures are all those that any source has, in increasing order.
    """
    temperatures = tuple(sorted({temperature for layout in layouts for temperature in layout.temperatures}))
    first = layouts[0]
    return BatchLayout(first.mask_id, first.pad_id, first.block_size, temperatures=temperatures, sources=tuple(layouts))
