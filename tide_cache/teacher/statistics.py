"""What is kept of the teacher's distribution at each masked row: truth, top-k, and the rest, exactly.

The head runs on masked rows only, in slices, in float32: the [B, L, V] tensor never exists.

Shape suffixes: N masked rows, R rows of a slice that want candidates, V vocabulary, K top_k, T temperatures.
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
    """

    temperatures: tuple[float, ...]
    top_k: int
    top_p: float


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
    """

    truth_logprobs_N: torch.Tensor
    is_top1_N: torch.Tensor
    counts_N: torch.Tensor
    ids_NK: torch.Tensor
    logprobs_NK: torch.Tensor
    log_tail_NT: torch.Tensor
    log_partition_NT: torch.Tensor


def row_signals(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    true_ids_N: torch.Tensor,
    wants_topk_N: torch.Tensor,
    plan: SignalPlan,
    slice_rows: int,
) -> RowSignals:
    """Apply the head and keep what the plan says.

    Args:
        hidden_ND: Final hidden states of the masked rows, any float dtype.
        head_VD: Output weight, same dtype.
        true_ids_N: Teacher token under each mask.
        wants_topk_N: Rows whose candidates are kept.
        plan: What to keep.
        slice_rows: Rows whose logits exist at a time.
    """
    slices = [
        _slice_signals(hidden_ND[rows], head_VD, true_ids_N[rows], wants_topk_N[rows], plan)
        for rows in (slice(start, start + slice_rows) for start in range(0, max(len(hidden_ND), 1), slice_rows))
    ]
    return RowSignals(*(torch.cat(parts).cpu() for parts in zip(*slices, strict=True)))


def _slice_signals(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    true_ids_N: torch.Tensor,
    wants_topk_N: torch.Tensor,
    plan: SignalPlan,
) -> tuple[torch.Tensor, ...]:
    logits_NV = apply_head(hidden_ND, head_VD)
    log_z_N = logits_NV.logsumexp(dim=1)
    true_logit_N = logits_NV.gather(1, true_ids_N[:, None]).squeeze(1)
    is_top1_N = logits_NV.argmax(dim=1) == true_ids_N
    top_k = min(plan.top_k, logits_NV.shape[1])
    counts_N = torch.zeros_like(true_ids_N)
    ids_NK = true_ids_N.new_zeros(len(true_ids_N), top_k)
    logprobs_NK = logits_NV.new_zeros(len(true_ids_N), top_k)
    log_tail_NT = logits_NV.new_zeros(len(true_ids_N), len(plan.temperatures))
    log_partition_NT = torch.zeros_like(log_tail_NT)
    if top_k:
        rows_R = wants_topk_N.nonzero().squeeze(1)
        kept = _candidates(logits_NV[rows_R], log_z_N[rows_R], top_k, plan.top_p, plan.temperatures)
        for whole, part in zip((counts_N, ids_NK, logprobs_NK, log_tail_NT, log_partition_NT), kept, strict=True):
            whole[rows_R] = part
    return true_logit_N - log_z_N, is_top1_N, counts_N, ids_NK, logprobs_NK, log_tail_NT, log_partition_NT


def _candidates(
    logits_RV: torch.Tensor, log_z_R: torch.Tensor, top_k: int, top_p: float, temperatures: Sequence[float]
) -> tuple[torch.Tensor, ...]:
    """Give counts, ids, log-probs, tails and partitions; `logits_RV` is overwritten."""
    top_RK, ids_RK = logits_RV.topk(top_k, dim=1)
    logprobs_RK = top_RK - log_z_R[:, None]
    mass_RK = logprobs_RK.exp().cumsum(dim=1)
    is_short_RK = mass_RK < top_p if top_p < 1 else torch.ones_like(mass_RK, dtype=torch.bool)  # 1 - 1e-9 rounds to 1
    counts_R = (is_short_RK.sum(dim=1) + 1).clamp_max(top_k)
    is_kept_RK = torch.arange(top_k, device=counts_R.device) < counts_R[:, None]
    whole_RT = torch.stack([_log_power_sum(logits_RV, log_z_R, temperature) for temperature in temperatures], dim=1)
    row, column = is_kept_RK.nonzero(as_tuple=True)
    logits_RV[row, ids_RK[row, column]] = -torch.inf
    tail_RT = torch.stack([_log_power_sum(logits_RV, log_z_R, temperature) for temperature in temperatures], dim=1)
    whole_RT[:, [index for index, temperature in enumerate(temperatures) if temperature == 1]] = 0
    return counts_R, ids_RK, logprobs_RK, tail_RT, whole_RT


def _log_power_sum(logits_RV: torch.Tensor, log_z_R: torch.Tensor, temperature: float) -> torch.Tensor:
    """Give log sum_j p_j^(1/T) over the ids whose logit is finite."""
    scaled_RV = logits_RV if temperature == 1 else logits_RV / temperature
    return scaled_RV.logsumexp(dim=1) - log_z_R / temperature
