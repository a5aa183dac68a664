"""The fused head: what objectives need of each masked row, without ever holding [rows, vocabulary] logits.

The head is applied slice by slice, forward and again in backward, and the gradient of the logits is written down
analytically: for log_z it is softmax(logits / T) / T, for log_rest the same over the ids outside the kept ones, and
for a gathered logit one. A slice's logits live only inside the slice.

Shape suffixes: N masked rows, R rows of a slice, D hidden size, V vocabulary, K ids asked for, T temperatures.
"""

from collections.abc import Sequence
from typing import Any

import torch

from tide_cache.modeling.head import apply_head
from tide_cache.records import RowStatistics


def row_statistics(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    ids_NK: torch.Tensor,
    temperatures: Sequence[float],
    is_kept_NK: torch.Tensor | None = None,
    slice_rows: int = 256,
) -> RowStatistics:
    """Give logits at a few ids, and logsumexp over all ids and over the ids outside the kept ones, at each T.

    Statistics and accumulation are float32 (float64 for float64 inputs) whatever the inputs' dtype. Differentiable
    in `hidden_ND` and `head_VD`. With no row the results are empty and still on the graph.

    Args:
        hidden_ND: Final hidden states of the masked rows.
        head_VD: Output weight.
        ids_NK: Ids to gather, int64, -1 where a row has fewer than K.
        temperatures: Positive, dimensionless.
        is_kept_NK: Which of the ids make up the kept set that `log_rest` leaves out; by default all that are not -1.
            Kept ids of a row must be distinct.
        slice_rows: Rows whose logits exist at a time.

    Returns:
        Gathered logits are 0 at padding; `log_rest_NT` is -inf where nothing is left outside the kept set.
    """
    is_kept_NK = ids_NK >= 0 if is_kept_NK is None else is_kept_NK & (ids_NK >= 0)
    gathered_NK, log_z_NT, log_rest_NT = _RowStatistics.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, ids_NK, is_kept_NK, tuple(temperatures), slice_rows
    )
    return RowStatistics(gathered_NK, log_z_NT, log_rest_NT, tuple(temperatures))


class _RowStatistics(torch.autograd.Function):
    """Slice by slice: one matrix product forward, three backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        ids_NK: torch.Tensor,
        is_kept_NK: torch.Tensor,
        temperatures: tuple[float, ...],
        slice_rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_rows = hidden_ND.shape[0]
        stats_dtype = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        gathered_NK = hidden_ND.new_zeros(ids_NK.shape, dtype=stats_dtype)
        log_rest_NT = hidden_ND.new_zeros((num_rows, len(temperatures)), dtype=stats_dtype)
        log_z_NT = torch.zeros_like(log_rest_NT)
        for start in range(0, num_rows, slice_rows):
            rows = slice(start, start + slice_rows)
            logits_RV = apply_head(hidden_ND[rows], head_VD, stats_dtype)
            gathered_RK = logits_RV.gather(1, ids_NK[rows].clamp_min(0))
            gathered_NK[rows] = gathered_RK.masked_fill(ids_NK[rows] < 0, 0)
            _hide(logits_RV, ids_NK[rows], is_kept_NK[rows])
            kept_RK = gathered_RK.masked_fill(~is_kept_NK[rows], -torch.inf)
            for index, temperature in enumerate(temperatures):
                log_rest_R = _logsumexp(logits_RV, temperature)
                log_kept_R = (kept_RK / temperature).logsumexp(dim=1) if kept_RK.shape[1] else log_rest_R - torch.inf
                log_rest_NT[rows, index] = log_rest_R
                log_z_NT[rows, index] = torch.logaddexp(log_rest_R, log_kept_R)
        ctx.save_for_backward(hidden_ND, head_VD, ids_NK, is_kept_NK, gathered_NK, log_z_NT, log_rest_NT)
        ctx.temperatures, ctx.slice_rows = temperatures, slice_rows
        return gathered_NK, log_z_NT, log_rest_NT

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_gathered_NK, grad_z_NT, grad_rest_NT = gradients
        hidden_ND, head_VD, ids_NK, is_kept_NK, gathered_NK, log_z_NT, log_rest_NT = ctx.saved_tensors
        stats_dtype = gathered_NK.dtype
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = torch.zeros_like(head_VD, dtype=stats_dtype)
        has_rest_NT = log_rest_NT > -torch.inf
        safe_rest_NT = torch.where(has_rest_NT, log_rest_NT, 0)
        coefficient_NT = grad_z_NT * (log_rest_NT - log_z_NT).exp() + torch.where(has_rest_NT, grad_rest_NT, 0)
        at_ids_NK = _gradient_at_ids(grad_gathered_NK, grad_z_NT, gathered_NK, is_kept_NK, log_z_NT, ctx.temperatures)
        at_ids_NK = at_ids_NK.masked_fill(ids_NK < 0, 0)
        for start in range(0, hidden_ND.shape[0], ctx.slice_rows):
            rows = slice(start, start + ctx.slice_rows)
            logits_RV = apply_head(hidden_ND[rows], head_VD, stats_dtype)
            _hide(logits_RV, ids_NK[rows], is_kept_NK[rows])
            grad_RV = _softmax_part(logits_RV, safe_rest_NT[rows], coefficient_NT[rows], ctx.temperatures)
            grad_RV.scatter_add_(1, ids_NK[rows].clamp_min(0), at_ids_NK[rows])
            grad_RV = grad_RV.to(hidden_ND.dtype)
            grad_hidden_ND[rows] = grad_RV @ head_VD
            grad_head_VD += grad_RV.T @ hidden_ND[rows]
        return grad_hidden_ND, grad_head_VD.to(head_VD.dtype), None, None, None, None


def _hide(logits_RV: torch.Tensor, ids_RK: torch.Tensor, is_kept_RK: torch.Tensor) -> None:
    """Set the kept ids' logits to -inf, in place."""
    row, column = is_kept_RK.nonzero(as_tuple=True)
    logits_RV[row, ids_RK[row, column]] = -torch.inf


def _logsumexp(logits_RV: torch.Tensor, temperature: float) -> torch.Tensor:
    scaled_RV = logits_RV if temperature == 1 else logits_RV / temperature
    return scaled_RV.logsumexp(dim=1)


def _gradient_at_ids(
    grad_gathered_NK: torch.Tensor,
    grad_z_NT: torch.Tensor,
    gathered_NK: torch.Tensor,
    is_kept_NK: torch.Tensor,
    log_z_NT: torch.Tensor,
    temperatures: tuple[float, ...],
) -> torch.Tensor:
    """Give the gradient of gathered logits: their own, and their share in log_z where they are kept."""
    result_NK = grad_gathered_NK.clone()
    for index, temperature in enumerate(temperatures):
        softmax_NK = (gathered_NK / temperature - log_z_NT[:, index, None]).exp()
        result_NK += torch.where(is_kept_NK, softmax_NK * grad_z_NT[:, index, None] / temperature, 0)
    return result_NK


def _softmax_part(
    logits_RV: torch.Tensor, log_rest_RT: torch.Tensor, coefficient_RT: torch.Tensor, temperatures: tuple[float, ...]
) -> torch.Tensor:
    """Sum over T of coefficient * softmax over the rest / T; hidden (kept) ids get zero. May reuse `logits_RV`."""
    result_RV: torch.Tensor | None = None
    for index, temperature in reversed(list(enumerate(temperatures))):
        is_last_use = index == 0
        scaled_RV = logits_RV if is_last_use else logits_RV.clone()
        if temperature != 1:
            scaled_RV.div_(temperature)
        scaled_RV.sub_(log_rest_RT[:, index, None]).exp_().mul_(coefficient_RT[:, index, None] / temperature)
        result_RV = scaled_RV if result_RV is None else result_RV.add_(scaled_RV)
    assert result_RV is not None
    return result_RV
