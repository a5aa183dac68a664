"""The stream of micro-batches: that of `tide-cache train`, whoever shares it."""

import json
import pickle
from inspect import signature
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

import tide_cache
from helpers.target_examples import leaves
from tide_cache.config.base import load_run_file
from tide_cache.config.sections import BatchConfig
from tide_cache.config.settings import LANES
from tide_cache.config.train import DataConfig, TrainConfig, TrainRun
from tide_cache.errors import RunFileError
from tide_cache.loading.cache import CacheSource, cache_layout
from tide_cache.loading.micro_batches import step_micro_batches
from tide_cache.loading.order import LaneOrder
from tide_cache.loading.window_order import WindowOrder
from tide_cache.manifest import Manifest
from tide_cache.pairing import TextTokenizer
from tide_cache.shards import ShardReader
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare

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
    order = LaneOrder(source.groups, manifest.identity.cache_id, 0, LANES)
    layout = cache_layout(manifest, tokenizer.mask_id, tokenizer.pad_id, 8)

    def load(steps=range(STEPS)):
        where = source, order, layout, BatchConfig(**PLAN)
        return [batch for step in steps for batch in step_micro_batches(*where, step, 0, 1)]

    return load


def assert_same(found, expected):
    assert len(found) == len(expected)
    for batches in zip(found, expected, strict=True):
        for one, other in zip(*batches, strict=True):
            for name, left in leaves(one).items():
                right = leaves(other)[name]
                if isinstance(left, torch.Tensor):
                    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
                else:
                    assert left == right


BATCHINGS = [*({"batching": name} for name in ("order", "length", "packed")), {"batching": "packed", "row_tokens": 64}]


@pytest.fixture(scope="module")
def trained(tiny_cache, tiny_teacher, tmp_path_factory):
    """What `tide-cache train` loads in all ranks with some settings, as its own code reads a run file."""

    def load(rank, world, **settings):
        out = tmp_path_factory.mktemp("run")
        values = {
            "student": {"model": str(tiny_teacher)},
            "data": {"cache": str(tiny_cache), "lanes": 48},
            "objective": [{"kind": "ce"}, {"kind": "kl", "temperature": 2.0}],
            "train": {"out": str(out / "out"), "steps": STEPS, "global_batch": 12, "micro_batch": 2, **settings},
        }
        run = load_run_file(TrainRun, None, values)
        prepared = prepare(run, World(rank, world, rank), resume=False)
        where = prepared.source, prepared.order, prepared.layout, run.train
        return [batch for step in range(STEPS) for batch in step_micro_batches(*where, step, rank, world)]

    return load


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, *BATCHINGS, {"batching": "length", "views_per_step": 2}], ids=str)
def test_every_rank_gets_the_batches_of_training(make, trained, settings, world):
    for rank in range(world):
        dataset = make(global_batch=12, rank=rank, world=world, lanes=48, **settings)
        assert len(dataset) == STEPS * dataset.micro_batches_per_step == STEPS * 6 // world
        assert_same(list(dataset), trained(rank, world, **settings))


def test_defaults_are_those_of_the_run_file():
    of_training = {name: field.default for name, field in TrainConfig.model_fields.items()}
    parameters = signature(tide_cache.Cache.torch_dataset).parameters
    for name in ("batching", "row_tokens", "views_per_step"):
        assert parameters[name].default == of_training[name]
    assert parameters["lanes"].default == DataConfig.model_fields["lanes"].default


def test_an_iteration_starts_over(make):
    dataset = make()
    assert_same(list(dataset), list(dataset))


def test_a_worker_that_is_not_forked_gets_the_same(make, of_training):
    """Workers that are spawned get the dataset pickled."""
    assert_same(list(pickle.loads(pickle.dumps(make()))), of_training())


@pytest.mark.parametrize("taken", [0, 3, 5, 16])
def test_a_state_goes_on_where_it_was_taken_and_then_starts_over(make, taken):
    whole, dataset = list(make()), make()
    stream = iter(dataset)
    assert_same(list(islice(stream, taken)), whole[:taken])
    state = json.loads(json.dumps(dataset.state_dict()))
    assert state == dataset.state_after(taken)
    other = make()
    other.load_state_dict(state)
    assert_same(list(other), whole[taken:])
    assert_same(list(other), whole)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning", "ignore:Length of IterableDataset")
def test_a_state_reaches_the_workers_of_a_plain_loader(make):
    dataset = make()
    dataset.load_state_dict(dataset.state_after(5))
    assert_same(list(DataLoader(dataset, batch_size=None, num_workers=3)), list(make())[5:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_stateful_loader_goes_on(make, num_workers):
    loading = pytest.importorskip("torchdata.stateful_dataloader")
    how = {"batch_size": None, "num_workers": num_workers}
    first = loading.StatefulDataLoader(make(), **how)
    stream = iter(first)
    begun = [next(stream) for _ in range(5)]
    state = first.state_dict()
    second = loading.StatefulDataLoader(make(), **how)
    second.load_state_dict(state)
    assert_same(begun + list(second), list(make()))


def test_a_state_of_other_batches_is_refused(make):
    with pytest.raises(
        RunFileError, match="state of other micro-batches: seed 0 is not 1; batching 'length' is not 'order'"
    ):
        make(seed=1, batching="order").load_state_dict(make().state_dict())
    with pytest.raises(RunFileError, match="state of worker 1 of 2, loaded in no worker"):
        make().load_state_dict(make().state_dict() | {"workers": [1, 2]})


def test_a_state_from_before_there_were_lanes_goes_on_in_its_order(make, tiny_cache):
    manifest = Manifest.load(tiny_cache)
    sizes = CacheSource(tiny_cache, manifest).groups.sizes()
    state = make().state_after(2)
    del state["stream"]["lanes"]
    dataset = make(batching="order")
    with pytest.raises(RunFileError, match="state of other micro-batches"):
        dataset.load_state_dict(state)
    state["stream"]["batching"] = "order"
    dataset.load_state_dict(state)
    found = next(iter(dataset))[0]
    names = WindowOrder(sizes, manifest.identity.cache_id, 0).visits(range(4, 6))
    source = CacheSource(tiny_cache, manifest)
    expected = [source.records([visit.sample], 0)[0].pair.student_ids_L for visit in names]
    for row, ids in zip(found.x_0_BL, expected, strict=True):
        assert row[: len(ids)].tolist() == ids.tolist()


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
    assert not without.topk.has_topk_N.any()
    assert with_topk.topk.has_topk_N.any()


def test_a_hot_cache_changes_nothing_but_what_is_read(make, tmp_path, monkeypatch):
    folder = tmp_path / "hot"
    expected = list(make())
    assert_same(list(make(hot_cache=folder)), expected)
    monkeypatch.setattr(ShardReader, "_read", lambda *_: pytest.fail("a shard was read again"))
    assert_same(list(DataLoader(make(hot_cache=str(folder)), batch_size=None)), expected)
    with pytest.raises(RunFileError, match="is a file; give a folder"):
        make(hot_cache=next(folder.glob("??/*")))
