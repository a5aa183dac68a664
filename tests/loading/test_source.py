"""A corpus and a live teacher give the views that the plan determines; groups are decoded once."""

import numpy as np
import pytest
import torch
from transformers import Qwen3Config

from helpers.pair_examples import one_to_one
from tide_cache.config.sections import SignalsConfig, ViewsConfig
from tide_cache.loading.source import GroupCache, LiveTeacher, PlainSource
from tide_cache.modeling.backbone import new_backbone
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.views import draw_view

VIEWS = ViewsConfig(num_views=2, seed=1, time_sampling="stratified", schedule="linear", complementary=False)
PAIRS = [one_to_one(f"sample{length}", length) for length in (5, 9, 7)]


@pytest.fixture(scope="module")
def teacher():
    config = Qwen3Config(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    settings = CaptureSettings(
        "block", 4, 15, 16, 2, 1000, 32, SignalsConfig(temperatures=(1.0, 2.0), top_k=4, top_p=0.9)
    )
    return Teacher(new_backbone(config, torch.float32, "cpu", seed=0), settings)


def same_view(first, second):
    return first.view == second.view and np.array_equal(first.is_student_masked_L, second.is_student_masked_L)


def test_a_corpus_is_masked_afresh_in_every_epoch():
    source = PlainSource(PAIRS, VIEWS)
    assert source.groups.sizes() == (3,)
    for epoch in (0, 1, 5):
        records = source.records([2, 0], epoch)
        assert [record.pair for record in records] == [PAIRS[2], PAIRS[0]]
        assert [record.signal for record in records] == [None, None]
        for record in records:
            assert same_view(record.view, draw_view(record.pair, epoch, VIEWS))


def test_a_live_teacher_goes_through_the_views_of_a_cache(teacher):
    source = LiveTeacher(PAIRS, VIEWS, teacher)
    assert source.groups.sizes() == (3,)
    records = source.records([1, 2], epoch=3)
    assert [record.pair for record in records] == [PAIRS[1], PAIRS[2]]
    for record in records:
        assert same_view(record.view, draw_view(record.pair, 1, VIEWS))
        alone = teacher.signals([record.pair], [[record.view]])[0][0]
        np.testing.assert_allclose(record.signal.truth_logprobs_N, alone.truth_logprobs_N, atol=1e-5)
        assert np.array_equal(record.signal.topk.rows_R, alone.topk.rows_R)


def test_a_live_teacher_may_see_fresh_masks(teacher):
    (record,) = LiveTeacher(PAIRS, VIEWS, teacher, fresh_masks=True).records([1], epoch=3)
    assert same_view(record.view, draw_view(PAIRS[1], 3, VIEWS))
    assert not np.array_equal(record.view.is_student_masked_L, draw_view(PAIRS[1], 1, VIEWS).is_student_masked_L)


def test_groups_are_read_once_while_they_are_held():
    read = []

    def reader(key):
        read.append(key)
        return f"{key} was read"

    groups = GroupCache(reader, capacity=2)
    for key in [(0, 0), (1, 0), (0, 0), (2, 0), (0, 0), (1, 0), (1, 1)]:
        assert groups.get(key) == f"{key} was read"
    assert read == [(0, 0), (1, 0), (2, 0), (1, 0), (1, 1)], "the group used least lately is dropped first"
