"""The fused head: what objectives need of each masked row, without ever holding [rows, vocabulary] logits.

The head is applied tile by tile, forward and again in backward, and the gradient of the logits is written down
analytically: for log_z it is softmax(logits / T) / T, for log_rest the same over the ids outside the kept ones, and
for a gathered logit one. A tile is a slice of rows by a range of the vocabulary, small enough to stay in a processor's
cache: most of the time of a plain head goes into fresh memory, not into arithmetic.

Shape suffixes: N masked rows, R rows of a slice, D hidden size, V vocabulary, W ids of a tile, K ids asked for,
E those of them that fall into a tile, T temperatures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tide_cache.modeling.head import apply_head
from tide_cache.records import RowStatistics

_TILE_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits of a tile: on a processor they stay in its cache (4 MiB); a GPU would rather have few and large kernels."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # fused already; a compiler would break at every tile
def row_statistics(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    ids_NK: torch.Tensor,
    temperatures: Sequence[float],
    is_kept_NK: torch.Tensor | None = None,
    slice_rows: int = 256,
) -> RowStatistics:
    """Return logits at a few ids, and logsumexp over all ids and over the ids outside the kept ones, at each T.

    Statistics and accumulation are float32 (float64 for float64 inputs) whatever the inputs' dtype. Differentiable
    in `hidden_ND` and `head_VD`. With no row the results are empty and still on the graph.

    Args:
        hidden_ND: Final hidden states of the masked rows.
        head_VD: Output weight.
        ids_NK: Ids to gather, int64, -1 where a row has fewer than K.
        temperatures: Positive, dimensionless.
        is_kept_NK: Which of the ids make up the kept set that `log_rest` leaves out; by default all that are not -1.
            Kept ids of a row must be distinct.
        slice_rows: Rows whose logits exist at a time, for a part of the vocabulary.

    Returns:
        Gathered logits are 0 at padding; `log_rest_NT` is -inf where nothing is left outside the kept set.
    """
    is_kept_NK = ids_NK >= 0 if is_kept_NK is None else is_kept_NK & (ids_NK >= 0)
    gathered_NK, log_z_NT, log_rest_NT = _RowStatistics.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, ids_NK, is_kept_NK, tuple(temperatures), slice_rows
    )
    return RowStatistics(gathered_NK, log_z_NT, log_rest_NT, tuple(temperatures))


@dataclass(frozen=True, eq=False)
class _Tile:
    """Some rows by a range of the vocabulary, and which of the ids asked for lie in it.

    Attributes:
        rows: Of the hidden states.
        ids: Of the vocabulary.
        row_E: Row of each id, counted within the slice.
        rank_E: Which of the row's ids it is.
        column_E: Where it lies in the tile.
        is_kept_E: Whether it is one of the kept ones.
    """

    rows: slice
    ids: slice
    row_E: torch.Tensor
    rank_E: torch.Tensor
    column_E: torch.Tensor
    is_kept_E: torch.Tensor

    def logits(self, hidden_ND: torch.Tensor, head_VD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Apply the head, [R, W]."""
        return apply_head(hidden_ND[self.rows], head_VD[self.ids], dtype)

    def hide(self, logits_RW: torch.Tensor) -> torch.Tensor:
        """Set the kept ids' logits to -inf, in place."""
        logits_RW[self.row_E[self.is_kept_E], self.column_E[self.is_kept_E]] = -torch.inf
        return logits_RW


def _tiles(vocab: int, ids_NK: torch.Tensor, is_kept_NK: torch.Tensor, slice_rows: int) -> Iterator[_Tile]:
    """Cut the logits into tiles, slice by slice of the rows."""
    for start in range(0, len(ids_NK), slice_rows):
        rows = slice(start, min(start + slice_rows, len(ids_NK)))
        width = max(1, _TILE_LOGITS.get(ids_NK.device.type, _TILE_LOGITS["cuda"]) // (rows.stop - rows.start))
        firsts = torch.arange(0, vocab, width)
        row_E, rank_E = (ids_NK[rows] >= 0).nonzero(as_tuple=True)
        id_E = ids_NK[rows][row_E, rank_E]
        id_E, order_E = id_E.sort()
        row_E, rank_E = row_E[order_E], rank_E[order_E]
        is_kept_E = is_kept_NK[rows][row_E, rank_E]
        bounds = [*torch.searchsorted(id_E, firsts.to(id_E.device)).tolist(), len(id_E)]
        for number, first in enumerate(firsts.tolist()):
            of_tile = slice(bounds[number], bounds[number + 1])
            ids = slice(first, min(first + width, vocab))
            yield _Tile(rows, ids, row_E[of_tile], rank_E[of_tile], id_E[of_tile] - first, is_kept_E[of_tile])


class _RowStatistics(torch.autograd.Function):
    """Tile by tile: one matrix product forward, three backward."""

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
        largest_N = hidden_ND.new_full((num_rows,), -torch.inf, dtype=stats_dtype)
        sum_NT = hidden_ND.new_zeros((num_rows, len(temperatures)), dtype=stats_dtype)
        for tile in _tiles(len(head_VD), ids_NK, is_kept_NK, slice_rows):
            logits_RW = tile.logits(hidden_ND, head_VD, stats_dtype)
            gathered_NK[tile.rows][tile.row_E, tile.rank_E] = logits_RW[tile.row_E, tile.column_E]
            _add_exp(tile.hide(logits_RW), largest_N[tile.rows], sum_NT[tile.rows], temperatures)
        temperatures_T = sum_NT.new_tensor(temperatures)
        log_rest_NT = sum_NT.log() + _finite(largest_N)[:, None] / temperatures_T
        kept_NK = gathered_NK.masked_fill(~is_kept_NK, -torch.inf)
        log_z_NT = log_rest_NT
        if kept_NK.shape[1]:
            log_kept = [(kept_NK / temperature).logsumexp(dim=1) for temperature in temperatures]
            log_z_NT = torch.logaddexp(log_rest_NT, torch.stack(log_kept, dim=1))
        ctx.save_for_backward(hidden_ND, head_VD, ids_NK, is_kept_NK, gathered_NK, log_z_NT, log_rest_NT)
        ctx.temperatures, ctx.slice_rows = temperatures, slice_rows
        return gathered_NK, log_z_NT.clone(), log_rest_NT

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_gathered_NK, grad_z_NT, grad_rest_NT = gradients
        hidden_ND, head_VD, ids_NK, is_kept_NK, gathered_NK, log_z_NT, log_rest_NT = ctx.saved_tensors
        stats_dtype = gathered_NK.dtype
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=stats_dtype)
        grad_head_VD = torch.zeros_like(head_VD, dtype=stats_dtype)
        has_rest_NT = log_rest_NT > -torch.inf
        safe_rest_NT = torch.where(has_rest_NT, log_rest_NT, 0)
        coefficient_NT = grad_z_NT * (log_rest_NT - log_z_NT).exp() + torch.where(has_rest_NT, grad_rest_NT, 0)
        at_ids_NK = _gradient_at_ids(grad_gathered_NK, grad_z_NT, gathered_NK, is_kept_NK, log_z_NT, ctx.temperatures)
        for tile in _tiles(len(head_VD), ids_NK, is_kept_NK, ctx.slice_rows):
            rows = tile.rows
            logits_RW = tile.hide(tile.logits(hidden_ND, head_VD, stats_dtype))
            grad_RW = _softmax_part(logits_RW, safe_rest_NT[rows], coefficient_NT[rows], ctx.temperatures)
            # accumulate: an id may be asked for twice, as the true token and as a kept one
            grad_RW.index_put_((tile.row_E, tile.column_E), at_ids_NK[rows][tile.row_E, tile.rank_E], accumulate=True)
            grad_RW = grad_RW.to(hidden_ND.dtype)
            _add_product(grad_hidden_ND[rows], grad_RW, head_VD[tile.ids])
            _add_product(grad_head_VD[tile.ids], grad_RW.T, hidden_ND[rows])
        return grad_hidden_ND.to(hidden_ND.dtype), grad_head_VD.to(head_VD.dtype), None, None, None, None


def _add_exp(
    logits_RW: torch.Tensor, largest_R: torch.Tensor, sum_RT: torch.Tensor, temperatures: tuple[float, ...]
) -> None:
    """Add exp(logits / T) of a tile to sums that are kept relative to the largest logit so far, in place."""
    before_R = largest_R.clone()
    torch.maximum(largest_R, logits_RW.amax(dim=1), out=largest_R)
    shift_R = _finite(largest_R)
    logits_RW.sub_(shift_R[:, None])
    scratch_RW = torch.empty_like(logits_RW) if len(temperatures) > 1 else logits_RW
    for index, temperature in enumerate(temperatures):
        torch.mul(logits_RW, 1 / temperature, out=scratch_RW)
        sum_RT[:, index].mul_(((before_R - shift_R) / temperature).exp()).add_(scratch_RW.exp_().sum(dim=1))


def _finite(largest_R: torch.Tensor) -> torch.Tensor:
    """Return what is subtracted before exp: nothing where there is no id yet."""
    return torch.where(largest_R > -torch.inf, largest_R, 0)


def _add_product(sum_XD: torch.Tensor, first_XY: torch.Tensor, second_YD: torch.Tensor) -> None:
    """Add a matrix product, in the dtype of the sum."""
    if first_XY.dtype == sum_XD.dtype:
        sum_XD.addmm_(first_XY, second_YD)
    else:
        sum_XD += apply_head(first_XY, second_YD.T, sum_XD.dtype)


def _gradient_at_ids(
    grad_gathered_NK: torch.Tensor,
    grad_z_NT: torch.Tensor,
    gathered_NK: torch.Tensor,
    is_kept_NK: torch.Tensor,
    log_z_NT: torch.Tensor,
    temperatures: tuple[float, ...],
) -> torch.Tensor:
    """Return the gradient of gathered logits: their own, and their share in log_z where they are kept."""
    result_NK = grad_gathered_NK.clone()
    for index, temperature in enumerate(temperatures):
        softmax_NK = (gathered_NK / temperature - log_z_NT[:, index, None]).exp()
        result_NK += torch.where(is_kept_NK, softmax_NK * grad_z_NT[:, index, None] / temperature, 0)
    return result_NK


def _softmax_part(
    logits_RW: torch.Tensor, log_rest_RT: torch.Tensor, coefficient_RT: torch.Tensor, temperatures: tuple[float, ...]
) -> torch.Tensor:
    """Sum over T of coefficient * softmax over the rest / T; hidden (kept) ids get zero. May reuse `logits_RW`."""
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
