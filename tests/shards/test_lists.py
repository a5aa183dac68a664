"""Checks and rounding of many short lists give what one list at a time gives."""

import numpy as np
import pytest

from tide_cache.shards import lists
from tide_cache.shards.lists import blocks, lists_with_twins, probabilities, round_to_half, unordered_items


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(lists, "BLOCK", 16)


def _ragged(rng, longest):
    counts_X = rng.integers(0, longest + 1, 40) if longest > 0 else np.full(40, -longest)
    counts_X[[3, 4]] *= longest < 0  # empty lists before a long one
    return counts_X.astype(np.int32), int(counts_X.sum())


@pytest.mark.parametrize("longest", [7, 200, -8, -1])
def test_blocks_are_all_lists_in_order(longest):
    counts_X, total = _ragged(np.random.default_rng(0), longest)
    found = list(blocks(counts_X))
    assert [i for _, items in found for i in range(items.start, items.stop)] == list(range(total))
    assert all(counts_X[of].sum() == items.stop - items.start for of, items in found)
    assert all(items.stop - items.start <= 16 or of.stop - of.start == 1 for of, items in found)
    assert list(blocks(counts_X[:0])) == []


@pytest.mark.parametrize("longest", [7, 200, -8, -1])
@pytest.mark.parametrize("num_ids", [5, 500])
def test_lists_are_judged_one_by_one(longest, num_ids):
    rng = np.random.default_rng(1)
    counts_X, total = _ragged(rng, longest)
    ids_I = rng.integers(0, num_ids, total).astype(np.uint32)
    values_I = -rng.integers(0, num_ids, total).astype(np.float32) / 100
    ends = np.cumsum(counts_X)[:-1]
    ids, values = np.split(ids_I, ends), np.split(values_I, ends)
    assert lists_with_twins(ids_I, counts_X).tolist() == [x for x, one in enumerate(ids) if len(set(one)) < len(one)]
    rises = np.concatenate([np.diff(one, prepend=one[:1]) > 0 for one in values])
    assert np.array_equal(unordered_items(values_I, counts_X), rises[1:])
    np.testing.assert_allclose(probabilities(values_I, counts_X), [np.exp(one).sum() for one in values], rtol=1e-5)


def test_float32_becomes_float16_as_numpy_says(monkeypatch):
    monkeypatch.setattr(lists, "BLOCK", 1 << 12)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    bits = halves[np.isfinite(halves)].view(np.uint32)
    # each float16, the middle to the next one, and what lies just beside either
    around = np.concatenate([bits + np.uint32(step % 2**32) for step in (-1, 0, 1, 0xFFF, 0x1000, 0x1001)])
    values = np.concatenate([around.view(np.float32), [np.inf, -np.inf, np.nan, 1e-45, -1e30]]).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    round_to_half(values)
    assert np.array_equal(values.view(np.uint32), expected.view(np.uint32))
