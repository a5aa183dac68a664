"""Attention masks of the two contexts, for one or several masked views on one clean copy.

Shape suffixes: B samples, L tokens of one copy, Q queries, S keys; with n views the packed length is (n + 1) L.
H query heads, G key and value heads, A head dimension; n masked views, U = H n. R tokens that masked copies keep,
C tokens of the clean copy.
"""

from functools import cache, lru_cache
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tide_cache.config.settings import AttentionKind
from tide_cache.errors import first_line

"""sdpa: one fused kernel under a dense mask. flex: FlexAttention, which skips blocks that hold no allowed pair."""


SCORES_BLOCK = 128
"""FlexAttention computes or skips blocks of this many queries and keys."""

MOST_DIFFERENCE = 1e-2
"""Relative tolerance: both kernels may round products of float32 numbers as a GPU's tensor cores do."""


class Copies(NamedTuple):
    """Masked copies before a clean one: their number, and the tokens of each; the rest is the clean one's."""

    num_views: int
    view_length: int


@lru_cache(maxsize=8)  # batches of one length are consecutive
def block_diffusion_mask(
    length: int, block_size: int, num_views: int = 1, device: torch.device | None = None
) -> torch.Tensor:
    """Return the mask of the packed sequence [x_t1, ..., x_tn, x_0], True where a query may attend to a key.

    A masked copy sees its own current block and the clean blocks before it; the clean copy sees itself up to and
    including the current block; masked copies do not see each other.

    Args:
        length: Tokens of one copy.
        block_size: Tokens per block; the last block may be shorter.
        num_views: Number of masked copies.
        device: The mask's device; by default the CPU.

    Returns:
        Bool [(n + 1) L, (n + 1) L]; the same tensor for the same arguments; do not change it.

    Source: block diffusion, arXiv:2503.09573; the order [x_t, x_0] as in TIDE, arXiv:2604.26951.
    """
    position = torch.arange(length, device=device).repeat(num_views + 1)
    block = position // block_size
    copy = torch.arange(num_views + 1, device=device).repeat_interleave(length)
    is_clean = copy == num_views
    same_copy_QS = copy[:, None] == copy[None, :]
    same_block_QS = block[:, None] == block[None, :]
    earlier_QS = block[:, None] > block[None, :]
    masked_query_QS = ~is_clean[:, None] & ((same_copy_QS & same_block_QS) | (is_clean[None, :] & earlier_QS))
    clean_query_QS = is_clean[:, None] & is_clean[None, :] & (same_block_QS | earlier_QS)
    return masked_query_QS | clean_query_QS


def with_padding(
    is_allowed_QS: torch.Tensor, is_real_BS: torch.Tensor, sample_BS: torch.Tensor | None = None
) -> torch.Tensor:
    """Return a mask that also hides padded keys and those of other samples in the row.

    A token always sees itself, so that no query row is empty and no backend yields NaN.

    Args:
        is_allowed_QS: Bool mask without padding, queries and keys of the same sequence; or one for each row, [B, Q, S].
        is_real_BS: False at padding.
        sample_BS: Which sample of its row each token belongs to; None if each sample has a separate row.

    Returns:
        Bool [B, 1, Q, S], as `scaled_dot_product_attention` takes it.
    """
    mask_BQS = is_allowed_QS & is_real_BS[:, None, :]
    if sample_BS is not None:
        mask_BQS &= sample_BS[:, :, None] == sample_BS[:, None, :]
    mask_BQS.diagonal(dim1=1, dim2=2).fill_(True)
    return mask_BQS[:, None]


def prepare_mask(
    mask_B1SS: torch.Tensor, kind: AttentionKind, copies: Copies | None = None
) -> torch.Tensor | BlockMask:
    """Return a mask in the form that a kind of attention takes, made once per forward.

    Args:
        mask_B1SS: True where a query may attend to a key; as `PackedInput` has it.
        kind: Which attention.
        copies: As in `PackedInput`.
    """
    if kind == "sdpa":
        return mask_B1SS
    num_samples, _, num_queries, num_keys = mask_B1SS.shape
    if copies is None:
        return create_block_mask(
            lambda b, _, q, s: mask_B1SS[b, 0, q, s], num_samples, None, num_queries, num_keys,
            device=str(mask_B1SS.device),
        )  # fmt: skip
    num_views, length = copies
    of_views = num_views * length

    def is_allowed(b: torch.Tensor, _: torch.Tensor, q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Look copies up as if there were one view: no view may attend to another."""
        is_clean_q, is_clean_s = q >= of_views, s >= of_views
        place_q = torch.where(is_clean_q, q - of_views + length, q % length)
        place_s = torch.where(is_clean_s, s - of_views + length, s % length)
        return mask_B1SS[b, 0, place_q, place_s] & (is_clean_s | (~is_clean_q & (q // length == s // length)))

    num_tokens = of_views + num_keys - length
    token_S = torch.arange(num_tokens, device=mask_B1SS.device)
    sample_B11 = torch.arange(num_samples, device=mask_B1SS.device)[:, None, None]
    missing = -num_tokens % SCORES_BLOCK
    # By blocks of queries: all pairs at once would fill a GPU, for several views of long samples.
    is_kept_BQS = torch.stack(
        [
            F.pad(is_allowed(sample_B11, sample_B11, query_Q[:, None], token_S), (0, missing))
            .view(num_samples, len(query_Q), -1, SCORES_BLOCK)
            .any(dim=3)
            .any(dim=1)
            for query_Q in (token_S[start : start + SCORES_BLOCK] for start in range(0, num_tokens, SCORES_BLOCK))
        ],
        dim=1,
    )
    order = is_kept_BQS.int().argsort(dim=2, descending=True, stable=True)
    return BlockMask.from_kv_blocks(
        is_kept_BQS.sum(dim=2, dtype=torch.int32)[:, None],
        order.int()[:, None],
        mask_mod=is_allowed,
        seq_lengths=(num_tokens, num_tokens),
    )


def attend(
    query_BHSA: torch.Tensor,
    key_BGSA: torch.Tensor,
    value_BGSA: torch.Tensor,
    mask: torch.Tensor | BlockMask,
    copies: Copies | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Compute attention with grouped heads, scaled by 1 / sqrt(A).

    Args:
        query_BHSA: H is a multiple of G.
        key_BGSA: Each serves H / G query heads in turn.
        value_BGSA: As the keys.
        mask: From `prepare_mask`.
        copies: As in `PackedInput`.
        dropout: Share of the attention weights that is dropped; 0 outside training.

    Returns:
        [B, H, S, A].
    """
    if isinstance(mask, BlockMask):
        flex = _compiled_flex() if query_BHSA.is_cuda else flex_attention
        result: torch.Tensor = flex(query_BHSA, key_BGSA, value_BGSA, block_mask=mask, enable_gqa=True)
        return result
    per_head = query_BHSA.shape[1] // key_BGSA.shape[1]
    # With a mask, no fused kernel takes grouped heads: repeating them keeps the scores out of memory.
    key_BHSA, value_BHSA = (x.repeat_interleave(per_head, dim=1) for x in (key_BGSA, value_BGSA))
    if copies is not None:
        return _attend_by_copy(query_BHSA, key_BHSA, value_BHSA, mask, copies, dropout)
    return F.scaled_dot_product_attention(query_BHSA, key_BHSA, value_BHSA, attn_mask=mask, dropout_p=dropout)


def _attend_by_copy(
    query_BHSA: torch.Tensor,
    key_BHSA: torch.Tensor,
    value_BHSA: torch.Tensor,
    mask_B1SS: torch.Tensor,
    copies: Copies,
    dropout: float,
) -> torch.Tensor:
    """Compute attention on [x_t1, ..., x_tn, x_0] without the pairs that no mask of views allows.

    A view sees itself and the clean copy, the clean copy sees itself: n R (R + C) + C^2 pairs are computed instead of
    the (n R + C)^2 of a dense mask. Views are folded into the heads, so that one mask of [R, R + C] serves them all.
    """
    samples, heads, _, dimension = query_BHSA.shape
    num_views, length = copies
    of_views = num_views * length

    def cut(x_BHSA: torch.Tensor) -> torch.Tensor:
        return x_BHSA[:, :, :of_views].reshape(samples, heads, num_views, length, dimension)

    def with_clean(x_BHSA: torch.Tensor) -> torch.Tensor:
        clean_BHnCA = x_BHSA[:, :, None, of_views:].expand(-1, -1, num_views, -1, -1)
        return torch.cat([cut(x_BHSA), clean_BHnCA], dim=3).flatten(1, 2)

    out_BURA = F.scaled_dot_product_attention(
        cut(query_BHSA).flatten(1, 2),
        with_clean(key_BHSA),
        with_clean(value_BHSA),
        attn_mask=mask_B1SS[:, :, :length],
        dropout_p=dropout,
    )
    clean_BHCA = F.scaled_dot_product_attention(
        query_BHSA[:, :, of_views:],
        key_BHSA[:, :, of_views:],
        value_BHSA[:, :, of_views:],
        attn_mask=mask_B1SS[:, :, length:, length:],
        dropout_p=dropout,
    )
    return torch.cat([out_BURA.reshape(samples, heads, of_views, dimension), clean_BHCA], dim=2)


def _waves(heads: int, length: int, device: torch.device) -> torch.Tensor:
    """Return numbers between -1 and 1 that do not repeat, [1, heads, length, 64]."""
    count = heads * length * 64
    return (torch.arange(count, device=device, dtype=torch.float32).square() * 0.37 % 6.28).sin().view(1, heads, -1, 64)


@cache
def _compiled_flex() -> Any:
    """Without compilation FlexAttention holds all scores in memory."""
    return torch.compile(flex_attention)


def flex_problem(device: torch.device) -> str | None:
    """Return why FlexAttention cannot train on a device, after a trial on a small input; None if it can.

    The kernels are compiled, forward and backward, and must agree with `scaled_dot_product_attention`: an absent
    compiler, or a faulty one, is found before the first step.

    Args:
        device: Device of the training.
    """
    if device.type != "cuda":
        return f"found the device {device.type!r}, where FlexAttention has no backward pass"
    return try_flex(device)


def try_flex(device: torch.device) -> str | None:
    """Return what `flex_problem` returns, on any device."""
    mask_B1SS = block_diffusion_mask(SCORES_BLOCK, 32, device=device)[None, None]
    copies, results = Copies(1, SCORES_BLOCK), []
    try:
        for kind in get_args(AttentionKind):
            query, key, value = (_waves(heads, mask_B1SS.shape[2], device).requires_grad_() for heads in (4, 2, 2))
            out_BHSA = attend(query, key, value, prepare_mask(mask_B1SS, kind, copies), copies)
            out_BHSA.square().sum().backward()  # type: ignore[no-untyped-call]
            results.append((out_BHSA.detach(), query.grad, key.grad, value.grad))
    except Exception as error:  # a compiler may raise anything
        return f"it does not run here: {first_line(error)}"
    worst = max(float((one - other).norm() / one.norm()) for one, other in zip(*results, strict=True))
    return None if worst < MOST_DIFFERENCE else f"it differs from sdpa by {worst:.2g} on a small input"
