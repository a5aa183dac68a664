"""The order of samples: each once an epoch, the same for any number of ranks, each group on few of them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tide_cache.loading.groups import Groups
from tide_cache.loading.order import LaneOrder, Visit, lane_places
from tide_cache.loading.permutation import KeyedPermutation

sizes = st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any)


@st.composite
def orders(draw):
    arguments = Groups.of_sizes(draw(sizes)), draw(st.text(max_size=4)), draw(st.integers(0, 2**32))
    lanes = draw(st.sampled_from([1, 2, 4, 6, 12, 64]))
    return LaneOrder(*arguments, lanes)


@given(order=orders(), epoch=st.integers(0, 5))
def test_an_epoch_visits_each_sample_once(order, epoch):
    visits = order.visits(range(epoch * order.num_samples, (epoch + 1) * order.num_samples))
    assert sorted(visit.sample for visit in visits) == list(range(order.num_samples))
    assert {visit.epoch for visit in visits} == {epoch}
    assert all(type(visit.sample) is int for visit in visits)


@given(order=orders(), turns=st.lists(st.integers(0, 90), max_size=20))
def test_a_turn_says_its_sample_whatever_was_asked_before(order, turns):
    """No state is shared, so it matters not which rank, worker or resumed run asks for it."""
    whole = order.visits(range(91))
    assert order.visits(turns) == [whole[turn] for turn in turns]


def test_key_seed_epoch_and_lanes_each_change_the_order():
    groups = Groups.of_sizes((20, 20, 20))
    base = LaneOrder(groups, "cache", 0, 4)
    alike = [LaneOrder(groups, "other", 0, 4), LaneOrder(groups, "cache", 1, 4), LaneOrder(groups, "cache", 0, 8)]
    found = [order.visits(range(60)) for order in [base, *alike]]
    found.append([Visit(visit.sample, 0) for visit in base.visits(range(60, 120))])
    assert len({tuple(visit.sample for visit in visits) for visits in found}) == 5


def test_the_order_is_that_of_the_release_that_brought_lanes():
    """A checkpoint holds how many turns were taken: what they were must not change under it."""
    order = LaneOrder(Groups.of_runs((130, 64, 0, 7), 64), "0123456789abcdef", 3, 8)
    assert [visit.sample for visit in order.visits(range(8))] == [70, 154, 89, 5, 86, 13, 156, 194]
    assert [visit.sample for visit in order.visits(range(200, 208))] == [100, 58, 132, 125, 186, 79, 21, 129]
    order = LaneOrder(Groups.of_sizes((2,) * 3000), "key", 0, 8)
    assert [visit.sample for visit in order.visits(range(6000, 6008))] == [5743, 4694, 2314, 2340, 4561, 5167, 519, 408]


def reads_of(num_groups, lanes, world, size=64):
    """The number of groups that each rank has to decode in an epoch, and that it would alone."""
    groups = Groups.of_sizes((size,) * num_groups)
    order = LaneOrder(groups, "cache", 0, lanes)
    reads = []
    for rank in range(world):
        held, read = [], 0
        for visit in order.visits(range(rank, groups.num_samples, world)):
            group = visit.sample // size
            if group in held:
                held.remove(group)
            else:
                read += 1
            held = [*held, group][-lanes // world :]
        reads.append(read)
    return reads


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("num_groups", [80, 203])
def test_a_rank_decodes_little_more_than_what_it_takes(num_groups, world):
    assert max(reads_of(num_groups, 64, world)) <= 1.1 * num_groups / world + 1


@pytest.mark.parametrize("num_groups", [1, 3, 16])
def test_a_few_groups_are_read_by_few_ranks(num_groups):
    """Fewer groups than lanes: a lane holds a part of a group, those of a rank lie side by side."""
    assert sum(reads_of(num_groups, 64, 8)) <= num_groups + 7
    assert sum(reads_of(num_groups, 64, 1)) == num_groups


def test_a_batch_takes_no_two_samples_of_one_group_where_there_are_groups_enough():
    order = LaneOrder(Groups.of_sizes((64,) * 128), "cache", 0, 64)
    for step in range(128):
        of_group = Counter(visit.sample // 64 for visit in order.visits(range(64 * step, 64 * (step + 1))))
        assert len(of_group) >= 32, "a group that two lanes share is the most that can be met twice"
    assert [visit.sample for visit in order.visits(range(0, 64 * 64, 64))] != sorted(
        visit.sample for visit in order.visits(range(0, 64 * 64, 64))
    )


@pytest.mark.parametrize("lanes", [1, 2, 6, 12, 48, 64])
def test_lanes_of_a_rank_lie_together(lanes):
    places = lane_places(lanes)
    assert sorted(places.tolist()) == list(range(lanes))
    world = 1
    while lanes % (2 * world) == 0:
        world *= 2
        for rank in range(world):
            own = np.sort(places[rank::world])
            assert own[-1] - own[0] == lanes // world - 1


@given(size=st.sampled_from([1, 2, 1024, 1025, 2048, 2049, 3000]), key=st.integers(0, 2**32))
def test_a_permutation_is_one(size, key):
    permutation = KeyedPermutation(size, key)
    assert sorted(permutation(np.arange(size)).tolist()) == list(range(size))
    assert permutation(np.array([size - 1])).tolist() == permutation(np.arange(size))[-1:].tolist()


def test_permutations_are_drawn_evenly():
    found = Counter(tuple(KeyedPermutation(3, key)(np.arange(3)).tolist()) for key in range(1200))
    assert len(found) == 6
    assert max(found.values()) < 260


@given(sizes=sizes, runs=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any))
def test_groups_know_where_they_lie(sizes, runs):
    for groups, expected in (
        (Groups.of_sizes(sizes), [size for size in sizes if size]),
        (Groups.of_runs(runs, 8), [min(8, run - start) for run in runs for start in range(0, run, 8)]),
    ):
        assert list(groups.sizes()) == expected
        assume(groups.num_samples)
        group_S, within_S = groups.of_samples(np.arange(groups.num_samples))
        assert group_S.tolist() == [group for group, size in enumerate(expected) for _ in range(size)]
        assert within_S.tolist() == [place for size in expected for place in range(size)]
