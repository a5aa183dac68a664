"""Which way the fused head goes: torch's, or through Triton's kernels where they work."""

from functools import lru_cache

import torch

from tide_cache.config.settings import HeadWay
from tide_cache.errors import first_line

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
MOST_DIFFERENCE = 0.02
"""Of the kernels' results on a small input, relative: 16-bit numbers round by 0.004."""


def uses_kernels(way: HeadWay, hidden_ND: torch.Tensor, head_VD: torch.Tensor, temperatures: tuple[float, ...]) -> bool:
    """Return whether a call is for the kernels.

    Args:
        way: What is wanted.
        hidden_ND: Final hidden states.
        head_VD: Output weight.
        temperatures: T.

    Raises:
        ValueError: Kernels are wanted, and cannot serve.
    """
    if way == "torch" or (way == "auto" and not hidden_ND.is_cuda):
        return False
    problem: str | None = f"found hidden states of {hidden_ND.dtype} and a head of {head_VD.dtype}"
    if hidden_ND.dtype == head_VD.dtype:
        problem = kernels_problem(hidden_ND.device, hidden_ND.dtype, hidden_ND.shape[1], temperatures)
    if problem is not None and way == "triton":
        raise ValueError(f"way = 'triton': {problem}; torch and auto work")
    return problem is None


@lru_cache(maxsize=64)
def kernels_problem(device: torch.device, dtype: torch.dtype, size: int, temperatures: tuple[float, ...]) -> str | None:
    """Return why the kernels cannot serve, after a trial on a small input; None if they can.

    They are compiled, and must agree with the plain head: an absent compiler, or a faulty one, is found before a step.

    Args:
        device: Where the head is applied.
        dtype: Of its inputs.
        size: Hidden size.
        temperatures: T.
    """
    if device.type == "cpu" and _is_interpreted():
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"found the device {device.type!r}, and the kernels need CUDA"
    if dtype not in SIXTEEN_BITS:
        return f"found {str(dtype).removeprefix('torch.')}, and the kernels are for bfloat16"
    return try_kernels(device, dtype, size, temperatures)


def try_kernels(device: torch.device, dtype: torch.dtype, size: int, temperatures: tuple[float, ...]) -> str | None:
    """Return what `kernels_problem` returns, on any device that Triton computes on."""
    try:
        from tide_cache.student.fused_head import FusedHead

        hidden_ND, head_VD = (_waves(rows, size, device).to(dtype) for rows in (20, 300))
        ids_NK = torch.arange(60, device=device).view(20, 3) * 5
        at_ids_NK, is_kept_NK = _waves(20, 3, device), ids_NK > 2
        fused = FusedHead.of(ids_NK, is_kept_NK, len(head_VD), temperatures)
        gathered_NK, log_rest_NT = fused.forward(hidden_ND, head_VD)
        coefficient_NT = torch.ones_like(log_rest_NT)
        gradients = fused.backward(hidden_ND, head_VD, log_rest_NT, coefficient_NT, at_ids_NK)
    except ImportError as error:
        return f"triton is not there: {error}; pip install triton"
    except Exception as error:  # a compiler may raise anything
        return f"they do not run here: {first_line(error)}"
    logits_NV = hidden_ND.double() @ head_VD.double().T
    rest_NV = logits_NV.scatter(1, torch.where(is_kept_NK, ids_NK, ids_NK[:, -1:]), -torch.inf)
    softmax = [(rest_NV / temperature).softmax(dim=1) / temperature for temperature in temperatures]
    grad_NV = torch.stack(softmax).sum(dim=0).scatter_add(1, ids_NK, at_ids_NK.double())
    plain = [
        logits_NV.gather(1, ids_NK),
        torch.stack([(rest_NV / temperature).logsumexp(dim=1) for temperature in temperatures], dim=1),
        grad_NV @ head_VD.double(),
        grad_NV.T @ hidden_ND.double(),
    ]
    found = [gathered_NK, log_rest_NT, *(gradient for gradient in gradients if gradient is not None)]
    worst = max(float((one - other).norm() / other.norm()) for one, other in zip(found, plain, strict=True))
    return None if worst < MOST_DIFFERENCE else f"they differ from the plain head by {worst:.2g} on a small input"


def _is_interpreted() -> bool:
    try:
        from tide_cache.student.fused_head import IS_INTERPRETED
    except ImportError:
        return False
    return IS_INTERPRETED


def _waves(rows: int, size: int, device: torch.device) -> torch.Tensor:
    """Return numbers that look random and are the same everywhere."""
    return (torch.arange(rows * size, device=device, dtype=torch.float32).view(rows, size).square() * 0.37).sin()
