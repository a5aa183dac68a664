"""A mixture of experts: routing of tokens, and the experts' computation, grouped.

Token-expert pairs are sorted by expert. So the computation is one grouped matrix product, or one product per expert
with a single transfer of the group sizes, never a loop that asks the device for each expert's tokens.

Shape suffixes: N tokens, D hidden size, E experts, K experts of a token, T = N K token-expert pairs sorted by expert,
I inner size of an expert, J = 2 I gate and up concatenated, R groups of experts.
"""

import torch
import torch.nn.functional as F

_PUBLIC_GEMM = getattr(F, "grouped_mm", None)
_GEMM = _PUBLIC_GEMM or getattr(torch, "_grouped_mm", None)
_ALIGNED = 8
"""Rows of bfloat16 must start at multiples of 16 bytes."""


def route(
    x_ND: torch.Tensor,
    gate_ED: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    num_groups: int,
    groups_per_token: int,
    experts_per_token: int,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's experts, in float32.

    The bias only affects the choice. A group's score is the sum of its two best experts' biased scores, and
    only experts of the best groups can be chosen.

    Args:
        x_ND: Tokens, any float dtype.
        gate_ED: The router's weight.
        bias_E: Added to the scores for the choice.
        num_groups: R; E is a multiple of it.
        groups_per_token: Groups that a token may choose from.
        experts_per_token: K.
        scaling: The weights of a token's experts sum to it.

    Returns:
        Expert [N, K], int64, and weight [N, K], float32.
    """
    scores_NE = F.linear(x_ND.float(), gate_ED.float()).sigmoid()
    choice_NRE = (scores_NE + bias_E.float()).view(len(x_ND), num_groups, -1)
    group_NR = choice_NRE.topk(min(2, choice_NRE.shape[2]), dim=2).values.sum(dim=2)
    is_open_NR = torch.zeros_like(group_NR, dtype=torch.bool)
    is_open_NR.scatter_(1, group_NR.topk(groups_per_token, dim=1).indices, True)
    choice_NE = choice_NRE.masked_fill(~is_open_NR[:, :, None], -torch.inf).flatten(1)
    expert_NK = choice_NE.topk(experts_per_token, dim=1).indices
    weight_NK = scores_NE.gather(1, expert_NK)
    if experts_per_token > 1:
        weight_NK = weight_NK / (weight_NK.sum(dim=1, keepdim=True) + 1e-20)
    return expert_NK, weight_NK * scaling


def route_softmax(
    x_ND: torch.Tensor, gate_ED: torch.Tensor, *, experts_per_token: int, is_normalised: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each token's experts by a softmax over all of them, in float32.

    Args:
        x_ND: Tokens, any float dtype.
        gate_ED: The router's weight.
        experts_per_token: K.
        is_normalised: Whether the weights of a token's experts sum to 1; otherwise they are the softmax's.

    Returns:
        Expert [N, K], int64, and weight [N, K], float32.
    """
    scores_NE = F.linear(x_ND.float(), gate_ED.float()).softmax(dim=1)
    weight_NK, expert_NK = scores_NE.topk(experts_per_token, dim=1)
    return expert_NK, weight_NK / weight_NK.sum(dim=1, keepdim=True) if is_normalised else weight_NK


def uses_grouped_gemm(x_ND: torch.Tensor, down_EDI: torch.Tensor) -> bool:
    """Return whether one kernel serves all experts: for bfloat16, on a GPU and a torch that have it.

    Args:
        x_ND: Tokens.
        down_EDI: Each expert's down weight.
    """
    if x_ND.dtype != torch.bfloat16 or not has_grouped_gemm(x_ND.device):
        return False
    return all(size % _ALIGNED == 0 for size in down_EDI.shape[1:])


def has_grouped_gemm(device: torch.device) -> bool:
    """Return whether this torch has the kernel, for bfloat16 on this device."""
    if _GEMM is None or device.type != "cuda":
        return False
    major, _ = torch.cuda.get_device_capability(device)
    return major >= 8 if _PUBLIC_GEMM is not None else major == 9  # before it was public, only for Hopper


def grouped_experts(
    x_ND: torch.Tensor,
    expert_NK: torch.Tensor,
    weight_NK: torch.Tensor,
    gate_up_EJD: torch.Tensor,
    down_EDI: torch.Tensor,
    *,
    in_one_gemm: bool,
) -> torch.Tensor:
    """Return the weighted sum over each token's experts, each a SwiGLU feed-forward layer.

    Args:
        x_ND: Tokens.
        expert_NK: From `route`.
        weight_NK: From `route`; the weighted sum is float32.
        gate_up_EJD: Each expert's gate weight above its up weight.
        down_EDI: Each expert's down weight.
        in_one_gemm: `uses_grouped_gemm(x_ND, down_EDI)`.

    Returns:
        [N, D], in the dtype of `x_ND`.
    """
    experts_per_token = expert_NK.shape[1]
    flat = expert_NK.flatten()
    order_T = flat.argsort(stable=True)
    counts_E = torch.zeros(len(down_EDI), dtype=torch.int32, device=flat.device)
    counts_E.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))  # bincount would wait for the device
    run = _in_one_gemm if in_one_gemm else _expert_by_expert
    out_TD = run(x_ND[order_T // experts_per_token], counts_E, gate_up_EJD, down_EDI)
    back_TD = torch.empty_like(out_TD)
    back_TD[order_T] = out_TD
    back_NKD = back_TD.view(len(x_ND), experts_per_token, -1)
    result_ND = torch.bmm(weight_NK[:, None], back_NKD.float()).squeeze(1)
    return result_ND.to(x_ND.dtype)


def _in_one_gemm(
    x_TD: torch.Tensor, counts_E: torch.Tensor, gate_up_EJD: torch.Tensor, down_EDI: torch.Tensor
) -> torch.Tensor:
    assert _GEMM is not None, "uses_grouped_gemm says whether it is there"
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    inner_TI = _swiglu(_GEMM(x_TD, gate_up_EJD.transpose(1, 2), offs=ends_E))
    out_TD: torch.Tensor = _GEMM(inner_TI, down_EDI.transpose(1, 2), offs=ends_E)
    return out_TD


def _expert_by_expert(
    x_TD: torch.Tensor, counts_E: torch.Tensor, gate_up_EJD: torch.Tensor, down_EDI: torch.Tensor
) -> torch.Tensor:
    groups = zip(torch.split(x_TD, counts_E.tolist()), gate_up_EJD, down_EDI, strict=True)
    return torch.cat([F.linear(_swiglu(F.linear(rows, gate_up_JD)), down_DI) for rows, gate_up_JD, down_DI in groups])


def _swiglu(gate_up_TJ: torch.Tensor) -> torch.Tensor:
    gate_TI, up_TI = gate_up_TJ.chunk(2, dim=1)
    return F.silu(gate_TI) * up_TI
