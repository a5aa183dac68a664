"""How many processes train, and what ZeRO spreads over them or puts elsewhere, changes no loss."""

import json
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config

from helpers import fresh
from helpers.fresh import IS_FULL
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.config.train import TrainRun
from tide_cache.errors import Interrupted
from tide_cache.modeling.backbone import new_backbone
from tide_cache.modeling.checkpoint import save_student
from tide_cache.pairing import TextTokenizer
from tide_cache.training.run import train

LORA = {"rank": 2, "alpha": 8} if find_spec("peft") else None
STAGES = {
    "0": {},
    "1": {"zero_stage": 1},
    "2": {"zero_stage": 2},
    "3": {"zero_stage": 3},
    "untied 0": {"head": "untied"},
    "untied 3": {"head": "untied", "zero_stage": 3},
    "1 offload": {"zero_stage": 1, "offload": "optimizer"},
    "3 offload": {"zero_stage": 3, "offload": "optimizer+parameters"},
    "3 checkpointing": {"zero_stage": 3, "activation_checkpointing": True},
    "lora 0": {"lora": LORA},
    "lora 3": {"lora": LORA, "zero_stage": 3},
    "lora 2 untied": {"lora": LORA, "zero_stage": 2, "head": "untied"},
}
LOW = {f"bfloat16 {stage}": {"precision": "bfloat16", "zero_stage": stage} for stage in (1, 2, 3)}
if not IS_FULL:  # what each takes to a further place is in those that are left: the highest stage, with everything
    for name in ("1", "2", "1 offload", "3 checkpointing", "untied 3", "untied 0", "lora 2 untied"):
        del STAGES[name]
    LOW = {name: LOW[name] for name in ("bfloat16 3",)}
STEPS = 4


@pytest.fixture(scope="module")
def students(tmp_path_factory, vocabularies):
    """Students whose weights no two ranks can share evenly."""
    tokenizer = TextTokenizer.load(str(vocabularies.second))
    folders = {}
    for head in ("tied", "untied"):
        config = Qwen3Config(
            vocab_size=tokenizer.vocab_size, hidden_size=33, intermediate_size=47, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=head == "tied",
            bos_token_id=None, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
        )  # fmt: skip
        folders[head] = tmp_path_factory.mktemp(head)
        weights = new_backbone(config, torch.float32, "cpu", seed=5).model.state_dict()
        save_student(folders[head], weights, config, tokenizer, {})
    return folders


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, students, build_values):
    root = tmp_path_factory.mktemp("runs")
    build_cache(BuildRun.model_validate(build_values(root / "cache", signals__temperatures=(1.0, 2.0))))

    def make(name, head="tied", lora=None, lanes=64, **section):
        values = {"out": str(root / name), "steps": STEPS, "global_batch": 8, "micro_batch": 2, "precision": "float32"}
        values |= {"checkpoint_every": 0, "log_every": 1, "device": "cpu", "ema_decay": 0.5}
        return TrainRun.model_validate(
            {
                "student": {"model": str(students[head]), "lora": lora},
                "data": {"cache": str(root / "cache"), "lanes": lanes},
                "objective": [{"kind": "ce"}, {"kind": "kl"}, {"kind": "calm"}],
                "optimizer": {"lr": 1e-3, "max_grad_norm": 0.5, "weight_decay": 0.1},
                "train": values | section,
            }
        )

    return make


def job(run, resume=False, stop_at=0):
    return {"run": run.model_dump(mode="json"), "resume": resume, "stop_at": stop_at}


def in_processes(folder, jobs, size=2):
    """Train in processes that talk through gloo."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    all_ranks = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        fresh.Process(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("worker.py")), str(file)],
            env=os.environ | all_ranks | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * size, "\n".join(said)
    assert "".join(said) == ""


@pytest.fixture(scope="module")
def trained(make_run, tmp_path_factory):
    """Every run of this file, after all have ended: few processes are started, since each costs seconds."""
    runs = {name: make_run(name, **how) for name, how in (STAGES | LOW).items()}
    alone, alone_low = make_run("alone"), make_run("alone bfloat16", precision="bfloat16")
    up, up_low = make_run("up"), make_run("up bfloat16", precision="bfloat16")
    for run in (alone, alone_low):
        train(run)
    for run in (up, up_low):
        stop(run)
    down, down_low = make_run("down", zero_stage=2), make_run("down bfloat16", precision="bfloat16", zero_stage=2)
    jobs = [*(job(run) for run in runs.values()), job(down, stop_at=2), job(down_low, stop_at=2)]
    jobs += [job(at_stage(run, 3), resume=True) for run in (up, up_low)]
    in_processes(tmp_path_factory.mktemp("jobs"), jobs)
    for run in (down, down_low):
        train(at_stage(run, 3), resume=True)
    return runs | {"alone": alone, "alone low": alone_low, "1 to 2": up, "2 to 1": down, "1 to 2 low": up_low,
                   "2 to 1 low": down_low}  # fmt: skip


def at_stage(run, stage):
    return run.model_copy(update={"train": run.train.model_copy(update={"zero_stage": stage})})


def stop(run, at=2):
    def interrupt(metrics, _):
        if metrics.step == at:
            os.kill(os.getpid(), 15)

    with pytest.raises(Interrupted):
        train(run, on_step=interrupt)


def lines(run):
    return [json.loads(line) for line in (run.train.out / "metrics.jsonl").read_text().splitlines()]


def assert_close_runs(first, second, rel, weights_within=1e-4):
    assert len(lines(first)) == STEPS
    for one, other in zip(lines(first), lines(second), strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=rel)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=10 * rel)
    for model in ("model", "model-ema"):
        found, expected = (load_file(run.train.out / model / "model.safetensors") for run in (first, second))
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=weights_within, atol=weights_within)


PAIRS = [
    ("1", "0"), ("2", "0"), ("3", "0"), ("1 offload", "0"), ("3 offload", "0"), ("3 checkpointing", "0"),
    ("untied 3", "untied 0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "other"), [pair for pair in PAIRS if pair[0] in STAGES])
def test_stages_and_offload_change_no_loss(trained, name, other):
    assert_close_runs(trained[name], trained[other], rel=1e-4)


@pytest.mark.skipif(LORA is None, reason="peft is not installed: pip install 'tide-cache[lora]'")
def test_adapters_learn_alike_in_every_stage(trained):
    assert_close_runs(trained["lora 3"], trained["lora 0"], rel=1e-4)
    assert lines(trained["lora 0"])[-1]["losses"] != lines(trained["0"])[-1]["losses"]


def test_two_processes_change_no_loss(trained):
    assert_close_runs(trained["alone"], trained["0"], rel=1e-5)


def test_ranks_stop_together_a_step_after_one_of_them_was_asked(trained):
    """The other rank hears of it with the next step, and none has gone further: else they would wait for each other."""
    for name in ("2 to 1", "2 to 1 low"):
        assert [path.name for path in (trained[name].train.out / "checkpoints").iterdir()] == ["step-00000003"]


@pytest.mark.skipif(not IS_FULL, reason="nine processes: TIDE_CACHE_TESTS=full; the order itself is tested always")
@pytest.mark.parametrize("batching", ["length", "packed"])
def test_one_to_four_processes_change_no_loss(make_run, tmp_path, batching):
    """Three share lanes that three divides."""
    how = {"lanes": 48, "global_batch": 12, "micro_batch": 1, "batching": batching, "row_tokens": 96}
    alone = make_run(f"{batching} alone", **how)
    train(alone)
    for size in (2, 3, 4):
        run = make_run(f"{batching} {size}", **how, zero_stage=size // 3)
        in_processes(tmp_path, [job(run)], size)
        assert_close_runs(run, alone, rel=1e-5)


@pytest.mark.parametrize("name", LOW)
def test_bfloat16_stages_agree(trained, name):
    assert_close_runs(trained[name], trained["alone low"], rel=5e-3, weights_within=1e-2)


@pytest.mark.parametrize("name", ["1 to 2", "2 to 1"])
def test_a_run_goes_on_with_another_number_of_processes_and_stage(trained, name):
    assert_close_runs(trained[name], trained["alone"], rel=1e-5)


@pytest.mark.parametrize("name", ["1 to 2 low", "2 to 1 low"])
def test_a_bfloat16_run_goes_on_with_another_number_of_processes_and_stage(trained, name):
    assert_close_runs(trained[name], trained["alone low"], rel=5e-3, weights_within=1e-2)
