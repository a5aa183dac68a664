"""Adapters: what is saved is what peft itself would merge, and only they are trained."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from tide_cache.config.train import LoraConfig, TrainRun
from tide_cache.errors import CheckpointError, RunFileError
from tide_cache.modeling.backbone import load_backbone, read_checkpoint
from tide_cache.training.distributed import World
from tide_cache.training.lora import add_adapters, lora_faults, merged
from tide_cache.training.prepare import prepare
from tide_cache.training.run import train

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install 'tide-cache[lora]'"
)
LORA = LoraConfig(rank=3, alpha=7, targets=("q_proj", "down_proj"))


@pytest.fixture
def model(tiny_teacher):
    return load_backbone(read_checkpoint(str(tiny_teacher)), torch.float32, "cpu").model


@pytest.fixture
def make_run(tmp_path, tiny_teacher, corpus_file):
    def make(name="run", lora=LORA, **section):
        values = {"out": str(tmp_path / name), "steps": 4, "global_batch": 4, "micro_batch": 2, "device": "cpu"}
        return TrainRun.model_validate(
            {
                "student": {"model": str(tiny_teacher), "lora": lora and lora.model_dump(), "max_length": 64},
                "data": {"corpus": {"spec": str(corpus_file)}},
                "optimizer": {"lr": 1e-2},
                "train": values | {"log_every": 1, "precision": "float32", "checkpoint_every": 2} | section,
            }
        )

    return make


@needs_peft
def test_adapters_change_nothing_at_first_and_are_all_that_is_trained(model):
    plain = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.random.get_rng_state()
    add_adapters(model, LORA, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2  # two factors, two targets, two layers
    assert all("lora_" in name for name in trained)
    same = merged(dict(model.named_parameters()), LORA)
    assert same.keys() == plain.keys() - {"lm_head.weight"}
    assert all(torch.equal(same[name], plain[name]) for name in same)


@needs_peft
def test_the_merged_weights_are_those_of_peft(model):
    from peft.tuners.lora import Linear

    add_adapters(model, LORA, seed=1)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    ours = merged({name: weight.detach().clone() for name, weight in model.named_parameters()}, LORA)
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            layer.merge()
            torch.testing.assert_close(ours[f"{name}.weight"], layer.base_layer.weight)


@needs_peft
def test_only_layers_with_adapters_differ_in_the_saved_model(make_run, tiny_teacher):
    run = make_run(ema_decay=0.5)
    train(run)
    start = load_file(tiny_teacher / "model.safetensors")
    for folder in ("model", "model-ema"):
        end = load_file(run.train.out / folder / "model.safetensors")
        assert start.keys() == end.keys()
        changed = {name for name in start if not torch.equal(start[name], end[name])}
        assert {name.split(".")[-2] for name in changed} == set(LORA.targets)
    load_backbone(read_checkpoint(str(run.train.out / "model")), torch.float32, "cpu")


@needs_peft
def test_a_checkpoint_of_adapters_holds_them_alone_and_fits_no_other_model(make_run):
    run = make_run()
    train(run)
    folder = next((run.train.out / "checkpoints").iterdir())
    names = load_file(folder / "state-00000.safetensors")
    assert {name.split("/")[0] for name in names} == {"master", "exp_avg", "exp_avg_sq"}
    assert all("lora_" in name for name in names)
    with pytest.raises(CheckpointError, match=r"student\.lora: checkpoint has .*'rank': 3.*, run declares None"):
        train(make_run(lora=None), resume=True)


def test_impossible_adapters_are_refused_before_anything_is_loaded(make_run, monkeypatch, tiny_teacher):
    config = read_checkpoint(str(tiny_teacher)).config
    monkeypatch.setattr("tide_cache.training.lora.find_spec", lambda name: None)
    faults = lora_faults(LoraConfig(targets=("q_proj", "query", "lm_head")), config)
    assert faults[0].startswith("student.lora: peft is not installed; pip install 'tide-cache[lora]'")
    assert faults[1].startswith("student.lora.targets: found lm_head, query; qwen3 has ['down_proj', 'gate_proj',")
    with pytest.raises(RunFileError, match="peft is not installed"):
        prepare(make_run(), World(0, 1, 0), resume=False)


def test_the_adapters_are_part_of_what_the_student_says_of_itself(make_run):
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed: pip install 'tide-cache[lora]'")
    run = make_run(steps=1)
    train(run)
    said = json.loads((run.train.out / "model/tide_cache.json").read_text())
    assert said["run"]["student.lora"] == {"rank": 3, "alpha": 7, "targets": ["q_proj", "down_proj"]}
