"""The DeepSpeed engine: its configuration is derived from the run file, never written by hand."""

import contextlib
import logging
import os
import sys
import warnings
from typing import Any

import torch
from torch import nn

from tide_cache.config.train import OptimizerConfig, TrainConfig

if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it had to guess
import deepspeed
import deepspeed.ops
from deepspeed.runtime import bf16_optimizer

# Without the op, CPU ranks talk through gloo. With it, DeepSpeed compiles C++ when the first training starts: a
# minute, and a compiler, for nothing that a test or a small run would notice.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# The bfloat16 optimizer reports the machine's memory four times as it is made: twelve lines that every user would
# read before the first step, and a garbage collection for each.
bf16_optimizer.see_memory_usage = lambda *_, **__: None


def deepspeed_config(train: TrainConfig, optimizer: OptimizerConfig, world_size: int) -> dict[str, Any]:
    """Derive DeepSpeed's configuration.

    bfloat16 always runs at least as ZeRO 1, which keeps float32 masters and accumulates in float32; DeepSpeed's own
    stage 0 path for bfloat16 gives visibly other losses (docs/decisions/bfloat16.md).

    Args:
        train: Section `train` of the run file.
        optimizer: Section `optimizer`.
        world_size: Number of processes; `global_batch` is a multiple of `micro_batch` times this.
    """
    is_bfloat16 = train.precision == "bfloat16"
    config: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.global_batch // (train.micro_batch * world_size),
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": {"stage": max(train.zero_stage, 1) if is_bfloat16 else train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": is_bfloat16},
        "steps_per_print": sys.maxsize,
    }
    if is_bfloat16:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def make_engine(module: nn.Module, train: TrainConfig, optimizer: OptimizerConfig, world_size: int) -> Any:
    """Wrap a module in a DeepSpeed engine with AdamW; what DeepSpeed prints goes to stderr.

    Args:
        module: On its device, in its dtype.
        train: Section `train` of the run file.
        optimizer: Section `optimizer`.
        world_size: Number of processes, already joined.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's calls, not the user's
    adamw = torch.optim.AdamW(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=optimizer.lr,
        betas=optimizer.betas,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
    )
    with contextlib.redirect_stdout(sys.stderr):
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw,
            config=deepspeed_config(train, optimizer, world_size),
            dist_init_required=False,
        )
    return engine


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the rate of the step to come."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
