"""The order of samples: each once an epoch, the same for any number of ranks, local in storage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tide_cache.loading.order import SampleOrder, Visit, rank_turns

quick = settings(max_examples=60, deadline=None)
orders = st.builds(
    SampleOrder,
    group_sizes=st.lists(st.integers(0, 5), min_size=1, max_size=12).map(tuple).filter(any),
    key=st.text(max_size=4),
    seed=st.integers(0, 2**32),
    window_groups=st.integers(1, 14),
)


@quick
@given(order=orders, epoch=st.integers(0, 5))
def test_an_epoch_visits_each_sample_once(order, epoch):
    assert sorted(order.epoch_order(epoch).tolist()) == list(range(sum(order.group_sizes)))


@quick
@given(order=orders, start=st.integers(0, 60), count=st.integers(0, 80))
def test_the_stream_goes_from_epoch_to_epoch_without_a_gap(order, start, count):
    visits = order.visits(start, count)
    expected = []
    for epoch in range((start + count) // order.num_samples + 1):
        expected += [Visit(sample, epoch) for sample in order.epoch_order(epoch).tolist()]
    assert visits == expected[start : start + count]
    assert all(type(visit.sample) is int for visit in visits)


@quick
@given(order=orders, epoch=st.integers(0, 3))
def test_the_order_depends_on_its_fields_alone(order, epoch):
    same = SampleOrder(order.group_sizes, order.key, order.seed, order.window_groups)
    same.epoch_order(epoch + 1)
    assert np.array_equal(order.epoch_order(epoch), same.epoch_order(epoch))


@quick
@given(order=orders, epoch=st.integers(0, 3))
def test_no_more_groups_are_open_at_a_time_than_a_window_holds(order, epoch):
    """Reading stays local: a reader that holds a window of groups opens each of them once."""
    group_of_sample = np.repeat(np.arange(len(order.group_sizes)), order.group_sizes)
    left, is_open = list(order.group_sizes), set()
    for group in group_of_sample[order.epoch_order(epoch)].tolist():
        is_open.add(group)
        assert len(is_open) <= order.window_groups
        left[group] -= 1
        if not left[group]:
            is_open.remove(group)


def test_key_seed_and_epoch_each_change_the_order():
    base = SampleOrder((20, 20, 20), "cache", 0)
    others = [
        SampleOrder((20, 20, 20), "other", 0).epoch_order(0),
        SampleOrder((20, 20, 20), "cache", 1).epoch_order(0),
        base.epoch_order(1),
    ]
    for other in others:
        assert not np.array_equal(base.epoch_order(0), other)


def test_groups_and_samples_inside_a_window_are_shuffled():
    order = SampleOrder((8,) * 40, "cache", 0, window_groups=4).epoch_order(0)
    windows = [{sample // 8 for sample in order[start : start + 32].tolist()} for start in range(0, 320, 32)]
    assert all(len(window) == 4 for window in windows)
    assert windows != [set(range(first, first + 4)) for first in range(0, 40, 4)]
    assert sorted(order[:32].tolist()) != order[:32].tolist()


def test_an_order_cannot_be_spoiled_by_its_reader():
    order = SampleOrder((5, 5), "cache", 0)
    with pytest.raises(ValueError, match="read-only"):
        order.epoch_order(0)[0] = 7


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [0, 7])
def test_ranks_share_out_the_global_batch(world_size, step):
    shares = [rank_turns(step, 24, 2, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {24 // (2 * world_size)}
    assert all(len(turns) == 2 for share in shares for turns in share)
    turns = [turn for share in shares for micro_batch in share for turn in micro_batch]
    assert sorted(turns) == list(range(step * 24, (step + 1) * 24))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_micro_batches_are_the_same_for_any_number_of_ranks(world_size):
    alone = rank_turns(3, 24, 2, 0, 1)
    shares = [rank_turns(3, 24, 2, rank, world_size) for rank in range(world_size)]
    assert sorted((turns for share in shares for turns in share), key=lambda turns: turns.start) == alone


@quick
@given(
    order=orders,
    world_size=st.integers(1, 4),
    micro_batch=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    first_step=st.integers(0, 5),
    num_steps=st.integers(1, 3),
)
def test_the_ranks_together_visit_the_samples_of_a_single_rank_in_its_order(
    order, world_size, micro_batch, accumulation, first_step, num_steps
):
    """The global order is the same for any number of ranks whose micro-batches fill the global batch."""
    global_batch = world_size * micro_batch * accumulation
    together, alone = [], []
    for step in range(first_step, first_step + num_steps):
        shares = [rank_turns(step, global_batch, micro_batch, rank, world_size) for rank in range(world_size)]
        for round_of_ranks in zip(*shares, strict=True):  # what the ranks take at the same moment, rank by rank
            for turns in round_of_ranks:
                together += order.visits(turns.start, len(turns))
        for turns in rank_turns(step, global_batch, global_batch, 0, 1):
            alone += order.visits(turns.start, len(turns))
    assert together == alone == order.visits(first_step * global_batch, num_steps * global_batch)


@quick
@given(order=orders, world_size=st.integers(1, 4), workers=st.integers(1, 3), steps=st.integers(1, 4))
def test_workers_that_load_ahead_in_any_order_load_the_same_visits(order, world_size, workers, steps):
    """A turn says which sample it is without those before it: no state is shared, so it matters not who loads it."""
    turns = [
        batch for step in range(steps) for rank in range(world_size)
        for batch in rank_turns(step, 2 * world_size, 2, rank, world_size)
    ]  # fmt: skip
    loaded = {}
    for worker in reversed(range(workers)):  # each has its own copy of the order, and the last one begins
        own = SampleOrder(order.group_sizes, order.key, order.seed, order.window_groups)
        loaded |= {batch.start: own.visits(batch.start, len(batch)) for batch in reversed(turns[worker::workers])}
    assert [visit for start in sorted(loaded) for visit in loaded[start]] == order.visits(0, 2 * world_size * steps)
