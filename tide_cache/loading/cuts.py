"""Where the samples of a step are cut into micro-batches, and which of them share a row, so that little is padded.

A micro-batch computes as many tokens as it has rows, times those of its longest row.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

Row = list[int]
"""Samples that share a row, as places in the step."""

BATCHES_AT_ONCE = 8
"""Micro-batches whose cuts are weighed against each other: the search grows with their square."""


def fewest_tokens(lengths: Sequence[int], num_batches: int) -> Iterator[range]:
    """Yield consecutive parts, none of them empty, that compute the fewest tokens.

    No part computes more tokens than the largest of equally many samples would, so none needs more memory.

    Args:
        lengths: Tokens of each sample, in ascending order; a multiple of `num_batches` of them.
        num_batches: Number of parts.
    """
    size = len(lengths) // num_batches
    most = size * lengths[-1]
    for first in range(0, num_batches, BATCHES_AT_ONCE):
        last = min(first + BATCHES_AT_ONCE, num_batches)
        section = lengths[first * size : last * size]
        for part in _cut(section, last - first, most):
            yield range(first * size + part.start, first * size + part.stop)


def _cut(lengths: Sequence[int], num_batches: int, most: int) -> list[range]:
    """Return the parts, by dynamic programming over where each of them ends."""
    fewest = {0: 0}
    """Tokens of the parts so far, by where they end."""
    begins: list[dict[int, int]] = []
    for _ in range(num_batches):
        before, fewest = fewest, {}
        begins.append({})
        for end in range(1, len(lengths) + 1):
            for begin in range(end - 1, -1, -1):
                tokens = (end - begin) * lengths[end - 1]
                if tokens > most:
                    break
                if begin in before and before[begin] + tokens < fewest.get(end, before[begin] + tokens + 1):
                    fewest[end], begins[-1][end] = before[begin] + tokens, begin
    cuts = [len(lengths)]
    for of_batch in reversed(begins):
        cuts.append(of_batch[cuts[-1]])
    return [range(begin, end) for begin, end in pairwise(reversed(cuts))]


def even_rows(lengths: Sequence[int], row_tokens: int, min_rows: int) -> list[Row]:
    """Return as few rows as need be, about equally full, the fullest first.

    Args:
        lengths: Tokens of each sample.
        row_tokens: Most tokens of a row; a longer sample has one of its own.
        min_rows: Number of rows at least, at most one for each sample.
    """
    longest_first = sorted(range(len(lengths)), key=lambda sample: -lengths[sample])
    num_rows = max(min_rows, _num_rows(lengths, longest_first, row_tokens))
    while True:
        rows: list[Row] = [[] for _ in range(num_rows)]
        tokens = [0] * num_rows
        for sample in longest_first:
            row = tokens.index(min(tokens))
            rows[row].append(sample)
            tokens[row] += lengths[sample]
        if all(len(row) == 1 or taken <= row_tokens for row, taken in zip(rows, tokens, strict=True)):
            return sorted(rows, key=lambda row: -sum(lengths[sample] for sample in row))
        num_rows += 1


def _num_rows(lengths: Sequence[int], longest_first: Sequence[int], row_tokens: int) -> int:
    """Return how many rows are filled where each sample goes into the fullest one that has room for it."""
    tokens: list[int] = []
    for sample in longest_first:
        with_room = [row for row, taken in enumerate(tokens) if taken + lengths[sample] <= row_tokens]
        if not with_room:
            tokens.append(0)
        row = max(with_room, key=lambda row: tokens[row], default=len(tokens) - 1)
        tokens[row] += lengths[sample]
    return len(tokens)
