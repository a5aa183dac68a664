"""The order of runs that began before there were lanes, for their checkpoints.

An epoch visits the groups in a keyed permutation, takes a window of them at a time, and shuffles the samples inside the
window. Every rank takes its micro-batches from the whole window, so every rank decodes all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from tide_cache.arrays import Int64s, sums_before
from tide_cache.loading.order import Visit
from tide_cache.views.random import KeyedRandom


@dataclass(frozen=True)
class WindowOrder:
    """The order in which the samples of a source are visited.

    Attributes:
        group_sizes: Samples of each group, in storage order; sample numbers run through them.
        key: Name of the data, for example the cache id.
        seed: Of the order.
        window_groups: Groups that are shuffled together and held in memory at a time.
    """

    group_sizes: tuple[int, ...]
    key: str
    seed: int
    window_groups: int = 16
    num_samples: int = field(init=False)
    _of_epoch: Callable[[int], Int64s] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", sum(self.group_sizes))
        # Each order holds its own epochs: those of one cache of a mix must not push out another's.
        of_epoch = partial(_epoch_order, self.group_sizes, self.key, self.seed, self.window_groups)
        object.__setattr__(self, "_of_epoch", lru_cache(maxsize=2)(of_epoch))

    @property
    def lanes(self) -> None:
        """There are none: every rank needs all groups."""
        return None

    def visits(self, turns: Sequence[int]) -> list[Visit]:
        """Return the visits of some turns of the endless stream."""
        epochs = [divmod(turn, self.num_samples) for turn in turns]
        return [Visit(int(self.epoch_order(epoch)[place]), epoch) for epoch, place in epochs]

    def epoch_order(self, epoch: int) -> Int64s:
        """Return the sample numbers of an epoch in the order of their visits, int64, read-only; each once."""
        return self._of_epoch(epoch)


def _epoch_order(group_sizes: tuple[int, ...], key: str, seed: int, window_groups: int, epoch: int) -> Int64s:
    random = KeyedRandom("order", key, seed, epoch)
    first_sample = sums_before(group_sizes)
    groups = random.permutation(len(group_sizes))
    windows = []
    for start in range(0, len(groups), window_groups):
        members = [np.arange(first_sample[g], first_sample[g + 1]) for g in groups[start : start + window_groups]]
        samples = np.concatenate(members)
        windows.append(samples[random.permutation(len(samples))])
    result: Int64s = np.concatenate(windows)
    result.flags.writeable = False  # every caller gets the same array
    return result
