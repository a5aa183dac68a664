"""The DeepSpeed engine: its configuration is derived from the run file, never written by hand."""

import contextlib
import logging
import sys
import warnings
from typing import Any

import torch
from torch import nn

from tide_cache.config.train import OptimizerConfig, TrainConfig
from tide_cache.training.distributed import give_time
from tide_cache.training.ema import AveragingAdamW
from tide_cache.training.gradients import Gradients
from tide_cache.training.quiet_deepspeed import deepspeed

PERSISTENT_ELEMENTS = 100_000
"""Weights below this size stay whole on every rank under ZeRO 3: to gather a norm costs more than it saves."""


LARGEST_BUCKET = 500_000_000
"""Gradients that ZeRO sends at a time, by DeepSpeed's own default; it allocates that many however few there are."""


def deepspeed_config(
    train: TrainConfig, optimizer: OptimizerConfig, world_size: int, num_trained: int | None = None
) -> dict[str, Any]:
    """Derive DeepSpeed's configuration.

    bfloat16 always runs at least as ZeRO 1, which keeps float32 masters and accumulates in float32; DeepSpeed's own
    stage 0 path for bfloat16 gives visibly other losses (docs/decisions/bfloat16.md).

    Args:
        train: Section `train` of the run file.
        optimizer: Section `optimizer`.
        world_size: Number of processes; `global_batch` is a multiple of `micro_batch` times this.
        num_trained: Weights that are trained, where they are known.
    """
    is_bfloat16 = train.precision == "bfloat16"
    config: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.global_batch // (train.micro_batch * world_size),
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": _zero_section(train),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW on the CPU needs no compiler
        "bf16": {"enabled": is_bfloat16},
        "steps_per_print": sys.maxsize,
    }
    if num_trained is not None and effective_stage(train):
        config["zero_optimization"]["reduce_bucket_size"] = min(num_trained, LARGEST_BUCKET)
    if is_bfloat16:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def effective_stage(train: TrainConfig) -> int:
    """Return the ZeRO stage that a run has; see `deepspeed_config`."""
    return max(train.zero_stage, 1) if train.precision == "bfloat16" else train.zero_stage


def _zero_section(train: TrainConfig) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": effective_stage(train)}
    if section["stage"] == 3:
        section["stage3_param_persistence_threshold"] = PERSISTENT_ELEMENTS
    place = {"device": "cpu", "pin_memory": torch.accelerator.is_available()}
    if train.offload != "none":
        section["offload_optimizer"] = place
    if train.offload == "optimizer+parameters":
        section["offload_param"] = place
    return section


def make_engine(module: nn.Module, train: TrainConfig, optimizer: OptimizerConfig, world_size: int) -> Any:
    """Wrap a module in a DeepSpeed engine with AdamW; what DeepSpeed prints goes to stderr.

    Args:
        module: In its dtype, on its device; under ZeRO 3 on the CPU, from where its weights are spread one by one.
        train: Section `train` of the run file.
        optimizer: Section `optimizer`.
        world_size: Number of processes, already joined.
    """
    logger = logging.getLogger("DeepSpeed")
    if not logging.root.isEnabledFor(logging.INFO):  # nobody asked for it
        logger.setLevel(logging.WARNING)
    logger.addFilter(_says_something)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's calls, not the user's
    num_trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    config = deepspeed_config(train, optimizer, world_size, num_trained)
    with contextlib.redirect_stdout(sys.stderr):
        deepspeed.init_distributed(dist_init_required=False)  # else zero.Init takes itself for the only process
        if effective_stage(train) == 3:
            deepspeed.zero.Init(module=module, config_dict_or_path=config)
            _move_buffers(module)
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=_adamw(module, train, optimizer),
            config=config,
            dist_init_required=False,
        )
    give_time()
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        Gradients(module, world_size).take_over(engine)
    return engine


def _says_something(record: logging.LogRecord) -> bool:
    """Drop warnings that do not hold here.

    AdamW that keeps a mean is still AdamW; and the dataclass that the student is given holds no tensor on the graph.
    """
    return not any(words in record.getMessage() for words in ("untested optimizer", "unknown inputs or outputs type"))


def _adamw(module: nn.Module, train: TrainConfig, optimizer: OptimizerConfig) -> torch.optim.AdamW:
    options: dict[str, Any] = {
        "lr": optimizer.lr,
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "fused": True,  # one pass over memory; the loop over tensors makes temporaries and takes several times as long
    }
    parameters = parameter_groups(module, optimizer.weight_decay)
    if train.ema_decay:
        return AveragingAdamW(parameters, ema_decay=train.ema_decay, **options)
    return torch.optim.AdamW(parameters, **options)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: norms and biases are not decayed, as usual; one group if nothing is decayed.

    Args:
        module: Its weights may be spread over ranks already.
        weight_decay: Of matrices and embeddings.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not weight_decay:
        return [{"params": trained}]
    decayed = [parameter for parameter in trained if _num_dimensions(parameter) > 1]
    others = [parameter for parameter in trained if _num_dimensions(parameter) <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _num_dimensions(parameter: Any) -> int:
    """Under ZeRO 3 a weight is flat, and knows its shape."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _move_buffers(module: nn.Module) -> None:
    """DeepSpeed moves weights as it spreads them, and leaves buffers where they are."""
    device = deepspeed.accelerator.get_accelerator().current_device_name()
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
