"""Who may attend to whom: the masks of the two contexts, for one or several masked views on one clean copy.

Shape suffixes: B samples, L tokens of one copy, Q queries, S keys; with n views the packed length is (n + 1) L.
"""

import torch


def block_diffusion_mask(length: int, block_size: int, num_views: int = 1) -> torch.Tensor:
    """Give the mask of the packed sequence [x_t1, ..., x_tn, x_0], True where a query may attend to a key.

    A masked copy sees its own current block and the clean blocks before it; the clean copy sees itself up to and
    including the current block; masked copies do not see each other.

    Args:
        length: Tokens of one copy.
        block_size: Tokens per block; the last block may be shorter.
        num_views: Number of masked copies.

    Returns:
        Bool [(n + 1) L, (n + 1) L].

    Source: block diffusion, arXiv:2503.09573; the order [x_t, x_0] as TIDE, arXiv:2604.26951.
    """
    position = torch.arange(length).repeat(num_views + 1)
    block = position // block_size
    copy = torch.arange(num_views + 1).repeat_interleave(length)
    is_clean = copy == num_views
    same_copy_QS = copy[:, None] == copy[None, :]
    same_block_QS = block[:, None] == block[None, :]
    earlier_QS = block[:, None] > block[None, :]
    masked_query_QS = ~is_clean[:, None] & ((same_copy_QS & same_block_QS) | (is_clean[None, :] & earlier_QS))
    clean_query_QS = is_clean[:, None] & is_clean[None, :] & (same_block_QS | earlier_QS)
    return masked_query_QS | clean_query_QS


def with_padding(is_allowed_QS: torch.Tensor, is_real_BS: torch.Tensor) -> torch.Tensor:
    """Hide padded keys; a token always sees itself, so that no query row is empty and no backend yields NaN.

    Args:
        is_allowed_QS: Bool mask without padding, queries and keys of the same sequence.
        is_real_BS: False at padding.

    Returns:
        Bool [B, 1, Q, S], as `scaled_dot_product_attention` takes it.
    """
    itself_QS = torch.eye(is_allowed_QS.shape[-1], dtype=torch.bool, device=is_allowed_QS.device)
    return ((is_allowed_QS & is_real_BS[:, None, :]) | itself_QS)[:, None]
