"""Every family from its published files to a student that learned from it: build, verify, train, eval."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.teacher_examples import write_family
from tide_cache.building.driver import build_cache
from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.corpus import open_corpus
from tide_cache.errors import PairingError, RunFileError
from tide_cache.evaluation.nll import held_out_nll
from tide_cache.families import FAMILIES
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest, verify
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.modeling.packing import pack_full
from tide_cache.pairing import TextTokenizer, encode_student
from tide_cache.training.distributed import World
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train
from tide_cache_cli.main import app
from tide_cache_cli.run_toml import run_toml

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, vocabularies):
    """Write each family's tiny checkpoint once."""
    tokenizer, written = TextTokenizer.load(str(vocabularies.second)), {}

    def give(name):
        if name not in written:
            written[name] = write_family(tmp_path_factory.mktemp(name), name, tokenizer)
        return written[name]

    return give


@pytest.fixture
def run_of(tmp_path, build_values):
    def make(teacher, **changes):
        values = build_values(tmp_path / "cache", "shared", views__num_views=2, **changes)
        values["corpus"]["spec"] += "[train:4]"
        values["teacher"] |= {"model": str(teacher)}
        return BuildRun.model_validate(values)

    return make


def train_values(tmp_path, student, **data):
    settings = {"out": str(tmp_path / "run"), "steps": 5, "global_batch": 4, "micro_batch": 4, "log_every": 1}
    return {
        "student": student,
        "data": data,
        "objective": [{"kind": "ce"}, {"kind": "kl"}],
        "train": settings | {"precision": "float32", "device": "cpu"},
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_learns_from_every_family(tmp_path, teachers, run_of, vocabularies, corpus_file, name):
    teacher, context = teachers(name), FAMILIES[name].native
    run = run_of(teacher, teacher__context=context)
    build_cache(run)
    folder = run.build.out
    assert verify(folder, deep=True).ok
    assert Manifest.load(folder).identity.teacher["model_type"] == name
    is_start = FAMILIES[name].is_student and context != "causal"
    new = {"shape": SHAPE, "tokenizer": {"path": str(vocabularies.second)}}
    student = {"model": str(teacher)} if is_start else new
    train(TrainRun.model_validate(train_values(tmp_path, student, cache=str(folder))))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    tokenizer = TextTokenizer.load(str(tmp_path / "run/model"))
    rows = list(open_corpus(str(corpus_file) + "[train:2]", folder=tmp_path))
    pairs = encode_student(rows, tokenizer, max_length=64, block_size=8, fill_last_block=True).pairs
    options = {"mask_id": tokenizer.mask_id, "pad_id": tokenizer.pad_id, "block_size": 8, "times": (0.5,)}
    for model, shown in ((teacher, "full" if context == "causal" else context), (tmp_path / "run/model", "block")):
        backbone = load_backbone(read_checkpoint(str(model)), torch.float32, "cpu")
        assert np.isfinite(held_out_nll(backbone, pairs, context=shown, **options).mean_nll)


def test_what_dream_says_of_a_token_is_captured_at_that_token(teachers, run_of):
    """The law of the shift: log p(true) of a masked token is what the position before it outputs."""
    run = run_of(teachers("Dream"), teacher__context="full")
    build_cache(run)
    mask_id = prepare_build(run).capture.mask_id
    backbone = load_backbone(read_checkpoint(str(teachers("Dream"))), torch.float32, "cpu")
    for record in CacheSource(run.build.out, Manifest.load(run.build.out)).records(range(4), 1):
        ids_L = torch.tensor(record.pair.teacher_ids_M, dtype=torch.int64)
        is_masked_L = torch.tensor(record.view.is_teacher_masked_M)
        x_t_1L = ids_L.where(~is_masked_L, mask_id)[None]
        with torch.no_grad():
            outputs_LD = backbone.outputs(pack_full(x_t_1L, torch.ones_like(x_t_1L, dtype=torch.bool)))[0]
            logprobs_LV = (outputs_LD @ backbone.head_VD.T).log_softmax(dim=1)
        place_N = is_masked_L.nonzero()[:, 0]
        expected_N = logprobs_LV[(place_N - 1).clamp(min=0), ids_L[place_N]]
        np.testing.assert_allclose(
            record.signal.truth_logprobs_N, expected_N, atol=2e-3, rtol=2e-3
        )  # stored in fewer bits
        assert not np.allclose(record.signal.truth_logprobs_N, logprobs_LV[place_N, ids_L[place_N]], atol=1e-2)


def test_a_block_size_other_than_the_trainings_is_refused(tmp_path, teachers, run_of, corpus_file):
    values = {"teacher__block_size": 4}
    with pytest.raises(
        RunFileError, match=r"teacher.block_size: found 4; the checkpoint .* with blocks of 8 \(bd_size"
    ):
        prepare_build(run_of(teachers("Fast_dLLM_Qwen"), **values))
    assert prepare_build(run_of(teachers("Fast_dLLM_Qwen"), teacher__context="full", **values)) is not None
    student = {"model": str(teachers("sdar")), "max_length": 64}
    for block_size, fault in (
        (None, None),
        (8, None),
        (32, r"student.block_size: found 32; .* blocks of 8 \(block_size"),
    ):
        run = train_values(tmp_path, student | {"block_size": block_size}, corpus={"spec": str(corpus_file)})
        run = TrainRun.model_validate(run | {"objective": [{"kind": "ce"}]})
        if fault is None:
            assert prepare(run, World(0, 1, 0), resume=False).layout.block_size == 8
        else:
            with pytest.raises(RunFileError, match=fault):
                prepare(run, World(0, 1, 0), resume=False)


def without_mask_token(source, folder, **changes):
    """Write a copy of a checkpoint whose tokenizer names no mask token, and give the token's id."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    mask = settings.pop("mask_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return mask


def test_a_mask_token_that_nobody_names_is_asked_for(tmp_path, teachers, run_of, corpus_file):
    folder = tmp_path / "teacher"
    mask = without_mask_token(teachers("sdar"), folder)
    with pytest.raises(PairingError, match=r"no mask token; .*Name the one that this sdar was trained with"):
        prepare_build(run_of(folder))
    mask_id = TextTokenizer.load(str(teachers("sdar"))).mask_id
    without_mask_token(teachers("sdar"), tmp_path / "stated", mask_token_id=mask_id)
    prepared = prepare_build(run_of(tmp_path / "stated"))
    assert prepared.capture.mask_id == mask_id
    student = {"model": str(tmp_path / "stated"), "max_length": 64}
    run = train_values(tmp_path, student, corpus={"spec": str(corpus_file)}) | {"objective": [{"kind": "ce"}]}
    assert prepare(TrainRun.model_validate(run), World(0, 1, 0), resume=False).tokenizer.mask_token == mask


def test_a_shifted_family_is_no_student(tmp_path, teachers, corpus_file):
    run = train_values(tmp_path, {"model": str(teachers("Dream"))}, corpus={"spec": str(corpus_file)})
    with pytest.raises(RunFileError, match=r"Dream can be a teacher, not a student \(its rows speak of the next token"):
        prepare(TrainRun.model_validate(run | {"objective": [{"kind": "ce"}]}), World(0, 1, 0), resume=False)


def as_another(source, folder, **changes):
    """Write a copy of a checkpoint whose config.json says something else."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_command_line_refuses_each_with_its_exit_code(tmp_path, teachers, run_of, corpus_file):
    """2 for what the invocation says, 3 for what the checkpoint is; nothing is loaded or written."""
    dense = {"model_type": "sdar", "architectures": ["SDARForCausalLM"]}
    experts = as_another(teachers("sdar_moe"), tmp_path / "experts", **dense)
    unknown = as_another(teachers("sdar"), tmp_path / "unknown", model_type="sdar_next")
    without_mask_token(teachers("sdar"), tmp_path / "maskless")
    for teacher, options, code, message in (
        (experts, {}, 3, "num_experts: found 8, but sdar is a dense model"),
        (unknown, {}, 3, "model_type 'sdar_next' is not supported; .* The nearest is sdar "),
        (tmp_path / "maskless", {}, 3, "the tokenizer has no mask token"),
        (teachers("sdar"), {"teacher__block_size": 4}, 2, "teacher.block_size: found 4; .* with blocks of 8"),
        (teachers("sdar"), {"teacher__context": "causal"}, 2, r"found 'causal', but .* \(sdar\) is a masked diffusion"),
    ):
        (tmp_path / "run.toml").write_text(run_toml(run_of(teacher, **options)))
        result = CliRunner().invoke(app, ["build-teacher-shards", str(tmp_path / "run.toml")])
        assert (result.exit_code, result.stdout) == (code, ""), result.stderr
        assert re.search(message, " ".join(result.stderr.split())), result.stderr
        assert not (tmp_path / "cache").exists()
    options = (
        "--dataset",
        str(corpus_file),
        "--objective",
        "ce",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "train.steps=2",
    )
    result = CliRunner().invoke(app, ["train", "--student", str(teachers("sdar_moe")), *options])
    assert result.exit_code == 2
    assert "sdar_moe can be a teacher, not a student (a student is trained and saved as a stock dense" in result.stderr
