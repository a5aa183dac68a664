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
