"""Who shares a forward, and a row of it, changes neither the loss nor its gradient, nor which samples a step takes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config

from helpers.pair_examples import one_to_one
from tide_cache.config.sections import BatchConfig, SignalsConfig, ViewsConfig
from tide_cache.loading.collate import BatchLayout, collate, collate_rows
from tide_cache.loading.groups import Groups
from tide_cache.loading.micro_batches import (
    plan_micro_batches,
    rank_batches,
    share_of_rank,
    step_micro_batches,
    visited_views,
)
from tide_cache.loading.order import LaneOrder
from tide_cache.loading.source import LiveTeacher, PlainSource
from tide_cache.loading.taking import TakenViews
from tide_cache.loading.window_order import WindowOrder
from tide_cache.modeling.backbone import new_backbone
from tide_cache.objectives import OBJECTIVES, ids_to_gather
from tide_cache.records import RowStatistics
from tide_cache.student.model import Student
from tide_cache.teacher.capture import CaptureSettings, Teacher
from tide_cache.views import draw_view

PLAN = BatchLayout(mask_id=14, pad_id=15, block_size=4, shared_vocab_size=9, temperatures=(1.0, 2.0))
VIEWS = ViewsConfig(num_views=4, seed=1, time_sampling="uniform", schedule="linear", complementary=False)
LENGTHS = (12, 7, 5, 4, 9)
KINDS = ("ce", "kl", "reverse_kl", "calm")


def backbone(seed):
    config = Qwen3Config(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return new_backbone(config, torch.float32, "cpu", seed)


@pytest.fixture(scope="module")
def student():
    return Student(backbone(seed=0), PLAN.block_size, slice_rows=8)


@pytest.fixture(scope="module")
def samples():
    """Each sample with its views, and what a teacher says of them."""
    capture = CaptureSettings(
        "block", 4, 15, 9, 2, 1000, 32, SignalsConfig(temperatures=(1.0, 2.0), top_k=4, top_p=0.9)
    )
    teacher = LiveTeacher([one_to_one(str(n), n) for n in LENGTHS], VIEWS, Teacher(backbone(seed=1), capture))
    return list(zip(*(teacher.records(range(len(LENGTHS)), view) for view in range(4)), strict=True))


def sums_and_gradient(student, batches):
    """Totals and counts of each objective over some micro-batches, and the gradient of all of it."""
    student.zero_grad()
    objectives = [OBJECTIVES[kind]() for kind in KINDS]
    totals, counts = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
    for batch, targets in batches:
        statistics = student(batch, *ids_to_gather(targets), (1.0, 2.0))
        if not isinstance(statistics, RowStatistics):
            statistics = RowStatistics(*statistics, (1.0, 2.0))
        of_batch = torch.stack([objective.total(statistics, targets) for objective in objectives])
        of_batch.sum().backward()
        totals += of_batch.detach()
        counts += torch.tensor([objective.count(targets) for objective in objectives])
    return totals, counts, [parameter.grad.clone() for parameter in student.parameters()]


def assert_same(student, one, other):
    for part, same in zip(sums_and_gradient(student, one), sums_and_gradient(student, other), strict=True):
        torch.testing.assert_close(part, same, rtol=1e-5, atol=1e-5)


ROWS = [[[0, 1], [2, 3, 4]], [[3, 0], [4], [1, 2]], [[0, 1, 2, 3, 4]]]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("num_views", [1, 3])
def test_samples_that_share_a_row_do_not_see_each_other(student, samples, rows, num_views):
    """Also with several views of each: every view alone gives the same loss and gradient."""
    records = [views[:num_views] for views in samples]
    packed = collate_rows([[records[sample] for sample in row] for row in rows], PLAN)
    assert len(packed[0].x_0_BL) == len(rows)
    assert_same(student, [packed], [collate([record], PLAN) for views in records for record in views])


@pytest.mark.parametrize("num_views", [2, 4])
def test_views_on_one_clean_copy_are_views_apart(student, samples, num_views):
    records = [views[:num_views] for views in samples]
    together = collate_rows([[views] for views in records], PLAN)
    assert together[0].x_t_BL.shape[1] == num_views * together[0].x_0_BL.shape[1]
    assert together[1].num_supervised == num_views * sum(LENGTHS)
    apart = [collate([views[n] for views in records], PLAN) for n in range(num_views)]
    assert_same(student, [together], apart)


def test_a_sample_begins_at_a_block(samples):
    batch, _ = collate_rows([samples[1:4]], PLAN)
    assert batch.sample_BL.tolist() == [[0] * 8 + [1] * 8 + [2] * 4]
    assert batch.is_real_BL.tolist() == [[True] * 7 + [False] + [True] * 5 + [False] * 3 + [True] * 4]


def test_a_row_of_its_own_needs_no_sample_numbers(samples):
    assert collate([views[0] for views in samples], PLAN)[0].sample_BL is None


lengths_of_steps = st.lists(st.integers(1, 16).map(lambda blocks: 4 * blocks), min_size=12, max_size=12)


@given(lengths_of_steps, st.sampled_from([1, 2, 3, 6]), st.sampled_from(["length", "packed"]))
def test_every_sample_is_in_one_micro_batch(lengths, num_batches, batching):
    batches = plan_micro_batches(lengths, num_batches, batching, 32)
    assert len(batches) == num_batches
    assert all(batch and all(batch) for batch in batches)
    assert sorted(sample for batch in batches for row in batch for sample in row) == list(range(12))
    if batching == "packed":
        rows = [[lengths[sample] for sample in row] for batch in batches for row in batch]
        assert all(sum(row) <= max(32, *lengths) for row in rows)
    else:
        longest = [max(lengths[row[0]] for row in batch) for batch in batches]
        shortest = [min(lengths[row[0]] for row in batch) for batch in batches]
        assert all(one <= other for one, other in zip(longest, shortest[1:], strict=False))


def computed(lengths, batches):
    """Tokens of each forward, with padding."""
    return [len(batch) * max(sum(lengths[sample] for sample in row) for row in batch) for batch in batches]


@given(lengths_of_steps, st.sampled_from([1, 2, 3, 6, 12]))
def test_cuts_by_length_compute_no_more_than_equal_parts_and_need_no_more_memory(lengths, num_batches):
    size, ascending = 12 // num_batches, sorted(lengths)
    equal = [size * ascending[last] for last in range(size - 1, 12, size)]
    found = computed(lengths, plan_micro_batches(lengths, num_batches, "length", 0))
    assert sum(found) <= sum(equal)
    assert max(found) <= max(equal)


def test_short_samples_share_a_forward_that_long_ones_would_pad():
    lengths = [8, 8, 8, 8, 8, 64, 64, 64]
    batches = plan_micro_batches(lengths, 2, "length", 0)
    assert [len(batch) for batch in batches] == [5, 3]
    assert computed(lengths, batches) == [40, 192]  # equal parts: 4 x 8 + 4 x 64 = 288


def test_packed_rows_are_about_equally_full():
    """The fullest row is what the others are padded to."""
    lengths = [60, 52, 44, 36, 28, 20, 12, 4]
    batches = plan_micro_batches(lengths, 2, "packed", 128)
    assert [[sum(lengths[sample] for sample in row) for row in batch] for batch in batches] == [[128], [128]]
    batches = plan_micro_batches(lengths, 2, "packed", 100)
    assert sorted(sum(lengths[sample] for sample in row) for batch in batches for row in batch) == [80, 84, 92]


LAYOUT = BatchLayout(mask_id=14, pad_id=15, block_size=4)
PAIRS = [one_to_one(f"sample{size}", size) for size in (3, 30, 9, 17, 5, 22, 14, 8)]


@pytest.mark.parametrize("batching", ["order", "length", "packed"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_take_the_samples_of_the_step(batching, world):
    source, order = PlainSource(PAIRS, VIEWS), LaneOrder(Groups.of_sizes((8,)), "key", 0, 4)
    config, layout = BatchConfig(8, 2, batching, row_tokens=32, views_per_step=2), LAYOUT
    shares = [list(step_micro_batches(source, order, layout, config, 1, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {4 // world}
    found = sum(targets.num_supervised for share in shares for _, targets in share)
    assert found == 2 * sum(len(pair.student_ids_L) for pair in PAIRS)
    (alone,) = rows_of_ranks(source, order, config, 1)
    ranks = rows_of_ranks(source, order, config, world)
    for rank, names in enumerate(ranks):
        assert sorted(names) == sorted(alone[rank::world] if batching == "order" else names)
    assert sorted(name for names in ranks for name in names) == sorted(alone)


def rows_of_ranks(source, order, config, world):
    """The samples of each rank in step 1, micro-batch by micro-batch."""
    batches = [rank_batches(source, order, LAYOUT, config, 1, rank, world) for rank in range(world)]
    return [[name_of(views[0]) for rows in of_rank for row in rows for views in row] for of_rank in batches]


def name_of(view):
    """The sample of a view, by its tokens."""
    return tuple(TakenViews([view]).column("student_id", np.int64).tolist())


@pytest.mark.parametrize("batching", ["order", "length", "packed"])
def test_one_micro_batch_alone_is_that_of_the_step(batching):
    """A worker prepares some of them."""
    config = BatchConfig(8, 2, batching, row_tokens=32)
    for order in (LaneOrder(Groups.of_sizes((8,)), "key", 0, 4), WindowOrder((8,), "key", 0)):
        source = PlainSource(PAIRS, VIEWS)
        together = rank_batches(source, order, LAYOUT, config, 1, 1, 2)
        for number, rows in enumerate(together):
            (alone,) = rank_batches(source, order, LAYOUT, config, 1, 1, 2, only=number)
            for one, other in zip(alone, rows, strict=True):
                assert [name_of(views[0]) for views in one] == [name_of(views[0]) for views in other]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_get_about_the_same_tokens_of_batches_in_order_of_length(world):
    """Else the rank with the longest of every round would keep all others waiting."""
    tokens = range(100, 124)
    shares = [share_of_rank(24, rank, world) for rank in range(world)]
    assert sorted(number for share in shares for number in share) == list(range(24))
    assert {len(share) for share in shares} == {24 // world}
    sums = [sum(tokens[number] for number in share) for share in shares]
    assert max(sums) - min(sums) <= world


def test_epochs_go_through_the_views_n_at_a_time():
    visits = LaneOrder(Groups.of_sizes((8,)), "key", 0, 4).visits(range(24))
    views = visited_views(PlainSource(PAIRS, VIEWS), visits, LAYOUT, views_per_step=3)
    for visit, of_visit in zip(visits, views, strict=True):
        pair = PAIRS[visit.sample]
        drawn = [draw_view(pair, 3 * visit.epoch + n, VIEWS).is_student_masked_L for n in range(3)]
        found = [TakenViews([view]).column("position", np.int64) for view in of_visit]
        assert [places.tolist() for places in found] == [np.flatnonzero(mask_L).tolist() for mask_L in drawn]
        assert all(name_of(view) == tuple(pair.student_ids_L.tolist()) for view in of_visit)


def test_padding_shrinks_from_order_to_length_to_packed():
    random = np.random.default_rng(0)
    pairs = [one_to_one(str(k), int(size)) for k, size in enumerate(random.integers(8, 60, 64))]
    useful = {}
    for batching in ("order", "length", "packed"):
        steps = step_micro_batches(
            PlainSource(pairs, VIEWS), LaneOrder(Groups.of_sizes((64,)), "key", 0, 4), BatchLayout(14, 15, 1),
            BatchConfig(64, 8, batching, row_tokens=128), 0, 0, 1,
        )  # fmt: skip
        useful[batching] = np.mean(np.concatenate([batch.is_real_BL.flatten() for batch, _ in steps]))
    assert useful["order"] < useful["length"]
    assert useful["length"] > 0.9
    assert useful["packed"] > 0.9
