"""Candidates of a chunk that say again what an earlier one says."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tide_cache.shards import record_columns
from tide_cache.shards.record_columns import repeats_of_candidates

candidates = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple)), max_size=12
)


def found(said):
    ids_F = np.array([i for _, ids in said for i in ids], np.uint32)
    sizes_J, owner_J = np.array([len(ids) for _, ids in said], int), np.array([owner for owner, _ in said], int)
    return repeats_of_candidates(ids_F, sizes_J, owner_J).tolist()


@given(candidates)
def test_the_first_of_equal_candidates_is_none(said):
    assert found(said) == [one in said[:j] for j, one in enumerate(said)]


@given(candidates)
def test_candidates_whose_keys_are_equal_by_chance_are_told_apart(said):
    mix, record_columns._MIX = record_columns._MIX, np.uint64(1)
    try:
        assert found(said) == [one in said[:j] for j, one in enumerate(said)]
    finally:
        record_columns._MIX = mix
