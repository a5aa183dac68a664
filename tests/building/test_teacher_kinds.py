"""Teachers that are not stock checkpoints, from the files they are published in to a student that learned from them."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from helpers.teacher_examples import write_llada2, write_wedlm
from tide_cache.building.driver import build_cache
from tide_cache.building.executors import InProcess, LocalProcesses
from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import ModelError, PairingError, RunFileError
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest, verify
from tide_cache.pairing import TextTokenizer
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, vocabularies):
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    return {
        "wedlm": write_wedlm(tmp_path_factory.mktemp("wedlm"), tokenizer),
        "llada2_moe": write_llada2(tmp_path_factory.mktemp("llada2"), tokenizer),
    }


@pytest.fixture
def run_of(tmp_path, build_values):
    def make(teacher, pipeline="cross", **changes):
        values = build_values(tmp_path / "cache", pipeline, corpus__spec=None, **changes)
        values["corpus"] = {"spec": build_values(tmp_path)["corpus"]["spec"] + "[train:8]"}
        values["teacher"] |= {"model": str(teacher)}
        return BuildRun.model_validate(values)

    return make


@pytest.mark.parametrize("kind", ["wedlm", "llada2_moe"])
def test_a_student_of_another_tokenizer_learns_from_every_kind_of_teacher(
    tmp_path, teachers, run_of, vocabularies, kind
):
    """Under `full`; test_families_end_to_end.py has what each family was trained with, and one tokenizer."""
    run = run_of(teachers[kind], teacher__context="full")
    summary = build_cache(run)
    folder = run.build.out
    assert verify(folder, deep=True).ok
    manifest = Manifest.load(folder)
    assert manifest.identity.teacher["model_type"] == kind
    records = CacheSource(folder, manifest).records(range(8), 1)
    assert len(records) == summary.num_samples == 8
    truths = np.concatenate([record.signal.truth_logprobs_N for record in records])
    assert (truths < 0).all()
    assert truths.std() > 0
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    train(
        TrainRun.model_validate(
            {
                "student": {"shape": shape, "tokenizer": {"path": str(vocabularies.first)}},
                "data": {"cache": str(folder)},
                "objective": [{"kind": "ce"}, {"kind": "reverse_calm"}],
                "train": {"out": str(tmp_path / "run"), "steps": 2, "global_batch": 4, "micro_batch": 4, "log_every": 1}
                | {"precision": "float32", "device": "cpu"},
            }
        )
    )
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert all(np.isfinite(list(entry["losses"].values())).all() for entry in logged)


@pytest.mark.parametrize("changes", [{"qk_norm": False}, {"qk_norm": None}, {"attention_bias": True}])
def test_a_wedlm_that_is_no_qwen3_is_refused(tmp_path, vocabularies, run_of, changes):
    folder = write_wedlm(tmp_path / "teacher", TextTokenizer.load(str(vocabularies.second)), **changes)
    (name,) = changes
    with pytest.raises(ModelError, match=rf"does not fit a stock qwen3: {name}: found {changes[name]}, expected"):
        prepare_build(run_of(folder))


def with_wedlm_ids(original, folder):
    """A copy of a small tokenizer with two tokens at the ids they have in the published vocabulary."""
    shutil.copytree(original, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    for token, i in (("<tool_response>", 151665), ("<|other_mask|>", 151669)):
        content["model"]["vocab"][token] = i
        content["added_tokens"].append(content["added_tokens"][-1] | {"id": i, "content": token})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return TextTokenizer.load(str(folder))


def test_wedlm_is_masked_with_the_token_its_authors_code_names(tmp_path, vocabularies, run_of):
    tokenizer = with_wedlm_ids(vocabularies.second, tmp_path / "tokenizer")
    assert tokenizer.mask_id < 1000
    teacher = write_wedlm(tmp_path / "teacher", tokenizer, vocab_size=151936)
    prepared = prepare_build(run_of(teacher))
    assert prepared.capture.mask_id == 151665
    assert prepared.identity.teacher_tokenizer["mask_token_id"] == "151665"
    other = {"path": str(teacher), "mask_token": "<|other_mask|>"}
    with pytest.raises(
        RunFileError, match=r"id 151669; the checkpoint .* \(wedlm\) was trained with id 151665\. Leave"
    ):
        prepare_build(run_of(teacher, teacher__tokenizer=other))
    with pytest.raises(
        PairingError, match=r"trained with the mask token of id 151665, and this tokenizer has no token"
    ):
        prepare_build(run_of(teacher, teacher__tokenizer={"path": str(vocabularies.second)}))


def test_a_mask_token_stated_in_the_configuration_is_used(tmp_path, vocabularies, run_of):
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    run = run_of(write_wedlm(tmp_path / "teacher", tokenizer, mask_token_id=tokenizer.mask_id - 1))
    prepared = prepare_build(run, pairs_all=False)  # its template writes that token, so that no row could be a sample
    assert prepared.capture.mask_id == tokenizer.mask_id - 1


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path, vocabularies, run_of):
    small = TextTokenizer.load(str(vocabularies.first))
    run = run_of(write_wedlm(tmp_path / "teacher", small), teacher__tokenizer={"path": str(vocabularies.second)})
    with pytest.raises(RunFileError, match=r"teacher: the tokenizer has ids up to .* has 384 embeddings"):
        prepare_build(run)


def test_weights_that_are_missing_stop_the_build_before_any_signal_is_published(teachers, tmp_path, run_of):
    folder = tmp_path / "teacher"
    folder.mkdir()
    for file in teachers["llada2_moe"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.experts.3.down_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing model.layers.1.mlp.experts.3.down_proj.weight"):
        build_cache(run_of(folder))
    assert not list((tmp_path / "cache/signals").rglob("*.parquet"))


@pytest.mark.parametrize("setting", [{"quantisation": "4bit"}, {"quantisation": "8bit"}, {"device_map": "auto"}])
def test_our_own_module_is_neither_quantised_nor_spread(teachers, run_of, setting):
    ((name, value),) = setting.items()
    with pytest.raises(RunFileError, match=rf"teacher.{name} = '{value}': not for llada2_moe, .*leave it out"):
        prepare_build(run_of(teachers["llada2_moe"], **{f"teacher__{name}": value}))


def test_flex_is_refused_on_a_teacher_that_is_spread(teachers, run_of):
    run = run_of(teachers["wedlm"], teacher__device_map="auto", teacher__attention="flex")
    with pytest.raises(
        RunFileError, match=r"'flex' with device_map = 'auto': FlexAttention's mask lies on one GPU, .*sdpa"
    ):
        prepare_build(run)


@pytest.mark.parametrize("setting", [{"quantisation": "4bit"}, {"device_map": "auto"}, {"attention": "flex"}])
def test_what_needs_a_gpu_is_refused_without_one_and_before_anything_is_written(teachers, run_of, setting):
    ((name, value),) = setting.items()
    run = run_of(teachers["wedlm"], teacher__device="cpu", **{f"teacher__{name}": value})
    for executor in (InProcess(), LocalProcesses(2)):
        with pytest.raises(ModelError, match=rf"teacher.{name} = '{value}': found the device 'cpu', expected CUDA"):
            build_cache(run, executor=executor)
        assert not run.build.out.exists()


def test_quantisation_is_part_of_the_identity_and_its_absence_changes_no_id(teachers, run_of):
    plain, quantised = (
        prepare_build(run_of(teachers["wedlm"], teacher__quantisation=bits)).identity for bits in ("none", "4bit")
    )
    assert "quantisation" not in plain.teacher
    assert ("teacher.quantisation", "(absent)", "4bit") in plain.differences(quantised)
    kernel = prepare_build(run_of(teachers["wedlm"], teacher__attention="flex")).identity
    assert kernel.cache_id == plain.cache_id


def test_a_teacher_of_our_own_module_is_no_student(teachers, tmp_path, corpus_file):
    values = {
        "student": {"model": str(teachers["llada2_moe"]), "max_length": 64, "block_size": 8},
        "data": {"corpus": {"spec": str(corpus_file)}},
        "objective": [{"kind": "ce"}],
        "train": {"out": str(tmp_path / "run"), "steps": 1, "device": "cpu"},
    }
    with pytest.raises(RunFileError, match=r"student.model: llada2_moe can be a teacher, not a student"):
        prepare(TrainRun.model_validate(values), World(0, 1, 0), resume=False)
