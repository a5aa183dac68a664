"""Which device each local worker gets."""

import torch

from tide_cache.config.build import TeacherConfig
from tide_cache.errors import RunFileError
from tide_cache.modeling.backbone import resolve_device


def worker_devices(teacher: TeacherConfig, num_workers: int) -> list[str]:
    """Assign each worker its own GPU, or all of them the CPU.

    Args:
        teacher: Of the run file.
        num_workers: How many.

    Raises:
        RunFileError: CUDA was asked for and there is none, there are fewer GPUs than workers, one GPU is named for
            several workers, or one teacher takes all GPUs.
    """
    device = resolve_device(teacher.device)
    if num_workers == 1 or device == "cpu":
        return [device] * num_workers
    if teacher.device_map is not None:
        raise RunFileError(
            f"--workers {num_workers}: teacher.device_map = {teacher.device_map!r} spreads one teacher over all GPUs "
            "of this machine; use one worker here, and more machines with --shard-range"
        )
    if ":" in device:
        raise RunFileError(
            f"--workers {num_workers}: teacher.device names one GPU, {device}; use 'cuda' or 'auto', or one worker"
        )
    if num_workers > (found := torch.cuda.device_count()):
        raise RunFileError(
            f"--workers {num_workers}: found {found} GPUs, and each worker takes one; lower it, or run on the CPU "
            "with --set teacher.device=cpu"
        )
    return [f"{device}:{index}" for index in range(num_workers)]
