"""The order of runs that began before there were lanes: their checkpoints go on in it."""

from types import SimpleNamespace

import pytest

from tide_cache.config.sections import BatchConfig
from tide_cache.loading import micro_batches
from tide_cache.loading.micro_batches import rank_batches
from tide_cache.loading.order import Visit
from tide_cache.loading.window_order import WindowOrder


def test_the_order_is_still_that_of_earlier_releases():
    """Recorded before there were lanes."""
    assert WindowOrder((3, 2, 4, 1), "cache", 7, 2).epoch_order(1).tolist() == [5, 8, 6, 9, 7, 1, 2, 3, 4, 0]
    order = WindowOrder((64,) * 20 + (9,), "0123456789abcdef", 3)
    assert order.epoch_order(0)[:8].tolist() == [894, 720, 16, 428, 1219, 1208, 1260, 417]
    assert order.epoch_order(2)[-8:].tolist() == [326, 364, 333, 68, 372, 327, 1144, 103]


def test_the_stream_goes_from_epoch_to_epoch_without_a_gap():
    order = WindowOrder((3, 2), "key", 0)
    expected = [Visit(sample, epoch) for epoch in range(3) for sample in order.epoch_order(epoch).tolist()]
    assert order.visits(range(2, 14)) == expected[2:14]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_out_the_global_batch(world_size, monkeypatch):
    monkeypatch.setattr(micro_batches, "visited_views", lambda source, turns, layout, n: turns)
    order, config = SimpleNamespace(lanes=None, visits=list), BatchConfig(24, 2, "order")
    shares = [rank_batches(None, order, None, config, 7, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {24 // (2 * world_size)}
    turns = [turn for share in shares for micro_batch in share for (turn,) in micro_batch]
    assert sorted(turns) == list(range(7 * 24, 8 * 24))
