"""Which samples of an optimizer step share a forward, and which share a row of it.

The order determines the samples of a step. How they are grouped only changes how much is computed for padding,
since losses are divided by the counts of the whole step. The grouping is a pure function of the samples' lengths, so
every rank finds the same one without asking the others.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Literal, Protocol

from tide_cache.config.sections import BatchConfig
from tide_cache.config.settings import Batching
from tide_cache.loading.collate import BatchLayout, collate_rows
from tide_cache.loading.order import Visit, rank_turns
from tide_cache.loading.source import TeacherSource
from tide_cache.records import StudentBatch, Targets, ViewRecord

Rows = list[list[int]]
"""A micro-batch: its rows, each with the samples that share it, as places in the step."""


class Order(Protocol):
    """What `SampleOrder` and `MixedOrder` have in common."""

    def visits(self, start: int, count: int) -> list[Visit]:
        """Return some turns of the endless stream."""


def plan_micro_batches(
    lengths: Sequence[int], num_batches: int, batching: Literal["length", "packed"], row_tokens: int
) -> list[Rows]:
    """Group the samples of a step by their lengths.

    Args:
        lengths: Tokens of each sample of the step, in its order.
        num_batches: Micro-batches over all ranks; none is left empty.
        batching: How to group them.
        row_tokens: See `BatchConfig`.
    """
    if batching == "packed":
        rows = _rows(lengths, row_tokens, num_batches)
        cuts = [len(rows) * number // num_batches for number in range(num_batches + 1)]
        return [rows[start:stop] for start, stop in pairwise(cuts)]
    samples = sorted(range(len(lengths)), key=lambda sample: lengths[sample])
    size = len(samples) // num_batches
    return [[[sample] for sample in samples[first : first + size]] for first in range(0, len(samples), size)]


def _rows(lengths: Sequence[int], row_tokens: int, min_rows: int) -> Rows:
    """Return rows, the fullest first; each sample, the longest first, goes into the fullest row with room."""
    rows: Rows = []
    tokens: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        with_room = [row for row, taken in enumerate(tokens) if taken + lengths[sample] <= row_tokens]
        row = max(with_room, key=lambda row: tokens[row], default=len(rows))
        if row == len(rows):
            rows.append([])
            tokens.append(0)
        rows[row].append(sample)
        tokens[row] += lengths[sample]
    while len(rows) < min_rows:  # too few short samples for the number of forwards
        rows.append([max(rows, key=len).pop()])
    return sorted(rows, key=lambda row: -sum(lengths[sample] for sample in row))


def step_micro_batches(
    source: TeacherSource, order: Order, layout: BatchLayout, config: BatchConfig, step: int, rank: int, world: int
) -> Iterator[tuple[StudentBatch, Targets]]:
    """Yield a rank's share of a step: the same number of micro-batches for each rank.

    Args:
        source: Where records come from.
        order: Of the samples.
        layout: How records become batches.
        config: How steps are cut.
        step: Number of the step, from 0.
        rank: This process.
        world: Number of processes.
    """
    n = config.views_per_step
    if config.batching == "order":  # needs no lengths, so only this rank's samples are read
        for turns in rank_turns(step, config.global_batch, config.micro_batch, rank, world):
            of_sample = visited_records(source, order.visits(turns.start, len(turns)), n)
            yield collate_rows([[views] for views in of_sample], layout)
        return
    of_sample = visited_records(source, order.visits(step * config.global_batch, config.global_batch), n)
    size = layout.block_size
    lengths = [-(-len(views[0].pair.student_ids_L) // size) * size for views in of_sample]
    num_batches = config.global_batch // config.micro_batch
    planned = plan_micro_batches(lengths, num_batches, config.batching, config.row_tokens)
    for number in share_of_rank(num_batches, rank, world):
        rows = planned[number]
        yield collate_rows([[of_sample[sample] for sample in row] for row in rows], layout)


def share_of_rank(num_batches: int, rank: int, world: int, batching: Batching = "length") -> list[int]:
    """Return the micro-batches of a rank, dealt back and forth: 0, 1, 1, 0, 0, 1 to two ranks.

    They are planned in order of length. Dealt in one direction, the last rank would get the longest of every round, and
    all others would wait for it. With batching by order there is nothing to gain: 0, 1, 0, 1.

    Args:
        num_batches: Micro-batches of the step; a multiple of `world`.
        rank: This process.
        world: Number of processes.
        batching: How samples are grouped.
    """
    rounds = range(num_batches // world)
    is_turned = batching != "order"
    return [turn * world + (world - 1 - rank if is_turned and turn % 2 else rank) for turn in rounds]


def visited_records(
    source: TeacherSource, visits: Sequence[Visit], views_per_step: int = 1
) -> list[tuple[ViewRecord, ...]]:
    """Return the views of consecutive visits, in order; the visits may cross from one epoch into the next.

    Epoch e shows views e * n to e * n + n - 1 of a sample, counted modulo the number of views.

    Args:
        source: Where records come from.
        visits: Samples and epochs.
        views_per_step: n.
    """
    result: list[tuple[ViewRecord, ...]] = []
    for epoch, group in groupby(visits, key=lambda visit: visit.epoch):
        samples = [visit.sample for visit in group]
        of_views = [source.records(samples, epoch * views_per_step + view) for view in range(views_per_step)]
        result += zip(*of_views, strict=True)
    return result
