"""The running mean of the weights, and the state that a checkpoint holds."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tide_cache.config.train import TrainConfig, TrainRun
from tide_cache.errors import CheckpointError
from tide_cache.training.ema import EMA, AveragingAdamW
from tide_cache.training.engine import OptimizerConfig, deepspeed_config
from tide_cache.training.run import train
from tide_cache.training.state import SavedState


def test_the_mean_follows_the_weights_and_starts_from_them():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    adamw = AveragingAdamW([weight], ema_decay=0.75, lr=0.5)
    expected = weight.detach().clone()
    for step in range(3):
        weight.grad = torch.tensor([1.0, -3.0 * step])
        adamw.step()
        expected = 0.75 * expected + 0.25 * weight.detach()
        torch.testing.assert_close(adamw.state[weight][EMA], expected)


def test_it_moves_weights_as_plain_adamw_does():
    torch.manual_seed(0)
    start, gradients = torch.randn(5), torch.randn(4, 5)
    results = []
    for make in (torch.optim.AdamW, lambda weights, **how: AveragingAdamW(weights, ema_decay=0.9, **how)):
        weight = torch.nn.Parameter(start.clone())
        optimizer = make([weight], lr=0.1, weight_decay=0.1)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        results.append(weight.detach())
    assert torch.equal(*results)


def test_tensors_of_another_model_are_refused(tmp_path):
    save_file({"master/weight": torch.zeros(2)}, tmp_path / "state-00000.safetensors", {"adamw_steps": "1"})
    with pytest.raises(CheckpointError, match=r"not those of the model that is trained: master/bias\. Resume with"):
        SavedState(tmp_path, torch.nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({"zero_stage": 3}, {"stage": 3, "stage3_param_persistence_threshold": 100_000}),
        ({"zero_stage": 2, "offload": "optimizer"}, {"stage": 2, "offload_optimizer": {"device": "cpu"}}),
        (
            {"zero_stage": 3, "offload": "optimizer+parameters"},
            {
                "stage": 3, "stage3_param_persistence_threshold": 100_000, "offload_optimizer": {"device": "cpu"},
                "offload_param": {"device": "cpu"},
            },
        ),
    ],
)  # fmt: skip
def test_deepspeeds_section_is_derived(section, found):
    config = deepspeed_config(TrainConfig(out="out", steps=1, **section), OptimizerConfig(), world_size=1)
    expected = {
        k: v | {"pin_memory": torch.cuda.is_available()} if isinstance(v, dict) else v for k, v in found.items()
    }
    assert config["zero_optimization"] == expected
    assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(
    ("section", "lowest"),
    [
        ({"offload": "optimizer"}, 1),
        ({"offload": "optimizer+parameters"}, 3),
        ({"offload": "optimizer+parameters", "zero_stage": 2}, 3),
    ],
)
def test_offload_without_a_stage_for_it_is_refused(section, lowest):
    with pytest.raises(ValueError, match=rf"needs zero_stage >= {lowest}, found {section.get('zero_stage', 0)}: only"):
        TrainConfig(out="out", steps=1, **section)


def test_the_saved_mean_is_that_of_the_last_checkpoint_carried_on(tmp_path, tiny_teacher, corpus_file):
    """model-ema is the mean itself: decay * mean of the step before + (1 - decay) * model."""
    run = TrainRun.model_validate(
        {
            "student": {"model": str(tiny_teacher), "max_length": 64},
            "data": {"corpus": {"spec": str(corpus_file)}},
            "train": {
                "out": str(tmp_path), "steps": 3, "global_batch": 4, "micro_batch": 4, "device": "cpu",
                "precision": "float32", "checkpoint_every": 2, "ema_decay": 0.75,
            },
        }
    )  # fmt: skip
    train(run)
    before = load_file(tmp_path / "checkpoints/step-00000002/state-00000.safetensors")
    model, mean = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "model-ema"))
    for name, weight in model.items():
        kept = before[f"ema/backbone.model.{name}"]
        torch.testing.assert_close(mean[name], 0.75 * kept + 0.25 * weight)
