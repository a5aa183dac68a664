"""The fused head: what objectives need of each masked row, without [rows, vocabulary] logits in memory.

The head is applied tile by tile, in forward and again in backward, and the gradient of the logits is analytic: for
log_z it is softmax(logits / T) / T, for log_rest the same over the ids outside the kept ones, and for a gathered logit
it is one. Here tiles are made by torch; on a GPU `fused_head.py` makes them inside of kernels.

Shape suffixes: N masked rows, R rows of a slice, D hidden size, V vocabulary, W ids of a tile, K ids asked for,
T temperatures.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from tide_cache.config.settings import HeadWay
from tide_cache.modeling.head import add_product
from tide_cache.records import RowStatistics
from tide_cache.student.head_way import uses_kernels
from tide_cache.student.tiles import Tile, tiles


@torch.compiler.disable  # type: ignore[untyped-decorator]  # fused already; a compiler would break at every tile
def row_statistics(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    ids_NK: torch.Tensor,
    temperatures: Sequence[float],
    is_kept_NK: torch.Tensor | None = None,
    slice_rows: int = 256,
    way: HeadWay = "auto",
    num_ids: int | None = None,
) -> RowStatistics:
    """Return logits at a few ids, and logsumexp over all ids and over the ids outside the kept ones, at each T.

    Statistics and accumulation are float32 (float64 for float64 inputs) whatever the inputs' dtype. Differentiable
    in `hidden_ND` and `head_VD`. With no row the results are empty and still on the graph.

    Args:
        hidden_ND: Final hidden states of the masked rows.
        head_VD: Output weight.
        ids_NK: Ids to gather, int64, -1 if a row has fewer than K.
        temperatures: Positive, dimensionless.
        is_kept_NK: Which of the ids make up the kept set that `log_rest` leaves out; by default all that are not -1.
            Kept ids of a row must be distinct.
        slice_rows: Rows whose logits exist at a time, over a part of the vocabulary, if no kernel is used.
        way: `torch`; `triton`, whose kernels need a GPU and inputs of 16 bits; `auto`: triton where it works.
        num_ids: Rows of `head_VD` from this number on are padding: they count for nothing, and get no gradient.

    Returns:
        Gathered logits are 0 at padding; `log_rest_NT` is -inf if there is nothing outside the kept set.
    """
    is_kept_NK = ids_NK >= 0 if is_kept_NK is None else is_kept_NK & (ids_NK >= 0)
    gathered_NK, log_z_NT, log_rest_NT = _RowStatistics.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, ids_NK, is_kept_NK, tuple(temperatures), slice_rows, way, num_ids
    )
    return RowStatistics(gathered_NK, log_z_NT, log_rest_NT, tuple(temperatures))


class _RowStatistics(torch.autograd.Function):
    """Logits are made, used and forgotten part by part, and once more in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        ids_NK: torch.Tensor,
        is_kept_NK: torch.Tensor,
        temperatures: tuple[float, ...],
        slice_rows: int,
        way: HeadWay,
        num_ids: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.fused = None
        ctx.num_ids = num_ids = len(head_VD) if num_ids is None else num_ids
        if uses_kernels(way, hidden_ND, head_VD, temperatures):
            from tide_cache.student.fused_head import FusedHead  # only where there is triton

            ctx.fused = FusedHead.of(ids_NK, is_kept_NK, num_ids, temperatures)
            gathered_NK, log_rest_NT = ctx.fused.forward(hidden_ND, head_VD[:num_ids])
        else:
            tiled = tiles(num_ids, len(head_VD), ids_NK, is_kept_NK, slice_rows)
            gathered_NK, log_rest_NT = _by_tiles(hidden_ND, head_VD, ids_NK, tiled, temperatures)
        kept_NK = gathered_NK.masked_fill(~is_kept_NK, -torch.inf)
        log_z_NT = log_rest_NT
        if kept_NK.shape[1]:
            log_kept = [(kept_NK / temperature).logsumexp(dim=1) for temperature in temperatures]
            log_z_NT = torch.logaddexp(log_rest_NT, torch.stack(log_kept, dim=1))
        ctx.save_for_backward(hidden_ND, head_VD, ids_NK, is_kept_NK, gathered_NK, log_z_NT, log_rest_NT)
        ctx.temperatures, ctx.slice_rows = temperatures, slice_rows
        ctx.set_materialize_grads(False)  # `backward` creates them on its device
        return gathered_NK, log_z_NT.clone(), log_rest_NT

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, head_VD, ids_NK, is_kept_NK, gathered_NK, log_z_NT, log_rest_NT = ctx.saved_tensors
        grad_gathered_NK, grad_z_NT, grad_rest_NT = (
            torch.zeros_like(result) if gradient is None else gradient
            for gradient, result in zip(gradients, (gathered_NK, log_z_NT, log_rest_NT), strict=True)
        )
        has_rest_NT = log_rest_NT > -torch.inf
        safe_rest_NT = torch.where(has_rest_NT, log_rest_NT, 0)
        coefficient_NT = grad_z_NT * (log_rest_NT - log_z_NT).exp() + torch.where(has_rest_NT, grad_rest_NT, 0)
        at_ids_NK = _gradient_at_ids(grad_gathered_NK, grad_z_NT, gathered_NK, is_kept_NK, log_z_NT, ctx.temperatures)
        of_logits = (safe_rest_NT, coefficient_NT, at_ids_NK)
        is_head_trained = ctx.needs_input_grad[1]
        if ctx.fused is not None:
            found = ctx.fused.backward(hidden_ND, head_VD[: ctx.num_ids], *of_logits, is_head_trained)
        else:
            tiled = tiles(ctx.num_ids, len(head_VD), ids_NK, is_kept_NK, ctx.slice_rows)
            found = _gradients_by_tiles(hidden_ND, head_VD, tiled, *of_logits, ctx.temperatures, is_head_trained)
        grad_hidden_ND, grad_head_VD = found
        if grad_head_VD is not None:
            grad_head_VD = grad_head_VD.to(head_VD.dtype)
            if len(grad_head_VD) < len(head_VD):  # kernels leave padding out
                grad_head_VD = pad(grad_head_VD, (0, 0, 0, len(head_VD) - len(grad_head_VD)))
        return grad_hidden_ND.to(hidden_ND.dtype), grad_head_VD, None, None, None, None, None, None


def _by_tiles(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    ids_NK: torch.Tensor,
    tiled: Iterable[Tile],
    temperatures: tuple[float, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits at the ids asked for [N, K], 0 at padding, and log_rest [N, T]: one matrix product."""
    stats_dtype = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
    gathered_NK = hidden_ND.new_zeros(ids_NK.shape, dtype=stats_dtype)
    largest_N = hidden_ND.new_full((len(hidden_ND),), -torch.inf, dtype=stats_dtype)
    sum_NT = hidden_ND.new_zeros((len(hidden_ND), len(temperatures)), dtype=stats_dtype)
    for tile in tiled:
        logits_RW = tile.logits(hidden_ND, head_VD, stats_dtype)
        tile.gather(logits_RW, gathered_NK)
        _add_exp(tile.hide(logits_RW), largest_N[tile.rows], sum_NT[tile.rows], temperatures)
    shift_N = _finite(largest_N)
    return gathered_NK, sum_NT.log() + torch.stack([shift_N / temperature for temperature in temperatures], dim=1)


def _gradients_by_tiles(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    tiled: Iterable[Tile],
    log_rest_NT: torch.Tensor,
    coefficient_NT: torch.Tensor,
    at_ids_NK: torch.Tensor,
    temperatures: tuple[float, ...],
    is_head_trained: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients of both inputs, in the dtype of the statistics: two or three matrix products."""
    stats_dtype = log_rest_NT.dtype
    grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=stats_dtype)
    grad_head_VD = torch.zeros_like(head_VD, dtype=stats_dtype) if is_head_trained else None
    for tile in tiled:
        rows = tile.rows
        logits_RW = tile.hide(tile.logits(hidden_ND, head_VD, stats_dtype))
        grad_RW = _softmax_part(logits_RW, log_rest_NT[rows], coefficient_NT[rows], temperatures)
        tile.add(at_ids_NK, grad_RW)
        grad_RW = grad_RW.to(hidden_ND.dtype)
        add_product(grad_hidden_ND[rows], grad_RW, head_VD[tile.ids])
        if grad_head_VD is not None:
            add_product(grad_head_VD[tile.ids], grad_RW.T, hidden_ND[rows])
    return grad_hidden_ND, grad_head_VD


def _add_exp(
    logits_RW: torch.Tensor, largest_R: torch.Tensor, sum_RT: torch.Tensor, temperatures: tuple[float, ...]
) -> None:
    """Add exp(logits / T) of a tile, in place, to sums that are relative to the largest logit so far."""
    before_R = largest_R.clone()
    torch.maximum(largest_R, logits_RW.amax(dim=1), out=largest_R)
    shift_R = _finite(largest_R)
    logits_RW.sub_(shift_R[:, None])

    def add(index: int, sum_R: torch.Tensor) -> None:
        sum_RT[:, index].mul_(((before_R - shift_R) / temperatures[index]).exp()).add_(sum_R)

    if _squares(logits_RW, temperatures):
        add(temperatures.index(2.0), logits_RW.mul_(0.5).exp_().sum(dim=1))
        add(temperatures.index(1.0), logits_RW.square_().sum(dim=1))
        return
    scratch_RW = torch.empty_like(logits_RW) if len(temperatures) > 1 else logits_RW
    for index, temperature in enumerate(temperatures):
        torch.mul(logits_RW, 1 / temperature, out=scratch_RW)
        add(index, scratch_RW.exp_().sum(dim=1))


def _squares(logits_RW: torch.Tensor, temperatures: tuple[float, ...]) -> bool:
    """Tell whether powers at T = 1 are squares of those at T = 2: on a GPU, whose passes over memory are what costs."""
    return logits_RW.is_cuda and {*temperatures} == {1.0, 2.0}


def _finite(largest_R: torch.Tensor) -> torch.Tensor:
    """Return what is subtracted before exp: 0 if there is no id yet."""
    return torch.where(largest_R > -torch.inf, largest_R, 0)


def _gradient_at_ids(
    grad_gathered_NK: torch.Tensor,
    grad_z_NT: torch.Tensor,
    gathered_NK: torch.Tensor,
    is_kept_NK: torch.Tensor,
    log_z_NT: torch.Tensor,
    temperatures: tuple[float, ...],
) -> torch.Tensor:
    """Return the gradient of gathered logits: their own, and for kept ones their share in log_z."""
    result_NK = grad_gathered_NK.clone()
    for index, temperature in enumerate(temperatures):
        softmax_NK = (gathered_NK / temperature - log_z_NT[:, index, None]).exp()
        result_NK += torch.where(is_kept_NK, softmax_NK * grad_z_NT[:, index, None] / temperature, 0)
    return result_NK


def _softmax_part(
    logits_RW: torch.Tensor, log_rest_RT: torch.Tensor, coefficient_RT: torch.Tensor, temperatures: tuple[float, ...]
) -> torch.Tensor:
    """Return the sum over T of coefficient * softmax over the rest / T; kept ids get 0. May reuse `logits_RW`."""
    if _squares(logits_RW, temperatures):
        one, two = temperatures.index(1.0), temperatures.index(2.0)
        root_RW = logits_RW.mul_(0.5).sub_(log_rest_RT[:, two, None]).exp_()  # softmax at T = 2, its square is T = 1's
        to_one_R = coefficient_RT[:, one] * (2 * log_rest_RT[:, two] - log_rest_RT[:, one]).exp()
        return torch.addcmul(coefficient_RT[:, two, None] / 2, root_RW, to_one_R[:, None]).mul_(root_RW)
    parts = []
    for index, temperature in reversed(list(enumerate(temperatures))):
        is_last_use = index == 0
        scaled_RW = logits_RW.mul_(1 / temperature) if is_last_use else logits_RW / temperature
        scaled_RW.sub_(log_rest_RT[:, index, None]).exp_().mul_(coefficient_RT[:, index, None] / temperature)
        parts.append(scaled_RW)
    result_RW = parts.pop()
    for part_RW in parts:
        result_RW += part_RW
    return result_RW
