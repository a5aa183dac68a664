"""The global order of samples: a pure function of (key, seed, epoch), whatever the number of ranks.

Samples are in groups (the row groups of a cache). An epoch visits the groups in a keyed permutation, one window of
groups at a time, and shuffles the samples inside the window, so that reading stays local. The stream of samples
continues from epoch to epoch without a gap; its whole state is the number of samples consumed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import sums_before
from tide_cache.views.random import KeyedRandom

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Visit:
    """One sample's turn: which sample, and in which epoch."""

    sample: int
    epoch: int


@dataclass(frozen=True)
class SampleOrder:
    """The order in which the samples of a source are visited.

    Attributes:
        group_sizes: Number of samples of each group, in storage order; samples are numbered over all groups.
        key: Name of the data, for example the cache id.
        seed: Seed of the order.
        window_groups: Groups that are shuffled together and held in memory at a time.
    """

    group_sizes: tuple[int, ...]
    key: str
    seed: int
    window_groups: int = 16
    num_samples: int = field(init=False)
    _of_epoch: Callable[[int], Ints] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", sum(self.group_sizes))
        # each order caches its own epochs: those of one cache of a mix must not push out another's
        of_epoch = partial(_epoch_order, self.group_sizes, self.key, self.seed, self.window_groups)
        object.__setattr__(self, "_of_epoch", lru_cache(maxsize=2)(of_epoch))

    def visits(self, start: int, count: int) -> list[Visit]:
        """Return turns `start` to `start + count - 1` of the endless stream."""
        result: list[Visit] = []
        while len(result) < count:
            epoch, place = divmod(start + len(result), self.num_samples)
            samples = self.epoch_order(epoch)[place : place + count - len(result)]
            result += [Visit(sample, epoch) for sample in samples.tolist()]
        return result

    def epoch_order(self, epoch: int) -> Ints:
        """Return the sample numbers of an epoch in the order of their visits, int64, read-only; each once."""
        return self._of_epoch(epoch)


def _epoch_order(group_sizes: tuple[int, ...], key: str, seed: int, window_groups: int, epoch: int) -> Ints:
    random = KeyedRandom("order", key, seed, epoch)
    first_sample = sums_before(group_sizes)
    groups = random.permutation(len(group_sizes))
    windows = []
    for start in range(0, len(groups), window_groups):
        members = [np.arange(first_sample[g], first_sample[g + 1]) for g in groups[start : start + window_groups]]
        samples = np.concatenate(members)
        windows.append(samples[random.permutation(len(samples))])
    result: Ints = np.concatenate(windows)
    result.flags.writeable = False  # every caller gets the same array
    return result


def rank_turns(step: int, global_batch: int, micro_batch: int, rank: int, world_size: int) -> list[range]:
    """Return the turns of each micro-batch of a rank in an optimizer step.

    Together the ranks take exactly turns [step * global_batch, (step + 1) * global_batch).

    Args:
        step: Number of the step, from 0.
        global_batch: Samples per step; a multiple of `micro_batch * world_size`.
        micro_batch: Samples per forward.
        rank: This process.
        world_size: Number of processes.
    """
    first = step * global_batch
    starts: Sequence[int] = range(first + rank * micro_batch, first + global_batch, micro_batch * world_size)
    return [range(start, start + micro_batch) for start in starts]
