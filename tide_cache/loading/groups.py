"""The groups in which a source's samples lie, as few numbers as there are shards.

Samples and groups are numbered through in storage order. A run is a shard: groups of one size, the last one shorter.

Shape suffixes: X runs, G groups or S samples that are asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from tide_cache.arrays import Int64s, Ints, sums_before


@dataclass(frozen=True, eq=False)
class Groups:
    """Where groups begin and end.

    Attributes:
        first_sample_X: First sample of each run, and the end of all.
        first_group_X: First group of each run, and the end of all.
        group_samples: Samples of every group but the last of its run.
    """

    first_sample_X: Int64s
    first_group_X: Int64s
    group_samples: int

    @classmethod
    def of_runs(cls, samples_X: Iterable[int], group_samples: int) -> Self:
        """Cut runs of samples into groups."""
        samples = np.fromiter(samples_X, np.int64)
        return cls(sums_before(samples), sums_before(-(-samples // group_samples)), group_samples)

    @classmethod
    def of_sizes(cls, sizes: Iterable[int]) -> Self:
        """Take groups of any sizes, each a run of its own; an empty one has no number."""
        samples = list(sizes)
        return cls.of_runs(samples, max([1, *samples]))

    @property
    def num_samples(self) -> int:
        """Samples of all groups."""
        return int(self.first_sample_X[-1])

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return int(self.first_group_X[-1])

    def places(self, group_G: Ints) -> tuple[Int64s, Int64s]:
        """Return the run of each group, and its number in it."""
        run_G = np.searchsorted(self.first_group_X, group_G, side="right") - 1
        return run_G, group_G - self.first_group_X[run_G]

    def spans(self, group_G: Ints) -> tuple[Int64s, Int64s]:
        """Return the first sample of each group, and its end."""
        run_G, within_G = self.places(group_G)
        start_G = self.first_sample_X[run_G] + within_G * self.group_samples
        return start_G, np.minimum(start_G + self.group_samples, self.first_sample_X[run_G + 1])

    def of_samples(self, sample_S: Ints) -> tuple[Int64s, Int64s]:
        """Return the group of each sample, and its number in it."""
        run_S = np.searchsorted(self.first_sample_X, sample_S, side="right") - 1
        group_S, within_S = np.divmod(sample_S - self.first_sample_X[run_S], self.group_samples)
        return self.first_group_X[run_S] + group_S, within_S

    def sizes(self) -> tuple[int, ...]:
        """Return the samples of each group: one number for each, where there may be many."""
        start_G, end_G = self.spans(np.arange(self.num_groups))
        return tuple((end_G - start_G).tolist())
