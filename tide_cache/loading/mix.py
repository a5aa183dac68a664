"""Several caches in one run: which one has the next turn, and their records as one source.

Every turn goes to one of the caches, in proportion to the weights; its turns in a lane follow its own order and
epochs. So a lane of a cache is visited as it would be alone, with the others' samples in between.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from tide_cache.arrays import Int64s, ranges, sums_before
from tide_cache.loading.collate import BatchLayout
from tide_cache.loading.groups import Groups
from tide_cache.loading.order import LaneOrder, Visit
from tide_cache.loading.ready_views import ReadyView
from tide_cache.loading.source import TeacherSource
from tide_cache.loading.window_order import WindowOrder
from tide_cache.records import ViewRecord
from tide_cache.views.random import KeyedRandom

TURNS_PER_BLOCK = 1 << 16
"""Turns drawn from one key. To find a position, the blocks before it are counted once, a millisecond each."""


class MixedOrder:
    """The order in which the samples of several sources are visited.

    A pure function of the sources' orders, the weights and the seed. Turns are drawn independently of each other; the
    share of a source is exact to 2^-24. Sources have the same lanes, and a turn of a lane takes the next turn of that
    lane from its source.
    """

    def __init__(self, orders: Sequence[LaneOrder | WindowOrder], weights: Sequence[float], seed: int):
        """Mix orders.

        Args:
            orders: One per source, each with its own key.
            weights: Positive; only their ratios count.
            seed: Seed of the turns.
        """
        self._orders, self._seed = tuple(orders), seed
        self._keys = [order.key for order in orders]
        self.lanes = orders[0].lanes
        self._edges = np.cumsum(weights)[:-1] / np.sum(weights)
        self._first_sample = sums_before([order.num_samples for order in orders])
        self._num_queues = (self.lanes or 1) * len(orders)
        self._counts_before: list[Int64s] = [np.zeros(self._num_queues, np.int64)]
        self._block = lru_cache(maxsize=2)(self._draw_block)

    @property
    def num_samples(self) -> int:
        """Number of samples of all sources."""
        return int(self._first_sample[-1])

    def visits(self, turns: Sequence[int]) -> list[Visit]:
        """Return the visits of some turns of the endless stream; sample numbers run through the sources."""
        result = []
        for turn in turns:
            number, within = divmod(turn, TURNS_PER_BLOCK)
            block = self._block(number)
            queue = int(block.queue_of_turn[within])
            lane, source = divmod(queue, len(self._orders))
            before = int(self._before(number)[queue]) + int(block.before_in_block[within])
            (visit,) = self._orders[source].visits([before * (self.lanes or 1) + lane])
            result.append(Visit(visit.sample + int(self._first_sample[source]), visit.epoch))
        return result

    def _before(self, block: int) -> Int64s:
        """Turns that each queue had before a block."""
        while len(self._counts_before) <= block:
            queues = self._queues(len(self._counts_before) - 1)
            self._counts_before.append(self._counts_before[-1] + np.bincount(queues, minlength=self._num_queues))
        return self._counts_before[block]

    def _queues(self, block: int) -> Int64s:
        """Return the queue of each turn of a block."""
        random = KeyedRandom("mix", self._seed, block, *self._keys)
        sources = np.searchsorted(self._edges, random.uniform(TURNS_PER_BLOCK), side="right")
        lanes = (block * TURNS_PER_BLOCK + np.arange(TURNS_PER_BLOCK)) % (self.lanes or 1)
        queues: Int64s = lanes * len(self._orders) + sources
        return queues

    def _draw_block(self, block: int) -> "_Block":
        queues = self._queues(block)
        by_queue = np.argsort(queues, kind="stable")
        before = np.empty(TURNS_PER_BLOCK, np.int64)
        before[by_queue] = ranges(0, np.bincount(queues, minlength=self._num_queues))
        return _Block(queues, before)


@dataclass(frozen=True, eq=False)
class _Block:
    """What is drawn at once.

    Attributes:
        queue_of_turn: Of each turn; a queue is one source's part of a lane.
        before_in_block: How many turns of the block the same queue had before it.
    """

    queue_of_turn: Int64s
    before_in_block: Int64s


Answer = TypeVar("Answer")


class MixedSource:
    """Several sources as one: samples are numbered over all of them, and a record says which source it is from."""

    def __init__(self, sources: Sequence[TeacherSource]):
        self._sources = tuple(sources)
        self._first_sample = sums_before([source.groups.num_samples for source in sources]).tolist()

    @property
    def groups(self) -> Groups:
        """Each source as one group: what lies in which is asked of the sources."""
        return Groups.of_sizes(source.groups.num_samples for source in self._sources)

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return this epoch's view of each of the samples, in the given order."""
        return self._in_order(
            samples, lambda number, own: [replace(r, source=number) for r in self._sources[number].records(own, epoch)]
        )

    def ready(self, samples: Sequence[int], epoch: int, layout: BatchLayout, source: int = 0) -> list[ReadyView]:
        """Return the same views, ready for batches; a mix is not in a mix itself."""
        assert source == 0, source
        return self._in_order(
            samples, lambda number, own: self._sources[number].ready(own, epoch, layout, source=number)
        )

    def _in_order(self, samples: Sequence[int], ask: Callable[[int, list[int]], list[Answer]]) -> list[Answer]:
        """Ask each source for its own samples, by their numbers there."""
        of_sample = np.searchsorted(self._first_sample, samples, side="right") - 1
        result: dict[int, Answer] = {}
        for number in np.unique(of_sample).tolist():
            places = np.flatnonzero(of_sample == number).tolist()
            own = [samples[place] - self._first_sample[number] for place in places]
            result |= zip(places, ask(number, own), strict=True)
        return [result[place] for place in range(len(samples))]


def mixed_layout(layouts: Sequence[BatchLayout]) -> BatchLayout:
    """Return the layout for records of several sources, whose ids and block size are the same.

    Its temperatures are all those that any source has, in increasing order.
    """
    temperatures = tuple(sorted({temperature for layout in layouts for temperature in layout.temperatures}))
    first = layouts[0]
    return BatchLayout(first.mask_id, first.pad_id, first.block_size, temperatures=temperatures, sources=tuple(layouts))
