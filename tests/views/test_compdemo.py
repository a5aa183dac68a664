"""The two sides partition the masked chunks, in the chosen share, the same each time, as the reference splits them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pair_examples import one_to_one, pairs
from tide_cache.config.sections import ViewsConfig
from tide_cache.records import MaskedView, SampleId, SamplePair
from tide_cache.views import draw_shown_first, draw_view, partial_views
from tide_cache.views.compdemo import shown_first

PLAN = ViewsConfig(num_views=4, seed=3, time_sampling="stratified", schedule="linear", complementary=False)


@given(pair=pairs(), number=st.integers(0, 3), demo_ratio=st.floats(0, 1))
def test_the_two_views_partition_the_masked_chunks(pair, number, demo_ratio):
    view = draw_view(pair, number, PLAN)
    is_first_M = draw_shown_first(pair, view, PLAN.seed, demo_ratio)
    parts = partial_views(view, is_first_M)
    masks = np.array([part.is_teacher_masked_M for part in parts]).astype(int)
    assert np.array_equal(masks.sum(axis=0), view.is_teacher_masked_M)
    for start, end in pair.chunks_C4[:, :2]:
        assert all(len(set(mask[start:end].tolist())) <= 1 for mask in masks), "a chunk is on one side"
    assert not (is_first_M & ~view.is_teacher_masked_M).any(), "what is shown in one pass is masked in the other"
    for part in parts:
        assert (part.sample_id, part.view, part.t) == (view.sample_id, view.view, view.t)


@given(pair=pairs(), number=st.integers(0, 3), demo_ratio=st.sampled_from([0.0, 1.0]))
def test_an_empty_side_leaves_one_view_the_plain_one(pair, number, demo_ratio):
    view = draw_view(pair, number, PLAN)
    is_first_M = draw_shown_first(pair, view, PLAN.seed, demo_ratio)
    assert np.array_equal(is_first_M, view.is_teacher_masked_M & bool(demo_ratio))
    (alone,) = partial_views(view, is_first_M)
    assert np.array_equal(alone.is_teacher_masked_M, view.is_teacher_masked_M)


def test_pass_one_shows_the_first_side_and_asks_for_the_other():
    pair = one_to_one("a", 6)
    view = MaskedView(pair.sample_id, 0, 0.5, *(np.array([1, 1, 0, 1, 1, 0], bool),) * 2)
    is_first_M = np.array([0, 1, 0, 1, 0, 0], bool)
    first, second = partial_views(view, is_first_M)
    assert first.is_teacher_masked_M.tolist() == [True, False, False, False, True, False]
    assert np.array_equal(second.is_teacher_masked_M, is_first_M)


def test_the_split_is_keyed_by_seed_sample_and_view():
    pair = one_to_one("a", 200)
    view = MaskedView(pair.sample_id, 0, 1.0, *(np.ones(200, bool),) * 2)
    again = draw_shown_first(pair, view, 0, 0.5)
    assert np.array_equal(again, draw_shown_first(pair, view, 0, 0.5))
    others = [
        draw_shown_first(pair, view, 1, 0.5),
        draw_shown_first(pair, replace(view, view=1), 0, 0.5),
        draw_shown_first(pair, replace(view, sample_id=SampleId("b")), 0, 0.5),
    ]
    for other in others:
        assert (again == other).mean() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("demo_ratio", [0.1, 0.5, 0.9])
def test_the_share_of_the_first_side_is_the_ratio(demo_ratio):
    pair = one_to_one("long", 20_000)
    view = draw_view(pair, 2, PLAN)
    share = draw_shown_first(pair, view, 0, demo_ratio).sum() / view.is_teacher_masked_M.sum()
    sigma = np.sqrt(demo_ratio * (1 - demo_ratio) / view.is_teacher_masked_M.sum())
    assert share == pytest.approx(demo_ratio, abs=4 * sigma)


def test_the_split_and_the_two_inputs_equal_the_reference(shared):
    recorded = np.load(shared / "golden/losses_alm_seed0.npz")
    edge = np.load(shared / "golden/losses_edge.npz")
    mask_id = json.loads(str(recorded["meta_json"]))["cases"][0]["hp"]["teacher_mask_token_id"]
    for b, num_chunks in enumerate(recorded["n_chunks"]):
        chunks_C4, teacher_ids_M = recorded["chunks"][b, :num_chunks], recorded["teacher_input_ids"][b]
        is_supervised_L = recorded["labels"][b] != -100
        pair = SamplePair(SampleId("g"), recorded["student_input_ids"][b], is_supervised_L, teacher_ids_M, chunks_C4)
        view = MaskedView(pair.sample_id, 0, 0.5, recorded["student_mask"][b], recorded["teacher_mask"][b])
        uniform_C = recorded["u_demo"][b, :num_chunks]
        is_first_M = shown_first(pair, view, uniform_C, 0.5)
        assert np.array_equal(is_first_M, recorded["teacher_M_A"][b])
        assert np.array_equal(is_first_M[chunks_C4[:, 0]], recorded["chunk_A"][b, :num_chunks])
        parts = partial_views(view, is_first_M)
        needed = [call for call, side in enumerate("BA") if recorded[f"teacher_M_{side}"][b].any()]
        for call, part in zip(needed, parts, strict=True):  # the reference always runs both
            assert np.array_equal(part.is_teacher_masked_M, recorded[f"teacher_M_{'BA'[call]}"][b])
            shown = np.where(part.is_teacher_masked_M, mask_id, teacher_ids_M)
            assert np.array_equal(shown, recorded[f"compdemo_teacher_call{call}_input_ids"][b])
        for demo_ratio in (0.0, 1.0):
            is_first_M = shown_first(pair, view, uniform_C, demo_ratio)
            expected_C = edge[f"case/demo_ratio-{demo_ratio}/chunk_A"][b, :num_chunks]
            assert np.array_equal(is_first_M[chunks_C4[:, 0]], expected_C)
