"""The small parts of training: learning rate, metrics file, and finding out which process this is."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from transformers import get_cosine_schedule_with_warmup

from tide_cache.config.train import OptimizerConfig, TrainConfig
from tide_cache.errors import RunFileError
from tide_cache.training import meeting
from tide_cache.training.distributed import COLLECTIVE_S, World, find_world, give_time, rank_device
from tide_cache.training.engine import deepspeed_config, parameter_groups
from tide_cache.training.meeting import wait_for_all
from tide_cache.training.metrics import MetricsFile, StepMetrics, objective_names
from tide_cache.training.quiet_deepspeed import deepspeed
from tide_cache.training.schedule import learning_rate


def rates(schedule, steps=10, warmup_ratio=0.2):
    options = {"steps": steps, "peak": 1.0, "warmup_ratio": warmup_ratio, "schedule": schedule}
    return [learning_rate(step, **options) for step in range(steps)]


def test_the_rate_warms_up_to_its_peak_and_decays():
    cosine = rates("cosine")
    assert cosine[:3] == pytest.approx([0.0, 0.5, 1.0])
    assert cosine[6] == pytest.approx(0.5)  # half of the decay
    assert all(0 < b <= a for a, b in pairwise(cosine[2:]))
    assert rates("constant")[2:] == [1.0] * 8
    assert rates("cosine", steps=1, warmup_ratio=0.1) == [0.5], "a run that is all warm-up learns something"


@pytest.mark.parametrize(("steps", "warmup_ratio"), [(10, 0.2), (37, 0.1), (5, 0.0)])
def test_the_rate_is_that_of_transformers(steps, warmup_ratio):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, math.ceil(warmup_ratio * steps), steps)
    expected = [theirs.lr_lambdas[0](step) for step in range(steps)]
    assert rates("cosine", steps, warmup_ratio) == pytest.approx(expected)
    assert rates("constant", warmup_ratio=0.0) == [1.0] * 10


def test_norms_and_biases_are_not_decayed():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    matrix, bias, *norm = module.parameters()
    decayed, others = parameter_groups(module, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert [id(weight) for weight in decayed["params"]] == [id(matrix)]
    assert [id(weight) for weight in others["params"]] == [id(weight) for weight in (bias, *norm)]
    matrix.ds_shape, matrix.data = matrix.shape, torch.empty(0)  # as ZeRO 3 leaves it
    assert len(parameter_groups(module, 0.1)[0]["params"]) == 1
    assert len(parameter_groups(module, 0.0)) == 1


@pytest.mark.parametrize(("local_rank", "num_seen", "device"), [(1, 1, "cuda:0"), (1, 4, "cuda:1"), (0, 1, "cuda:0")])
def test_a_process_that_sees_one_gpu_takes_it(monkeypatch, local_rank, num_seen, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_seen)
    assert rank_device(World(5, 8, local_rank), "cuda") == device
    assert rank_device(World(5, 8, local_rank), "cpu") == "cpu"


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunFileError, match=r"number 3 on its machine, counted from 0, and sees 2 GPUs"):
        rank_device(World(3, 4, 3), "cuda")


def test_resuming_drops_the_lines_of_steps_that_are_taken_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, resumed_at=0)
    for step in (1, 2, 3):
        first.write(StepMetrics(step, 0.1, 1.0, {"ce": 1.0}, [None, 2.0], 0.1, None, None, 1.0, 0.0, 1, 1.0))
    with path.open("a") as stream:
        stream.write('{"step": 4, "epo')  # killed in the middle of a line
    MetricsFile(path, resumed_at=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    MetricsFile(path, resumed_at=0)
    assert path.read_text() == ""


def test_objectives_of_one_kind_are_told_apart():
    assert objective_names(["ce", "kl", "kl"]) == ["ce", "kl.0", "kl.1"]


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, World(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, World(3, 4, 1)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, World(1, 2, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, World(0, 1, 0)),  # sbatch without srun
    ],
)
def test_the_launchers_variables_say_which_process_this_is(monkeypatch, variables, world):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_world() == world


def test_several_processes_without_a_meeting_place_are_refused(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(RunFileError, match=r"rank 1 of 2 .* no MASTER_ADDR.*scontrol"):
        find_world()


@pytest.mark.parametrize(
    ("rank", "size", "words"),
    [("one", "2", "RANK: found 'one', expected a whole number"), ("2", "2", "RANK: found 2, expected less than")],
)
def test_variables_that_are_no_place_are_refused(monkeypatch, rank, size, words):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(RunFileError, match=words):
        find_world()


def test_deepspeed_is_configured_from_the_run_file(tmp_path):
    train = TrainConfig(out=tmp_path, steps=1, global_batch=24, micro_batch=2, precision="bfloat16", zero_stage=0)
    config = deepspeed_config(train, OptimizerConfig(max_grad_norm=0.5), world_size=3)
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 1  # docs/decisions/bfloat16.md
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    exact = deepspeed_config(train.model_copy(update={"precision": "float32"}), OptimizerConfig(), world_size=1)
    assert exact["zero_optimization"]["stage"] == 0
    assert not exact["bf16"]["enabled"]


@pytest.mark.parametrize(("num_trained", "bucket"), [(1000, 1000), (8_000_000_000, 500_000_000)])
def test_zero_allocates_no_more_for_messages_than_there_are_gradients(num_trained, bucket):
    train = TrainConfig(out="out", steps=1, zero_stage=2)
    config = deepspeed_config(train, OptimizerConfig(), world_size=2, num_trained=num_trained)
    assert config["zero_optimization"]["reduce_bucket_size"] == bucket


def test_no_operator_of_deepspeed_is_probed():
    """It runs compilers, and prints a warning for each operator where there is a GPU and no CUDA toolkit."""
    assert vars(deepspeed.ops)["__compatible_ops__"] == {"deepspeed_shm_comm": False}


def test_ranks_wait_without_a_limit_for_one_that_is_busy(monkeypatch):
    """Each comes three times; nobody goes on before the other has come as often."""
    store, come = dist.HashStore(), []
    monkeypatch.setattr(meeting, "meet", lambda world: store)
    monkeypatch.setattr(meeting, "_waits", type(meeting._waits)(meeting.count))

    def rank(number):
        for visit in range(3):
            come.append(visit)
            wait_for_all(World(number, 2, number))
            assert come.count(visit) == 2

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(rank, range(2)))
    wait_for_all(World(0, 1, 0))


def test_every_group_gets_the_stated_time():
    """DeepSpeed makes groups of its own, which would wait as long as torch says."""
    if is_ours := not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.new_group([0], timeout=timedelta(seconds=7))
    give_time()
    try:
        backend = group._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(seconds=COLLECTIVE_S)
    finally:
        dist.destroy_process_group(None if is_ours else group)
