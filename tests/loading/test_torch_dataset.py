"""The stream of micro-batches: that of `tide-cache train`, whoever shares it."""

import pickle
from dataclasses import fields

import pytest
import torch
from torch.utils.data import DataLoader

import tide_cache
from tide_cache.loading.cache import CacheSource, cache_collate_plan
from tide_cache.loading.micro_batches import BatchPlan, step_micro_batches
from tide_cache.loading.order import SampleOrder
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer

STEPS, PLAN = 4, {"global_batch": 8, "micro_batch": 2}


@pytest.fixture
def make(tiny_cache, tiny_teacher):
    cache = tide_cache.open_cache(tiny_cache)
    return lambda **options: cache.torch_dataset(
        tiny_teacher, [tide_cache.ForwardKL()], **({"steps": STEPS} | PLAN | options)
    )


@pytest.fixture
def of_training(tiny_cache, tiny_teacher):
    """What a rank of `tide-cache train` loads."""
    manifest, tokenizer = Manifest.load(tiny_cache), TextTokenizer.load(str(tiny_teacher))
    source = CacheSource(tiny_cache, manifest, signals=["topk"])
    order = SampleOrder(source.group_sizes, manifest.identity.cache_id, 0)
    collate_plan = cache_collate_plan(manifest, tokenizer.mask_id, tokenizer.pad_id, 8)

    def load(steps=range(STEPS), rank=0, world=1, **plan):
        where = source, order, collate_plan, BatchPlan(**PLAN, **plan)
        return [batch for step in steps for batch in step_micro_batches(*where, step, rank, world)]

    return load


def assert_same(found, expected):
    assert len(found) == len(expected)
    for batches in zip(found, expected, strict=True):
        for one, other in zip(*batches, strict=True):
            for field in fields(one):
                left, right = getattr(one, field.name), getattr(other, field.name)
                if isinstance(left, torch.Tensor):
                    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
                else:
                    assert left == right


@pytest.mark.parametrize("batching", ["order", "length", "packed"])
def test_the_stream_is_that_of_training(make, of_training, batching):
    dataset = make(batching=batching)
    assert len(dataset) == 16
    assert dataset.micro_batches_per_step == 4
    assert_same(list(dataset), of_training(batching=batching))
    assert_same(list(dataset), list(dataset))


def test_a_worker_that_is_not_forked_gets_the_same(make, of_training):
    """Workers that are spawned get the dataset pickled."""
    assert_same(list(pickle.loads(pickle.dumps(make()))), of_training())


def test_ranks_share_it_without_repeats(make, of_training):
    for rank in (0, 1):
        assert_same(list(make(rank=rank, world=2)), of_training(rank=rank, world=2))


def test_a_stream_can_go_on_from_a_later_step(make, of_training):
    assert_same(list(make(first_step=3, steps=2)), of_training(steps=range(3, 5)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_of_a_loader_change_nothing(make, of_training, num_workers):
    """Three workers do not divide the four micro-batches of a step."""
    loader = DataLoader(make(), batch_size=None, num_workers=num_workers)
    assert len(loader) == 16
    assert_same(list(loader), of_training())


def test_only_the_signals_of_the_objectives_are_read(tiny_cache, tiny_teacher):
    cache = tide_cache.open_cache(tiny_cache)
    _, without = next(iter(cache.torch_dataset(tiny_teacher, [tide_cache.Calm()], steps=1, **PLAN)))
    _, with_topk = next(iter(cache.torch_dataset(tiny_teacher, [tide_cache.ForwardKL()], steps=1, **PLAN)))
    assert not without.has_topk_N.any()
    assert with_topk.has_topk_N.any()
