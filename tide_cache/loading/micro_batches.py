"""Which samples of an optimizer step share a forward, and which share a row of it.

The order determines the samples of a step; how they are grouped only changes what is computed for padding,
since losses are divided by the counts of the whole step. So every rank groups its own.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Literal

from tide_cache.config.sections import BatchConfig
from tide_cache.config.settings import Batching
from tide_cache.loading.collate import BatchLayout, batch_of
from tide_cache.loading.cuts import Row, even_rows, fewest_tokens
from tide_cache.loading.order import Order, Visit
from tide_cache.loading.ready_views import ReadyView
from tide_cache.loading.source import TeacherSource
from tide_cache.records import StudentBatch, Targets

Rows = list[Row]
"""A micro-batch: its rows, each with the samples that share it, as places in the step."""
BatchRows = list[list[tuple[ReadyView, ...]]]
"""The same with the views of each sample."""


def plan_micro_batches(
    lengths: Sequence[int], num_batches: int, batching: Literal["length", "packed"], row_tokens: int
) -> list[Rows]:
    """Group the samples of a step by their lengths.

    Args:
        lengths: Tokens of each sample, in the order of the step.
        num_batches: Micro-batches; none is left empty.
        batching: How to group them.
        row_tokens: See `BatchConfig`.
    """
    if batching == "packed":
        rows = even_rows(lengths, row_tokens, num_batches)
        cuts = [len(rows) * number // num_batches for number in range(num_batches + 1)]
        return [rows[start:stop] for start, stop in pairwise(cuts)]
    samples = sorted(range(len(lengths)), key=lambda sample: lengths[sample])
    parts = fewest_tokens([lengths[sample] for sample in samples], num_batches)
    return [[[samples[place]] for place in part] for part in parts]


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
        world: Number of processes, a divisor of the order's lanes.
    """
    for rows in rank_batches(source, order, layout, config, step, rank, world):
        yield batch_of(rows, layout)


def rank_batches(
    source: TeacherSource,
    order: Order,
    layout: BatchLayout,
    config: BatchConfig,
    step: int,
    rank: int,
    world: int,
    only: int | None = None,
) -> list[BatchRows]:
    """Return the rows of a rank's micro-batches in a step; arguments as for `step_micro_batches`.

    A rank takes every W-th turn of the step, and cuts its own samples into micro-batches: it reads no others, not even
    for their lengths. In an order without lanes every rank cuts up the whole step, and takes some of the parts.

    Args:
        source: Where records come from.
        order: Of the samples.
        layout: Of the batches.
        config: How steps are cut.
        step: Number of the step.
        rank: This process.
        world: Number of processes.
        only: Number of the one micro-batch that is wanted; by default all.
    """
    first, n = step * config.global_batch, config.views_per_step
    step_turns = range(first, first + config.global_batch)
    turns = step_turns if order.lanes is None else step_turns[rank::world]
    num_batches = len(turns) // config.micro_batch
    wanted: Sequence[int] = range(num_batches)
    if order.lanes is None:
        wanted = share_of_rank(num_batches, rank, world, config.batching)
    if only is not None:
        wanted = [wanted[only]]
    if config.batching == "order":
        of_batches = [turns[number * config.micro_batch :][: config.micro_batch] for number in wanted]
        return [[[views] for views in visited_views(source, order.visits(own), layout, n)] for own in of_batches]
    of_sample = visited_views(source, order.visits(turns), layout, n)
    lengths = padded_lengths(of_sample, layout.block_size)
    planned = plan_micro_batches(lengths, num_batches, config.batching, config.row_tokens)
    return [[[of_sample[sample] for sample in row] for row in planned[number]] for number in wanted]


def padded_lengths(of_sample: Sequence[Sequence[ReadyView]], block_size: int) -> list[int]:
    """Return the tokens that each sample takes up."""
    return [-(-views[0].length // block_size) * block_size for views in of_sample]


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


def visited_views(
    source: TeacherSource, visits: Sequence[Visit], layout: BatchLayout, views_per_step: int = 1
) -> list[tuple[ReadyView, ...]]:
    """Return the views of consecutive visits, in order; the visits may cross from one epoch into the next.

    Epoch e shows views e * n to e * n + n - 1 of a sample, counted modulo the number of views.

    Args:
        source: Where records come from.
        visits: Samples and epochs.
        layout: Of the batches.
        views_per_step: n.
    """
    result: list[tuple[ReadyView, ...]] = []
    for epoch, group in groupby(visits, key=lambda visit: visit.epoch):
        samples = [visit.sample for visit in group]
        of_views = [source.ready(samples, epoch * views_per_step + view, layout) for view in range(views_per_step)]
        result += zip(*of_views, strict=True)
    return result
