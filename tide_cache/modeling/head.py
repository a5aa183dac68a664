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


def add_product(sum_XD: torch.Tensor, first_XY: torch.Tensor, second_YD: torch.Tensor) -> None:
    """Add a matrix product to a sum, in place and in the sum's dtype.

    On a GPU the product of narrower matrices is added inside it: the sum is read and written once.
    """
    if first_XY.dtype == sum_XD.dtype:
        sum_XD.addmm_(first_XY, second_YD)
    elif sum_XD.is_cuda and torch.__version__ >= "2.8":
        torch.addmm(sum_XD, first_XY, second_YD, out_dtype=sum_XD.dtype, out=sum_XD)
    else:
        sum_XD += first_XY.to(sum_XD.dtype) @ second_YD.to(sum_XD.dtype)
