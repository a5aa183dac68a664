"""Masks are whole per chunk on both sides, never touch unsupervised tokens, and are determined by config and names."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.pair_examples import one_to_one, pairs
from tide_cache.config.sections import ViewsConfig
from tide_cache.records import SampleId, SamplePair
from tide_cache.views import active_chunks, draw_view
from tide_cache.views.masking import chunks_touched, expand_to_chunks
from tide_cache.views.schedule import mask_probability

CONFIG = ViewsConfig(num_views=4, seed=3, time_sampling="stratified", schedule="linear", complementary=False)

configs = st.builds(
    lambda rounds, complementary, **how: ViewsConfig(rounds * (1 + complementary), complementary=complementary, **how),
    rounds=st.integers(1, 5),
    seed=st.integers(0, 2**40),
    time_sampling=st.sampled_from(["stratified", "uniform"]),
    schedule=st.sampled_from(["linear", "cosine"]),
    complementary=st.booleans(),
)


def spans(pair):
    for teacher_start, teacher_end, student_start, student_end in pair.chunks_C4.tolist():
        yield slice(teacher_start, teacher_end), slice(student_start, student_end)


@given(pair=pairs(), config=configs, view=st.integers(0, 9))
def test_a_chunk_is_masked_whole_or_not_at_all_on_both_sides(pair, config, view):
    drawn = draw_view(pair, view, config)
    in_chunks_M = np.zeros(len(pair.teacher_ids_M), bool)
    for teacher, student in spans(pair):
        in_chunks_M[teacher] = True
        supervised = drawn.is_student_masked_L[student][pair.is_supervised_L[student]]
        assert supervised.all() or not supervised.any()
        assert (drawn.is_teacher_masked_M[teacher] == supervised.any()).all()
    assert not drawn.is_teacher_masked_M[~in_chunks_M].any()


@given(pair=pairs(), config=configs, view=st.integers(0, 9))
def test_only_supervised_tokens_are_masked_and_t_is_in_range(pair, config, view):
    drawn = draw_view(pair, view, config)
    assert not (drawn.is_student_masked_L & ~pair.is_supervised_L).any()
    assert 1e-3 <= drawn.t < 1
    assert (drawn.sample_id, drawn.view) == (pair.sample_id, view)
    assert drawn.is_student_masked_L.shape == pair.student_ids_L.shape
    assert drawn.is_teacher_masked_M.shape == pair.teacher_ids_M.shape
    assert drawn.is_student_masked_L.dtype == drawn.is_teacher_masked_M.dtype == np.bool_


@given(pair=pairs(), config=configs, view=st.integers(0, 9))
def test_an_active_chunk_is_masked_and_supervised_throughout(pair, config, view):
    drawn = draw_view(pair, view, config)
    expected = [
        bool(drawn.is_student_masked_L[student].all() and pair.is_supervised_L[student].all())
        for _, student in spans(pair)
    ]
    assert active_chunks(pair, drawn).tolist() == expected


@given(pair=pairs(), config=configs, view=st.integers(0, 9))
def test_equal_names_give_equal_views(pair, config, view):
    first, second = draw_view(pair, view, config), draw_view(replace(pair), view, replace(config))
    assert first.t == second.t
    assert np.array_equal(first.is_student_masked_L, second.is_student_masked_L)
    assert np.array_equal(first.is_teacher_masked_M, second.is_teacher_masked_M)


def test_seed_sample_and_view_each_change_the_draw():
    pair = one_to_one("a", 200)
    base = draw_view(pair, 0, CONFIG)
    others = (
        draw_view(pair, 0, replace(CONFIG, seed=4)),
        draw_view(replace(pair, sample_id=SampleId("b")), 0, CONFIG),
        draw_view(pair, 1, CONFIG),
    )
    for other in others:
        assert other.t != base.t
        assert not np.array_equal(other.is_student_masked_L, base.is_student_masked_L)


@given(pair=pairs(), config=configs, view=st.integers(0, 4).map(lambda number: 2 * number))
def test_complementary_views_share_out_the_supervised_tokens(pair, config, view):
    config = replace(config, num_views=2 * config.num_views, complementary=True)
    first, second = draw_view(pair, view, config), draw_view(pair, view + 1, config)
    assert np.array_equal(first.is_student_masked_L ^ second.is_student_masked_L, pair.is_supervised_L)
    assert not (first.is_teacher_masked_M & second.is_teacher_masked_M).any()
    is_either_C = chunks_touched(pair, pair.is_supervised_L)
    assert np.array_equal(is_either_C, chunks_touched(pair, first.is_student_masked_L | second.is_student_masked_L))
    sums = sum(mask_probability(drawn.t, config.schedule) for drawn in (first, second))
    assert sums == pytest.approx(1, abs=2e-3)  # t is kept above 1e-3


def test_pairs_of_complementary_views_cover_the_strata():
    config = replace(CONFIG, num_views=8, complementary=True)
    for number in range(20):
        pair = one_to_one(f"sample{number}", 5)
        times = [draw_view(pair, view, config).t for view in range(8)]
        strata = [int((t - 1e-3) / (1 - 1e-3) * 4) for t in times[::2]]
        assert sorted(strata) == [0, 1, 2, 3]
        assert times[1::2] == pytest.approx([max(1e-3, 1 - t) for t in times[::2]])


def test_without_chunk_growth_the_masked_share_is_the_mask_probability():
    pair = one_to_one("long", 20_000)
    for schedule, view in product(("linear", "cosine"), range(4)):
        drawn = draw_view(pair, view, replace(CONFIG, schedule=schedule))
        expected = mask_probability(drawn.t, schedule)
        sigma = np.sqrt(expected * (1 - expected) / 20_000)
        assert drawn.is_student_masked_L.mean() == pytest.approx(expected, abs=4 * sigma)
        assert np.array_equal(drawn.is_student_masked_L, drawn.is_teacher_masked_M)


def test_masked_tokens_do_not_repeat_from_view_to_view():
    """Independent views agree on a token as often as chance says."""
    pair = one_to_one("long", 20_000)
    first, second = (draw_view(pair, view, CONFIG) for view in (0, 1))
    expected = first.is_student_masked_L.mean() * second.is_student_masked_L.mean()
    assert (first.is_student_masked_L & second.is_student_masked_L).mean() == pytest.approx(expected, abs=0.01)


def test_a_sample_without_teacher_tokens_or_without_supervised_ones_can_be_drawn():
    empty = np.zeros(0, np.int32)
    alone = SamplePair(SampleId("a"), np.arange(5, dtype=np.int32), np.ones(5, bool), empty, empty.reshape(0, 4))
    view = draw_view(alone, 0, CONFIG)
    assert view.is_teacher_masked_M.shape == (0,)
    assert active_chunks(alone, view).shape == (0,)
    prompt = replace(one_to_one("p", 5), is_supervised_L=np.zeros(5, bool))
    view = draw_view(prompt, 0, CONFIG)
    assert not view.is_student_masked_L.any()
    assert not view.is_teacher_masked_M.any()


def test_chunk_masks_equal_the_reference(shared):
    recorded = np.load(shared / "golden/masking.npz")
    samples = 0
    for instance in range(int(recorded["n_instances"])):
        at = {name: recorded[f"inst{instance}/{name}"] for name in GOLDEN_FIELDS}
        for b, num_chunks in enumerate(at["n_chunks"]):
            chunks_C4 = at["chunks"][b, :num_chunks].reshape(-1, 4)
            is_supervised_L = at["labels"][b] != -100
            pair = SamplePair(SampleId("g"), at["input_ids"][b], is_supervised_L, at["teacher_input_ids"][b], chunks_C4)
            is_drawn_L = (at["u_mask"][b] < at["p_mask"][b]) & is_supervised_L
            student, teacher = expand_to_chunks(pair, is_drawn_L)
            assert np.array_equal(student, at["final_student_mask"][b])
            assert np.array_equal(teacher, at["teacher_mask"][b])
            assert np.array_equal(chunks_touched(pair, is_drawn_L), at["chunk_has_masked"][b, :num_chunks])
            assert np.array_equal(~pair.is_distillable_C, at["chunk_has_prompt"][b, :num_chunks])
            view = replace(draw_view(pair, 0, CONFIG), is_student_masked_L=student, is_teacher_masked_M=teacher)
            assert np.array_equal(active_chunks(pair, view), at["active_chunk_mask"][b, :num_chunks])
            samples += 1
    assert samples == 24


GOLDEN_FIELDS = (
    "input_ids",
    "labels",
    "teacher_input_ids",
    "chunks",
    "n_chunks",
    "u_mask",
    "p_mask",
    "final_student_mask",
    "teacher_mask",
    "chunk_has_masked",
    "chunk_has_prompt",
    "active_chunk_mask",
)
