"""Which views share a forward: a pure function of its arguments, so that a rerun is identical to the bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class ViewGroup:
    """Views of one sample that share a forward; `sample` is its index in the list given."""

    sample: int
    views: tuple[int, ...]


def plan_batches(
    lengths: Sequence[int], num_views: Sequence[int], views_per_forward: int, copies: int, batch_tokens: int
) -> list[list[ViewGroup]]:
    """Return the views of all samples in batches of similar length, within a budget of tokens.

    The groups of a batch have the same number of views. A group above the budget gets a separate batch.

    Args:
        lengths: Tokens of each sample.
        num_views: Number of views of each sample.
        views_per_forward: Views that are packed together on one clean copy.
        copies: Clean copies in addition to the views of a group: 1 in the block context, 0 in the full one.
        batch_tokens: Padded tokens of a batch.
    """
    groups = [
        ViewGroup(sample, tuple(range(first, min(first + views_per_forward, count))))
        for sample, count in enumerate(num_views)
        for first in range(0, count, views_per_forward)
    ]
    groups.sort(key=lambda group: (-len(group.views), lengths[group.sample], group.sample, group.views))
    batches: list[list[ViewGroup]] = []
    for size, members in groupby(groups, key=lambda group: len(group.views)):
        batch: list[ViewGroup] = []
        for group in members:
            if batch and (len(batch) + 1) * lengths[group.sample] * (size + copies) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(group)
        batches.append(batch)
    return batches
