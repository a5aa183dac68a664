"""Several caches in one order and behind one source: shares as weighted, each cache visited as it would be alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.pair_examples import one_to_one
from helpers.target_examples import leaves
from tide_cache.config.sections import ViewsConfig
from tide_cache.loading import mix
from tide_cache.loading.collate import BatchLayout, collate
from tide_cache.loading.groups import Groups
from tide_cache.loading.mix import MixedOrder, MixedSource, mixed_layout
from tide_cache.loading.order import LaneOrder, Visit
from tide_cache.loading.source import PlainSource
from tide_cache.loading.window_order import WindowOrder
from tide_cache.records import ChunkCandidates, TeacherSignal, TopK, ViewRecord
from tide_cache.views import draw_view
from tide_cache.views.schedule import time_weight

LANES = 4
shapes = st.lists(
    st.tuples(
        st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple).filter(any),
        st.sampled_from([0.25, 1.0, 3.0, 0.001]),
    ),
    min_size=1,
    max_size=4,
)


def mixed(shape, seed=0):
    """An order per (group sizes, weight), and their mix."""
    groups = [Groups.of_sizes(sizes) for sizes, _ in shape]
    orders = [LaneOrder(one, f"cache-{number}", seed, LANES) for number, one in enumerate(groups)]
    return orders, MixedOrder(orders, [weight for _, weight in shape], seed)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Streams of a hundred turns cross blocks."""
    monkeypatch.setattr(mix, "TURNS_PER_BLOCK", 16)


@given(shape=shapes, seed=st.integers(0, 2**32), num_turns=st.integers(1, 150))
def test_each_sources_turns_in_a_lane_are_its_own_stream(shape, seed, num_turns):
    orders, order = mixed(shape, seed)
    first = np.cumsum([0, *(part.num_samples for part in orders)])
    visits = order.visits(range(num_turns))
    for lane in range(LANES):
        of_lane = visits[lane::LANES]
        for number, part in enumerate(orders):
            own = [v for v in of_lane if first[number] <= v.sample < first[number + 1]]
            expected = part.visits(range(lane, lane + LANES * len(own), LANES))
            assert [Visit(v.sample - first[number], v.epoch) for v in own] == expected


@given(shape=shapes, turns=st.lists(st.integers(0, 150), max_size=20))
def test_a_turn_says_its_sample_whatever_was_asked_before(shape, turns):
    whole = mixed(shape)[1].visits(range(151))
    assert mixed(shape)[1].visits(turns) == [whole[turn] for turn in turns]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.5, 8.0, 1.5)])
def test_shares_converge_to_the_weights(weights, monkeypatch):
    monkeypatch.setattr(mix, "TURNS_PER_BLOCK", 1 << 10)
    orders = [LaneOrder(Groups.of_sizes((7,)), f"cache-{number}", 0, LANES) for number in range(len(weights))]
    visits = MixedOrder(orders, weights, seed=1).visits(range(4_000))
    counts = np.bincount([visit.sample // 7 for visit in visits])
    for count, weight in zip(counts, weights, strict=True):
        share = weight / sum(weights)
        assert abs(count / 4_000 - share) < 5 * math.sqrt(share * (1 - share) / 4_000)


def test_without_lanes_the_order_is_still_that_of_earlier_releases():
    orders = [WindowOrder((3, 4), "a", 0), WindowOrder((5,), "b", 0)]
    visits = MixedOrder(orders, (3.0, 1.0), 1).visits(range(5, 25))
    assert [visit.sample for visit in visits] == [1, 5, 4, 9, 4, 0, 5, 1, 6, 3, 11, 2, 5, 2, 10, 6, 3, 4, 0, 1]
    assert [visit.epoch for visit in visits] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 2, 2, 0, 2, 2, 2, 2, 2]


def test_a_mix_of_one_is_its_order():
    (alone,), order = mixed([((3, 4), 0.3)])
    assert order.visits(range(5, 45)) == alone.visits(range(5, 45))
    assert order.num_samples == 7


def test_keys_seed_and_weights_each_change_the_turns_and_nothing_else_does():
    def sources(keys, weights, seed):
        orders = [LaneOrder(Groups.of_sizes((9,)), key, 0, LANES) for key in keys]
        return [visit.sample // 9 for visit in MixedOrder(orders, weights, seed).visits(range(200))]

    base = sources("ab", (1.0, 1.0), 0)
    assert sources("ab", (2.0, 2.0), 0) == base, "only ratios of weights count"
    for other in (sources("ab", (1.0, 2.0), 0), sources("ab", (1.0, 1.0), 1), sources("cb", (1.0, 1.0), 0)):
        assert other != base
    assert base[:16] != base[16:32], "every block is drawn anew"


VIEWS = ViewsConfig(num_views=2, seed=1, time_sampling="stratified", schedule="linear", complementary=False)


def test_records_come_from_their_sources_in_the_order_asked_for():
    pairs = [one_to_one(f"sample{number}", 5 + number) for number in range(5)]
    source = MixedSource([PlainSource(pairs[:2], VIEWS), PlainSource(pairs[2:], VIEWS)])
    assert source.groups.sizes() == (2, 3)
    records = source.records([4, 0, 2, 1, 4], epoch=3)
    assert [record.pair for record in records] == [pairs[4], pairs[0], pairs[2], pairs[1], pairs[4]]
    assert [record.source for record in records] == [1, 0, 1, 0, 1]
    assert all(record.view.view == 3 for record in records)


def signalled(name, length, temperatures, source, has_chunks=True):
    """A view whose signal keeps ids 0 and 5 of each row; its tails and partitions are told apart by T and source."""
    pair = one_to_one(name, length)
    view = draw_view(pair, 1, VIEWS)
    rows = np.flatnonzero(view.is_teacher_masked_M)
    num_rows = len(rows)
    at_T = np.tile(np.array([100 * (source + 1) + t for t in temperatures], np.float32), (num_rows, 1))
    logprobs = np.log(np.tile(np.array([0.5, 0.25], np.float32), num_rows))
    topk = TopK(
        np.arange(num_rows, dtype=np.int32), np.full(num_rows, 2, np.int32),
        np.tile(np.array([0, 5], np.uint32), num_rows), logprobs, -at_T, at_T,
    )  # fmt: skip
    active = np.flatnonzero(pair.is_distillable_C & np.isin(pair.chunks_C4[:, 0], rows)).astype(np.int32)
    chunks = ChunkCandidates(
        active, np.zeros(len(active), np.int32), np.zeros(0, np.uint32), np.zeros(0, np.float32),
        -at_T[: len(active)] - 1, at_T[: len(active)] + 1,
    )  # fmt: skip
    truth = np.full(num_rows, -1.0, np.float32)
    signal = TeacherSignal(truth, truth > 0, topk, chunks=chunks if has_chunks else None)
    return ViewRecord(pair, view, signal, source)


LAYOUTS = (
    BatchLayout(98, 99, 4, shared_vocab_size=5, temperatures=(1.0, 2.0), schedule="linear"),
    BatchLayout(98, 99, 4, shared_vocab_size=9, temperatures=(4.0, 1.0), schedule="cosine"),
)


def test_every_record_is_collated_by_the_plan_of_its_source():
    """Shared ids, schedule and T are those of each cache; the batch puts their T in one order."""
    layout = mixed_layout(LAYOUTS)
    assert layout.temperatures == (1.0, 2.0, 4.0)
    records = [signalled("a", 40, (1.0, 2.0), 0), signalled("b", 30, (4.0, 1.0), 1)]
    batch, together = collate(records, layout)
    alone = [collate([record], own)[1] for record, own in zip(records, LAYOUTS, strict=True)]
    of_row = batch.row_sample_N
    assert together.time_weight_N.unique().tolist() == sorted(
        np.float32(time_weight(record.view.t, own.schedule)) for record, own in zip(records, LAYOUTS, strict=True)
    )
    for source, own in enumerate(alone):
        rows = of_row == source
        assert together.topk.has_topk_N[rows].any()
        assert torch.equal(together.topk.has_topk_N[rows], own.topk.has_topk_N)
        width = own.topk.kept_ids_NK.shape[1]
        assert torch.equal(together.topk.kept_ids_NK[rows][:, :width], own.topk.kept_ids_NK)
        assert (together.topk.kept_ids_NK[rows][:, width:] == -1).all()
        for name in ("log_tail_NT", "log_partition_NT"):
            both, single = leaves(together)[name][rows], leaves(own)[name]
            for index, temperature in enumerate(LAYOUTS[source].temperatures):
                assert torch.equal(both[:, layout.temperatures.index(temperature)], single[:, index])
    assert together.topk.kept_ids_NK[of_row == 0].unique().tolist() == [-1, 0], (
        "id 5 is another word to the first teacher"
    )
    assert together.topk.kept_ids_NK[of_row == 1].max() == 5
    chunk_of_second = together.truth.chunk_t_C == np.float32(records[1].view.t)
    assert torch.equal(together.chunks.log_tail_CT[chunk_of_second][:, [2, 0]], alone[1].chunks.log_tail_CT)


def test_a_temperature_that_a_source_lacks_is_not_a_number():
    """Read by mistake, it would spoil the loss instead of passing for a value."""
    records = [signalled("a", 40, (1.0, 2.0), 0), signalled("b", 30, (4.0, 1.0), 1, has_chunks=False)]
    batch, targets = collate(records, mixed_layout(LAYOUTS))
    carries = targets.topk.has_topk_N
    for source, lacking in ((0, 2), (1, 1)):
        rows = carries & (batch.row_sample_N == source)
        assert rows.any()
        for values in (targets.topk.log_tail_NT[rows], targets.topk.log_partition_NT[rows]):
            assert values[:, lacking].isnan().all()
            assert not values[:, [index for index in range(3) if index != lacking]].isnan().any()
    assert not targets.topk.log_tail_NT[~carries].any()
    of_first = targets.truth.chunk_t_C == np.float32(records[0].view.t)
    assert targets.chunks.log_tail_CT[of_first, 2].isnan().all()
    assert not targets.chunks.log_tail_CT[~of_first].any(), "without the chunks signal a chunk has no entry"


def test_a_mix_of_one_collates_as_its_source():
    record = signalled("a", 40, (1.0, 2.0), 0)
    one, other = collate([record], LAYOUTS[0])[1], collate([record], mixed_layout(LAYOUTS[:1]))[1]
    assert one.temperatures == other.temperatures
    for name, value in leaves(one).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, leaves(other)[name]), name
