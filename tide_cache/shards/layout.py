"""Which rows of a shard are in which Parquet row group; nothing else knows it.

The samples of a shard are cut into groups of 64, the last one shorter. A signals shard is view-major: all groups of
view 0, then all groups of view 1, and so on, one row group each. So an epoch that reads one view of every sample reads
only the row groups of that view. A pairs shard is the same with a single view.
"""

from dataclasses import dataclass

SAMPLES_PER_GROUP = 64


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Row groups of one shard.

    Attributes:
        num_samples: Samples of the shard; may be zero when no row of the corpus could be paired.
        num_views: Views of every sample; 1 for a pairs shard.
    """

    num_samples: int
    num_views: int

    @property
    def num_groups(self) -> int:
        """Number of groups of samples."""
        return -(-self.num_samples // SAMPLES_PER_GROUP)

    @property
    def num_row_groups(self) -> int:
        """Number of row groups of the file."""
        return self.num_groups * self.num_views

    @property
    def rows(self) -> tuple[int, ...]:
        """Number of rows of each row group, in file order."""
        return tuple(len(self.samples_of(group)) for group in range(self.num_groups)) * self.num_views

    def samples_of(self, group: int) -> range:
        """Return the samples of a group, numbered inside the shard."""
        if not 0 <= group < self.num_groups:
            raise IndexError(f"group {group} of a shard with {self.num_groups} groups")
        start = group * SAMPLES_PER_GROUP
        return range(start, min(start + SAMPLES_PER_GROUP, self.num_samples))

    def row_group(self, view: int, group: int) -> int:
        """Return the row group that holds this view of this group's samples."""
        if not (0 <= view < self.num_views and 0 <= group < self.num_groups):
            raise IndexError(f"view {view}, group {group} of a shard with {self.num_views} and {self.num_groups}")
        return view * self.num_groups + group
