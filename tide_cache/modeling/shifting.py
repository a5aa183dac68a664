"""Models whose output at one position predicts the next token: every row is moved to its own token.

The mask determines which output predicts a token: it is the output at the previous token that the token itself sees.
Inside a block that is in the masked copy; at the start of a block it is in the clean copy, or a token whose keys are
cached from an earlier forward. A token without a previous one keeps its own row.

Shape suffixes: B samples, Q queries, S keys, D hidden size, n masked copies; R tokens of a masked copy, C of the clean
one, M = R + C.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from tide_cache.modeling.packing import PackedInput


class RememberedOutputs(DynamicCache):  # type: ignore[misc]
    """Keys and values, and the model's outputs at the same tokens."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._hidden_BSD: torch.Tensor | None = None
        self._positions_BS: torch.Tensor | None = None

    def remember(self, hidden_BQD: torch.Tensor, positions_BQ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the outputs of a forward, and their positions; return all of them, [B, S, D] and [B, S]."""
        if self._hidden_BSD is not None and self._positions_BS is not None:
            hidden_BQD = torch.cat([self._hidden_BSD, hidden_BQD], dim=1)
            positions_BQ = torch.cat([self._positions_BS, positions_BQ], dim=1)
        self._hidden_BSD, self._positions_BS = hidden_BQD, positions_BQ
        return hidden_BQD, positions_BQ

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given as a negative number, as for keys and values."""
        super().crop(tokens_to_remove)
        if self._hidden_BSD is not None and self._positions_BS is not None:
            self._hidden_BSD = self._hidden_BSD[:, :tokens_to_remove]
            self._positions_BS = self._positions_BS[:, :tokens_to_remove]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some samples, as for keys and values."""
        super().batch_select_indices(indices)
        if self._hidden_BSD is not None and self._positions_BS is not None:
            self._hidden_BSD, self._positions_BS = self._hidden_BSD[indices], self._positions_BS[indices]


def at_own_tokens(
    outputs_BSD: torch.Tensor, packed: PackedInput, cache: RememberedOutputs | None = None
) -> torch.Tensor:
    """Return for each token the output that predicts it, [B, S, D].

    Args:
        outputs_BSD: The model's outputs at the tokens of `packed`.
        packed: The model's input.
        cache: Outputs of earlier tokens; these are appended.
    """
    known_BSD, positions_BS = outputs_BSD, packed.positions_BS
    if cache is not None:
        known_BSD, positions_BS = cache.remember(outputs_BSD, packed.positions_BS)
    own_Q = torch.arange(known_BSD.shape[1] - outputs_BSD.shape[1], known_BSD.shape[1], device=known_BSD.device)
    if packed.copies is None:
        source_BQ = _places_before(packed.mask_B1SS, packed.positions_BS, positions_BS, own_Q)
    else:
        source_BQ = _places_before_in_copies(packed)
    return known_BSD.gather(1, source_BQ[:, :, None].expand(-1, -1, known_BSD.shape[2]))


def _places_before(
    mask_B1QS: torch.Tensor, query_positions_BQ: torch.Tensor, key_positions_BS: torch.Tensor, own_Q: torch.Tensor
) -> torch.Tensor:
    """Return the place in S of the previous token that each query sees, or its own, [B, Q]."""
    is_before_BQS = mask_B1QS[:, 0] & (key_positions_BS[:, None] == query_positions_BQ[:, :, None] - 1)
    return torch.where(is_before_BQS.any(dim=2), is_before_BQS.int().argmax(dim=2), own_Q)


def _places_before_in_copies(packed: PackedInput) -> torch.Tensor:
    """Return the same if one mask [M, M] serves all masked copies."""
    assert packed.copies is not None
    num_views, length = packed.copies
    of_views = num_views * length
    positions_BM = torch.cat([packed.positions_BS[:, :length], packed.positions_BS[:, of_views:]], dim=1)
    own_M = torch.arange(positions_BM.shape[1], device=positions_BM.device)
    place_BM = _places_before(packed.mask_B1SS, positions_BM, positions_BM, own_M)
    clean_BM = place_BM + of_views - length
    parts: Sequence[torch.Tensor] = [
        torch.where(place_BM < length, place_BM + view * length, clean_BM)[:, :length] for view in range(num_views)
    ]
    return torch.cat([*parts, clean_BM[:, length:]], dim=1)
