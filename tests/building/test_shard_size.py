"""A shard takes minutes: by a rule of numbers that every worker reads, decided once and kept in plan.json."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tide_cache.building.prepare import prepare_build
from tide_cache.building.shard_size import (
    FEWEST,
    MOST,
    active_parameters,
    fitting,
    reads_per_sample,
    require_openable,
    samples_per_shard,
)
from tide_cache.errors import RunFileError
from tide_cache.manifest import CacheFolder

DENSE = SimpleNamespace(
    hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    intermediate_size=12288,
)  # fmt: skip
EXPERTS = SimpleNamespace(
    hidden_size=2048, num_hidden_layers=20, num_attention_heads=16, num_key_value_heads=4, head_dim=128,
    intermediate_size=5120, num_experts_per_tok=8, num_shared_experts=1, moe_intermediate_size=512,
)  # fmt: skip


def test_parameters_are_those_a_token_passes_through():
    """Qwen3-8B has 6.95 billion of its 8.19 outside embedding and head; LLaDA2.0-mini visits 8 of 256 experts."""
    assert active_parameters(DENSE) == pytest.approx(6.95e9, rel=0.01)
    assert 0.7e9 < active_parameters(EXPERTS) < 0.9e9


@pytest.mark.parametrize(
    ("config", "tokens", "device", "size"),
    [(DENSE, 768 * 13, "cuda:0", 512), (DENSE, 768 * 39, "cuda", 128), (EXPERTS, 10_240, "cuda", MOST),
     (DENSE, 768, "cpu", FEWEST)],
)  # fmt: skip
def test_the_size_falls_with_the_work_of_a_sample(config, tokens, device, size):
    assert fitting(config, tokens, device) == size


def test_tokens_count_views_clean_copies_and_passes(run_in, tmp_path):
    run = run_in(tmp_path / "cache", views__num_views=10, build__views_per_forward=4, teacher__context="block",
                 build__passes=("plain", "compdemo"))  # fmt: skip
    assert reads_per_sample(run) == 3 * (10 + 3)
    alone = run.model_copy(update={"teacher": run.teacher.model_copy(update={"context": "full"})})
    assert reads_per_sample(alone) == 3 * 10
    again = alone.model_copy(update={"signals": replace(alone.signals, chunk_passes=2)})
    assert reads_per_sample(again) == 3 * 10 * 3


def test_a_build_that_goes_on_keeps_the_size_it_was_planned_with(run_in, tmp_path):
    """On whatever machine it continues; a stated size is checked against the plan as before."""
    begun = prepare_build(run_in(tmp_path / "cache"))
    CacheFolder(tmp_path / "cache").begin(begun.identity, begun.plan, begun.passes)
    left_out = run_in(tmp_path / "cache", build__samples_per_shard=None)
    assert prepare_build(left_out).plan.samples_per_shard == begun.plan.samples_per_shard == 8
    elsewhere = run_in(tmp_path / "other", build__samples_per_shard=None)
    assert prepare_build(elsewhere).plan.samples_per_shard == MOST, "a toy"


def test_a_cut_that_no_reader_would_open_is_refused_before_rows_are_paired(run_in, tmp_path, monkeypatch):
    with pytest.raises(
        RunFileError, match=r"cuts 1000001 rows into 1000001 shards; a cache has at most 1000000\. Give at least 2"
    ):
        require_openable(1_000_001, 1, 8)
    with pytest.raises(RunFileError, match=r"up to 312500 row groups; its commit record would be larger than readers"):
        require_openable(10**8, 2 * 10**6, 10)
    require_openable(10**8, 512, 10)
    monkeypatch.setattr("tide_cache.building.shard_size.MAX_SHARDS", 2)
    monkeypatch.setattr("tide_cache.building.rows.pair_corpus", None)
    with pytest.raises(RunFileError, match=r"build\.samples_per_shard: found 8, which cuts"):
        prepare_build(run_in(tmp_path / "cache"))


def test_a_size_that_is_left_out_never_gives_too_many_shards(run_in, tmp_path):
    left_out = run_in(tmp_path / "cache", build__samples_per_shard=None)
    costly = SimpleNamespace(**{**vars(DENSE), "num_hidden_layers": 36_000})
    assert samples_per_shard(left_out, costly, "cpu", 10**6) == FEWEST
    assert samples_per_shard(left_out, costly, "cpu", 10**8) == 128
