"""The output head, applied to a few rows at a time."""

import torch


def apply_head(hidden_RD: torch.Tensor, head_VD: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return logits [R, V] in `dtype`, even for bfloat16 inputs: bfloat16 rounds by 0.125 near |logit| = 20.

    Args:
        hidden_RD: Hidden states of a slice of rows.
        head_VD: Output weight, same dtype.
        dtype: Type of the result; products of bfloat16 inputs are accumulated in it.
    """
    if hidden_RD.dtype == dtype:
        return hidden_RD @ head_VD.T
    if hidden_RD.is_cuda and torch.__version__ >= "2.8":
        return torch.mm(hidden_RD, head_VD.T, out_dtype=dtype)
    return hidden_RD.to(dtype) @ head_VD.to(dtype).T
