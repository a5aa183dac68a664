"""What is kept of the teacher's distribution at each masked row: truth, top-k, and the rest, exactly.

The head runs on masked rows only, in slices, in float32: the [B, L, V] tensor never exists.

Shape suffixes: N masked rows, R rows of a slice that want candidates, V vocabulary, K top_k, T temperatures,
D draws from the tail.
"""

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
    num_rows, vocab = logits_NV.shape
    true_logit_N = logits_NV.gather(1, true_ids_N[:, None]).squeeze(1)
    top_k = min(plan.top_k, vocab)
    # One id more than can be kept: the largest of the rest, from which the rest is added up.
    top_NK, ids_NK = logits_NV.topk(min(top_k + 1, vocab), dim=1)
    is_top1_N = true_logit_N >= top_NK[:, 0]
    scratch_NV = torch.empty_like(logits_NV)
    log_z_N = _log_sum(logits_NV, top_NK[:, 0], 1.0, scratch_NV)
    truth_N = true_logit_N - log_z_N
    logprobs_NK = top_NK[:, :top_k] - log_z_N[:, None]
    counts_N = _counts(logprobs_NK, mass_N)
    is_kept_NK = _hide(logits_NV, ids_NK[:, :top_k], counts_N)
    tails, wholes = [], []
    if top_k:
        largest_left_N = torch.cat([top_NK, top_NK.new_full((num_rows, 1), -torch.inf)], 1).gather(1, counts_N[:, None])
        for temperature in plan.temperatures:
            log_tail_N = _log_sum(logits_NV, largest_left_N[:, 0], temperature, scratch_NV)
            kept_NK = (top_NK[:, :top_k] / temperature).masked_fill(~is_kept_NK, -torch.inf)
            log_whole_N = torch.logaddexp(log_tail_N, kept_NK.logsumexp(dim=1))
            tails.append(log_tail_N - log_z_N / temperature)
            wholes.append(log_whole_N - log_z_N / temperature if temperature != 1 else torch.zeros_like(log_z_N))
    nothing_NT = logits_NV.new_zeros((num_rows, len(plan.temperatures)))
    is_wanted_N1 = counts_N[:, None] > 0
    log_tail_NT = torch.where(is_wanted_N1, torch.stack(tails, dim=1), 0) if tails else nothing_NT
    log_partition_NT = torch.where(is_wanted_N1, torch.stack(wholes, dim=1), 0) if wholes else nothing_NT
    drawn = _draw(logits_NV, counts_N > 0, log_z_N, uniform_ND)
    return truth_N, is_top1_N, counts_N, ids_NK[:, :top_k], logprobs_NK, log_tail_NT, log_partition_NT, *drawn


def _counts(logprobs_NK: torch.Tensor, mass_N: torch.Tensor) -> torch.Tensor:
    """Give the fewest ids of each row that reach its mass, 0 where none are wanted."""
    is_short_NK = (logprobs_NK.exp().cumsum(dim=1) < mass_N[:, None]) | (mass_N[:, None] >= 1)
    counts_N = (is_short_NK.sum(dim=1) + 1).clamp_max(logprobs_NK.shape[1])
    return torch.where(mass_N > 0, counts_N, 0)


def _hide(logits_NV: torch.Tensor, ids_NK: torch.Tensor, counts_N: torch.Tensor) -> torch.Tensor:
    """Set the logits of the first `counts_N` ids of each row to -inf, in place; gives which they are [N, K]."""
    is_kept_NK = torch.arange(ids_NK.shape[1], device=counts_N.device) < counts_N[:, None]
    row, column = is_kept_NK.nonzero(as_tuple=True)
    logits_NV[row, ids_NK[row, column]] = -torch.inf
    return is_kept_NK


def _log_sum(
    logits_NV: torch.Tensor, largest_N: torch.Tensor, temperature: float, scratch_NV: torch.Tensor
) -> torch.Tensor:
    """Give log sum exp(logits / T) of each row, whose largest logit is known; -inf where all are.

    A reduction that allocates nothing: for a vocabulary of 150,000 most of the time would go into fresh memory.
    """
    shift_N = torch.where(largest_N > -torch.inf, largest_N, 0)
    torch.sub(logits_NV, shift_N[:, None], out=scratch_NV)
    if temperature != 1:
        scratch_NV.div_(temperature)
    return scratch_NV.exp_().sum(dim=1).log() + shift_N / temperature


def _draw(
    logits_NV: torch.Tensor, has_rows_N: torch.Tensor, log_z_N: torch.Tensor, uniform_ND: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ids from what is not hidden of some rows, with replacement, in proportion to p."""
    ids_ND = torch.full(uniform_ND.shape, -1, dtype=torch.int64, device=logits_NV.device)
    logprobs_ND = logits_NV.new_zeros(uniform_ND.shape)
    if not uniform_ND.shape[1]:
        return ids_ND, logprobs_ND
    every_row = has_rows_N.nonzero().squeeze(1)
    for start in range(0, len(every_row), _DRAW_ROWS):
        rows = every_row[start : start + _DRAW_ROWS]
        logprobs_RV = logits_NV[rows] - log_z_N[rows, None]
        # float64: a float32 running sum over a vocabulary would lose the small ones that the tail consists of.
        reached_RV = logprobs_RV.double().exp().cumsum(dim=1)
        total_R1 = reached_RV[:, -1:]
        drawn_RD = torch.searchsorted(reached_RV, uniform_ND[rows].double() * total_R1, right=True)
        drawn_RD = drawn_RD.clamp_max(logits_NV.shape[1] - 1)
        ids_ND[rows] = torch.where(total_R1 > 0, drawn_RD, -1)
        logprobs_ND[rows] = torch.where(total_R1 > 0, logprobs_RV.gather(1, drawn_RD), 0)
    return ids_ND, logprobs_ND


_DRAW_ROWS = 64
"""Rows whose running sums exist at a time, in float64."""
