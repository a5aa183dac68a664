"""The example programs run, and their losses are those of `tide-cache train`."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tide_cache
from tide_cache.training.run import train

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CALM = ({"kind": "ce"}, {"kind": "calm", "temperature": 5.0, "weight": 0.5})


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name.replace('-', '_')}", EXAMPLES / name / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(tiny_cache, tiny_teacher, tmp_path):
    values = {"--student": tiny_teacher, "--cache": tiny_cache, "--out": tmp_path / "student", "--steps": 3}
    return [str(part) for pair in values.items() for part in pair]


@pytest.fixture
def losses_of_training(tiny_cache, tiny_teacher, tmp_path):
    """Losses of `tide-cache train` over the same samples, by step."""

    def run(objectives):
        section = {"out": tmp_path / "run", "steps": 3, "global_batch": 8, "micro_batch": 4, "batching": "order"}
        section |= {"precision": "float32", "log_every": 1, "device": "cpu", "checkpoint_every": 0}
        values = {"student": {"model": str(tiny_teacher)}, "data": {"cache": str(tiny_cache)}}
        train(tide_cache.TrainRun.model_validate(values | {"objective": objectives, "train": section}))
        return [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    return run


def test_the_plain_loop_computes_the_loss_of_training(options, losses_of_training, capsys, tmp_path, tiny_teacher):
    load("plain-loop").main(options)
    losses = [float(loss) for loss in re.findall(r"step \d+: loss (\S+)", capsys.readouterr().out)]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(losses_of_training(CALM)[0], rel=1e-6)
    found, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "student", tiny_teacher))
    name = "model.embed_tokens.weight"
    assert not found[name].equal(before[name])
    tide_cache.read_checkpoint(str(tmp_path / "student"))


@pytest.mark.filterwarnings("ignore::UserWarning:transformers.*", "ignore::FutureWarning:transformers.*")
def test_the_trainer_computes_the_loss_of_training(options, losses_of_training, monkeypatch, tmp_path):
    """Two micro-batches make a step, of unequal counts: a mean of their means would be another loss."""
    example = load("hf-trainer")
    histories = []
    monkeypatch.setattr(example.CacheTrainer, "log", lambda self, logs, *_: histories.append(logs))
    example.main(options)
    losses = [logs["loss"] for logs in histories if "loss" in logs]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(losses_of_training(({"kind": "ce"}, {"kind": "calm"}))[0], abs=1e-4)
    tide_cache.read_checkpoint(str(tmp_path / "student"))
