"""What is kept of the teacher's distribution at each masked row: truth, top-k, and the rest, exactly.

The head runs on masked rows only, in slices, in float32: the [B, L, V] tensor never exists.

Shape suffixes: N masked rows, R rows of a slice that want candidates, V vocabulary, K top_k, T temperatures,
D draws from the tail.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tide_cache.modeling.head import apply_head


@dataclass(frozen=True)
class SignalPlan:
    """What to keep; the fields are those of `SignalsConfig`.

    Attributes:
        temperatures: Each T for which tail and partition are stored; includes 1.
        top_k: At most this many ids per row; 0 when no candidates are wanted.
        top_p: The fewest ids whose mass reaches this; 1 keeps `top_k` ids.
        tail_samples: Ids drawn from the rest of each row; 0 for none.
        has_topk: Whether the `topk` signal is wanted, at aligned pairs.
        chunk_k: At most this many candidates for a chunk of several teacher tokens; 0 without the `chunks` signal.
    """

    temperatures: tuple[float, ...]
    top_k: int
    top_p: float
    tail_samples: int = 0
    has_topk: bool = True
    chunk_k: int = 0


@dataclass(frozen=True, eq=False)
class RowSignals:
    """Signals of many rows, padded to K; on the CPU.

    Attributes:
        truth_logprobs_N: log p(true), float32.
        is_top1_N: Whether the true id is the most likely one.
        counts_N: Ids kept of each row, 0 where none are wanted, int64.
        ids_NK: Ids, most likely first; those from `counts_N` on are meaningless.
        logprobs_NK: Their log-probs at T = 1.
        log_tail_NT: log of the rest's sum of p^(1/T).
        log_partition_NT: log of the whole sum of p^(1/T).
        tail_ids_ND: Ids drawn from the rest, in proportion to p; -1 where there is no rest or none are wanted.
        tail_logprobs_ND: Their log-probs at T = 1; 0 there.
    """

    truth_logprobs_N: torch.Tensor
    is_top1_N: torch.Tensor
    counts_N: torch.Tensor
    ids_NK: torch.Tensor
    logprobs_NK: torch.Tensor
    log_tail_NT: torch.Tensor
    log_partition_NT: torch.Tensor
    tail_ids_ND: torch.Tensor
    tail_logprobs_ND: torch.Tensor


def row_signals(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    true_ids_N: torch.Tensor,
    mass_N: torch.Tensor,
    plan: SignalPlan,
    slice_rows: int,
    uniform_ND: torch.Tensor | None = None,
) -> RowSignals:
    """Apply the head and keep what the plan says.

    Args:
        hidden_ND: Final hidden states of the masked rows, any float dtype.
        head_VD: Output weight, same dtype.
        true_ids_N: Teacher token under each mask.
        mass_N: Mass that the kept ids of each row must reach, float32: 0 where none are wanted, 1 to keep `top_k`.
        plan: What to keep.
        slice_rows: Rows whose logits exist at a time.
        uniform_ND: Numbers in [0, 1) that choose D ids drawn from the rest of each row; none by default.
    """
    if uniform_ND is None:
        uniform_ND = hidden_ND.new_zeros((len(hidden_ND), 0), dtype=torch.float32)
    slices = [
        _slice_signals(hidden_ND[rows], head_VD, true_ids_N[rows], mass_N[rows], uniform_ND[rows], plan)
        for rows in (slice(start, start + slice_rows) for start in range(0, max(len(hidden_ND), 1), slice_rows))
    ]
    return RowSignals(*(torch.cat(parts).cpu() for parts in zip(*slices, strict=True)))


def _slice_signals(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    true_ids_N: torch.Tensor,
    mass_N: torch.Tensor,
    uniform_ND: torch.Tensor,
    plan: SignalPlan,
) -> tuple[torch.Tensor, ...]:
    logits_NV = apply_head(hidden_ND, head_VD)
    log_z_N = logits_NV.logsumexp(dim=1)
    truth_N = logits_NV.gather(1, true_ids_N[:, None]).squeeze(1) - log_z_N
    is_top1_N = logits_NV.argmax(dim=1) == true_ids_N
    num_rows, top_k = len(true_ids_N), min(plan.top_k, logits_NV.shape[1])
    shapes = ((), (top_k,), (top_k,), *[(len(plan.temperatures),)] * 2, *[uniform_ND.shape[1:]] * 2)
    integers = (True, True, False, False, False, True, False)
    result = [
        (true_ids_N if is_integer else logits_NV).new_zeros(num_rows, *shape)
        for shape, is_integer in zip(shapes, integers, strict=True)
    ]
    if top_k:
        rows_R = (mass_N > 0).nonzero().squeeze(1)
        kept = _candidates(logits_NV[rows_R], log_z_N[rows_R], mass_N[rows_R], top_k, plan.temperatures)
        drawn = _draw(logits_NV, rows_R, kept, log_z_N, uniform_ND)
        for whole, part in zip(result, (*kept, *drawn), strict=True):
            whole[rows_R] = part
    return truth_N, is_top1_N, *result


def _candidates(
    logits_RV: torch.Tensor, log_z_R: torch.Tensor, mass_R: torch.Tensor, top_k: int, temperatures: Sequence[float]
) -> tuple[torch.Tensor, ...]:
    """Give counts, ids, log-probs, tails and partitions; `logits_RV` is overwritten."""
    top_RK, ids_RK = logits_RV.topk(top_k, dim=1)
    logprobs_RK = top_RK - log_z_R[:, None]
    is_short_RK = (logprobs_RK.exp().cumsum(dim=1) < mass_R[:, None]) | (mass_R[:, None] >= 1)
    counts_R = (is_short_RK.sum(dim=1) + 1).clamp_max(top_k)
    whole_RT = torch.stack([_log_power_sum(logits_RV, log_z_R, temperature) for temperature in temperatures], dim=1)
    _hide(logits_RV, ids_RK, counts_R)
    tail_RT = torch.stack([_log_power_sum(logits_RV, log_z_R, temperature) for temperature in temperatures], dim=1)
    whole_RT[:, [index for index, temperature in enumerate(temperatures) if temperature == 1]] = 0
    return counts_R, ids_RK, logprobs_RK, tail_RT, whole_RT


def _draw(
    logits_NV: torch.Tensor,
    rows_R: torch.Tensor,
    kept: tuple[torch.Tensor, ...],
    log_z_N: torch.Tensor,
    uniform_ND: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ids from what `_candidates` left of each row, with replacement, in proportion to p."""
    ids_RD = rows_R.new_full((len(rows_R), uniform_ND.shape[1]), -1)
    logprobs_RD = logits_NV.new_zeros(ids_RD.shape)
    if not ids_RD.shape[1]:
        return ids_RD, logprobs_RD
    counts_R, kept_RK = kept[0], kept[1]
    for start in range(0, len(rows_R), _DRAW_ROWS):
        part = slice(start, start + _DRAW_ROWS)
        rows = rows_R[part]
        logits_RV = logits_NV[rows]
        _hide(logits_RV, kept_RK[part], counts_R[part])
        # float64: a float32 running sum over a vocabulary would lose the small ones that the tail consists of.
        reached_RV = (logits_RV - log_z_N[rows, None]).double().exp().cumsum(dim=1)
        total_R1 = reached_RV[:, -1:]
        drawn_RD = torch.searchsorted(reached_RV, uniform_ND[rows].double() * total_R1, right=True)
        drawn_RD = drawn_RD.clamp_max(logits_RV.shape[1] - 1)
        has_tail_RD = (total_R1 > 0).expand_as(drawn_RD)
        ids_RD[part] = torch.where(has_tail_RD, drawn_RD, -1)
        logprobs_RD[part] = torch.where(has_tail_RD, logits_RV.gather(1, drawn_RD) - log_z_N[rows, None], 0)
    return ids_RD, logprobs_RD


_DRAW_ROWS = 64
"""Rows whose running sums exist at a time, in float64."""


def _hide(logits_RV: torch.Tensor, ids_RK: torch.Tensor, counts_R: torch.Tensor) -> None:
    """Set the logits of the first `counts_R` ids of each row to -inf, in place."""
    is_kept_RK = torch.arange(ids_RK.shape[1], device=counts_R.device) < counts_R[:, None]
    row, column = is_kept_RK.nonzero(as_tuple=True)
    logits_RV[row, ids_RK[row, column]] = -torch.inf


def _log_power_sum(logits_RV: torch.Tensor, log_z_R: torch.Tensor, temperature: float) -> torch.Tensor:
    """Give log sum_j p_j^(1/T) over the ids whose logit is finite."""
    scaled_RV = logits_RV if temperature == 1 else logits_RV / temperature
    return scaled_RV.logsumexp(dim=1) - log_z_R / temperature
