"""With one tokenizer on both sides `chunks` need not be captured: the kept ids of `topk` are the candidates."""

import pytest
import torch

from helpers.target_examples import leaves
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import DataConfig
from tide_cache.loading.cache import cache_layout
from tide_cache.loading.collate import batch_of
from tide_cache.loading.opening import open_caches
from tide_cache.objectives.base import ids_to_gather
from tide_cache.objectives.chunk_kl import ChunkKL
from tide_cache.objectives.kl import ForwardKL
from tide_cache.student.row_statistics import row_statistics


@pytest.fixture(scope="module")
def captured(tmp_path_factory, build_values):
    """The samples and views of `tiny_cache`, with as many candidates of a chunk as it has kept ids of a row."""
    out = tmp_path_factory.mktemp("captured") / "cache"
    kinds = ("truth", "topk", "chunks")
    values = build_values(out, signals__temperatures=(1.0, 2.0), signals__kinds=kinds, signals__chunk_k=16)
    build_cache(BuildRun.model_validate(values))
    return out


def targets_of(cache, signals):
    (opened,) = open_caches(DataConfig(cache=str(cache)))
    layout = cache_layout(opened.manifest, 0, 0, 8)
    views = opened.source(signals, 1).ready(range(8), 1, layout)
    return batch_of([[(view,)] for view in views], layout)[1]


def mean(objective, targets):
    """Loss of a student that says something else of every row."""
    logits_NV = torch.randn(len(targets.true_id_N), 600, generator=torch.Generator().manual_seed(0)).double()
    ids_NK, is_kept_NK = ids_to_gather(targets)
    said = row_statistics(logits_NV, torch.eye(600).double(), ids_NK, (1.0, 2.0), is_kept_NK)
    return objective.total(said, targets).item() / objective.count(targets)


def test_candidates_are_those_that_would_have_been_captured(tiny_cache, captured):
    given, made = targets_of(captured, ["chunks"]), targets_of(tiny_cache, ["chunks"])
    assert len(made.chunks.candidate_logprob_J) > 500
    for name, value in leaves(given.chunks).items():
        if name == "token_column_F":
            continue  # kept ids come first, and those of chunks that are not kept after them
        torch.testing.assert_close(leaves(made.chunks)[name], value, rtol=0, atol=2e-3, msg=name)
    for objective in (ChunkKL(1.0), ChunkKL(2.0), ChunkKL(2.0, temperature_mode="kept")):
        assert mean(objective, made) == pytest.approx(mean(objective, given), rel=1e-3)


def test_where_a_chunk_is_a_token_chunk_kl_is_kl(tiny_cache):
    targets = targets_of(tiny_cache, ["topk", "chunks"])
    for how in ({"temperature_mode": "captured"}, {"temperature_mode": "kept"}):
        assert mean(ChunkKL(2.0, **how), targets) == pytest.approx(mean(ForwardKL(2.0, **how), targets))


def test_it_serves_objectives_over_chunks_and_costs_others_nothing(tiny_cache):
    (opened,) = open_caches(DataConfig(cache=str(tiny_cache)))
    assert opened.signals >= {"topk", "chunks"}
    assert len(targets_of(tiny_cache, ["topk"]).chunks.candidate_logprob_J) == 0
