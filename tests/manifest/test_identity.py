"""Equal identities mean equal caches; any difference is refused with field, found and expected."""

from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from helpers.cache_examples import IDENTITY, PLAN
from tide_cache.config.sections import BuildViewsConfig, SignalsConfig
from tide_cache.errors import CacheMismatchError
from tide_cache.manifest import (
    CacheIdentity,
    PlanDocument,
    ShardPlan,
    SignalsIdentity,
    ViewsIdentity,
    require_same_identity,
)
from tide_cache.manifest.identity import version_for

CHANGES = {
    "corpus_hash": {"corpus_hash": "f" * 64},
    "teacher.weights": {"teacher": {**IDENTITY.teacher, "weights": "0" * 64}},
    "teacher.scale": {"teacher": {**IDENTITY.teacher, "scale": 1}},
    "student_tokenizer.template": {"student_tokenizer": {**IDENTITY.student_tokenizer, "template": "0"}},
    "vocab_sizes.teacher": {"vocab_sizes": IDENTITY.vocab_sizes.model_copy(update={"teacher": 7})},
    "views.seed": {"views": IDENTITY.views.model_copy(update={"seed": 1})},
    "views.demo_ratio": {"views": IDENTITY.views.model_copy(update={"demo_ratio": 0.25})},
    "signals.temperatures": {"signals": IDENTITY.signals.model_copy(update={"temperatures": (1.0,)})},
    "pairing.shared_vocab_size": {"pairing": IDENTITY.pairing.model_copy(update={"shared_vocab_size": 1})},
    "student.max_length": {"student": IDENTITY.student.model_copy(update={"max_length": 1})},
    "format_version": {"format_version": 2},
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_another_cache_and_is_named(name):
    changed = IDENTITY.model_copy(update=CHANGES[name])
    assert changed.cache_id != IDENTITY.cache_id
    assert PLAN.plan_hash(changed.cache_id) != PLAN.plan_hash(IDENTITY.cache_id)
    assert [difference[0] for difference in IDENTITY.differences(changed)] == [name]


def test_identity_survives_json_and_its_id_is_stable():
    again = CacheIdentity.model_validate_json(IDENTITY.model_dump_json(), strict=True)
    assert again.cache_id == IDENTITY.cache_id
    assert IDENTITY.differences(again) == []
    assert len(IDENTITY.cache_id) == 16
    reordered = IDENTITY.model_copy(update={"teacher": dict(reversed(IDENTITY.teacher.items()))})
    assert reordered.cache_id == IDENTITY.cache_id


def test_a_demo_ratio_is_named_though_the_default_is_not_written():
    changed = IDENTITY.model_copy(update=CHANGES["views.demo_ratio"])
    assert IDENTITY.differences(changed) == [("views.demo_ratio", 0.5, 0.25)]
    assert CacheIdentity.model_validate_json(changed.model_dump_json(), strict=True) == changed
    assert "demo_ratio" not in IDENTITY.model_dump(mode="json")["views"]
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        CacheIdentity.model_validate_json(changed.model_dump_json().replace("0.25", "1.25"), strict=True)


def test_further_passes_are_named_and_need_a_newer_reader_and_none_are_not_written():
    changed = IDENTITY.signals.model_copy(update={"chunk_passes": 1})
    assert "chunk_passes" not in IDENTITY.model_dump(mode="json")["signals"]
    assert IDENTITY.differences(IDENTITY.model_copy(update={"signals": changed})) == [("signals.chunk_passes", 0, 1)]
    with pytest.raises(ValidationError, match=r"format_version: found 1, signals.chunk_passes needs 6"):
        CacheIdentity(**dict(IDENTITY) | {"signals": changed})
    assert version_for("block", ("truth", "projected"), "trajectory", 1) == 6


def test_a_mismatch_lists_every_field_with_both_values():
    declared = IDENTITY.model_copy(update={**CHANGES["views.seed"], "teacher": {"weights": "0", "context": "full"}})
    with pytest.raises(CacheMismatchError) as error:
        require_same_identity(Path("cache/plan.json"), IDENTITY, declared)
    message = str(error.value)
    assert message.startswith("cache/plan.json was built from other inputs:\n")
    assert "  views.seed: cache has 0, run declares 1\n" in message
    assert "  teacher.context: cache has '(absent)', run declares 'full'\n" in message
    assert f"  teacher.weights: cache has '{'a' * 64}', run declares '0'\n" in message
    assert "another build.out" in message
    require_same_identity(Path("cache/plan.json"), IDENTITY, IDENTITY)


@pytest.mark.parametrize("name", ["num_rows", "samples_per_shard", "batch_tokens", "head_rows", "views_per_forward"])
def test_plan_hash_covers_the_whole_plan(name):
    changed = PLAN.model_copy(update={name: 3})
    assert changed.plan_hash("0" * 16) != PLAN.plan_hash("0" * 16)


def test_shards_partition_the_rows():
    assert PLAN.num_shards == 3
    assert [list(PLAN.rows_of(shard)) for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(IndexError, match="shard 3 of a plan with 3 shards"):
        PLAN.rows_of(3)


def test_impossible_plans():
    with pytest.raises(ValidationError, match="1000001 shards, at most 1000000; raise samples_per_shard"):
        ShardPlan(num_rows=1_000_001, samples_per_shard=1, batch_tokens=1, head_rows=1, views_per_forward=1)
    with pytest.raises(ValidationError, match="the plan covers 9 rows, the corpus has 10"):
        PlanDocument(identity=IDENTITY, plan=PLAN.model_copy(update={"num_rows": 9}))


def test_every_setting_of_views_and_signals_is_part_of_the_identity():
    assert {field.name for field in fields(BuildViewsConfig)} == set(ViewsIdentity.model_fields)
    assert {field.name for field in fields(SignalsConfig)} == set(SignalsIdentity.model_fields)
