"""Which views share a teacher forward: a pure function of lengths and plan, so that a rerun is identical to the bit."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ViewGroup:
    """Views of one sample that go into a forward together; `sample` is its index in the list given."""

    sample: int
    views: tuple[int, ...]


def plan_batches(
    lengths: Sequence[int], num_views: int, views_per_forward: int, copies: int, batch_tokens: int
) -> list[list[ViewGroup]]:
    """Cut samples times views into batches of similar length, within a budget of tokens.

    A group alone above the budget gets a batch of its own.

    Args:
        lengths: Teacher tokens of each sample.
        num_views: Views of each sample.
        views_per_forward: Views that are packed together on one clean copy.
        copies: Clean copies beside the views of a group: 1 in the block context, 0 in the full one.
        batch_tokens: Padded tokens of a batch.
    """
    chunks = [tuple(range(v, min(v + views_per_forward, num_views))) for v in range(0, num_views, views_per_forward)]
    order = sorted(range(len(lengths)), key=lambda sample: (lengths[sample], sample))
    batches: list[list[ViewGroup]] = []
    for size in sorted({len(chunk) for chunk in chunks}, reverse=True):
        batch: list[ViewGroup] = []
        for sample in order:
            for chunk in (c for c in chunks if len(c) == size):
                if batch and (len(batch) + 1) * lengths[sample] * (size + copies) > batch_tokens:
                    batches.append(batch)
                    batch = []
                batch.append(ViewGroup(sample, chunk))
        if batch:
            batches.append(batch)
    return batches
