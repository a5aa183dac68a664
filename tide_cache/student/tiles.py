"""How the fused head cuts its logits into tiles, and the places in them of the ids that were asked for.

On a CPU a tile is a slice of rows by a range of the vocabulary, small enough to stay in the cache: a plain head spends
most of its time on fresh memory, not on arithmetic. The ids in a tile are looked up. A GPU prefers few and large
kernels, and for a look-up its host would have to wait. There a tile is a slice of rows by the whole vocabulary.

Shape suffixes: N masked rows, R rows of a slice, D hidden size, W ids of a tile, K ids asked for, E those of them that
fall into a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from tide_cache.modeling.head import apply_head

_TILE_LOGITS = 1 << 20
"""Logits of a tile on a CPU: 4 MiB, which stay in its cache."""


class Tile(Protocol):
    """Some rows by a range of the vocabulary.

    Attributes:
        rows: Rows of the hidden states.
        ids: Range of the vocabulary.
    """

    @property
    def rows(self) -> slice: ...  # noqa: D102

    @property
    def ids(self) -> slice: ...  # noqa: D102

    def logits(self, hidden_ND: torch.Tensor, head_VD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Apply the head, [R, W]."""

    def gather(self, logits_RW: torch.Tensor, gathered_NK: torch.Tensor) -> None:
        """Write the logits at the ids asked for to their places; other places of the tile's rows may get zero."""

    def hide(self, logits_RW: torch.Tensor) -> torch.Tensor:
        """Set the logits of kept ids and of padding to -inf, in place."""

    def add(self, values_NK: torch.Tensor, grad_RW: torch.Tensor) -> None:
        """Add values at the ids asked for, in place; an id may be asked for twice, as true token and as kept one."""


def tiles(num_ids: int, vocab: int, ids_NK: torch.Tensor, is_kept_NK: torch.Tensor, slice_rows: int) -> Iterator[Tile]:
    """Yield tiles of the logits, slice by slice of the rows.

    Args:
        num_ids: Ids that count; those behind are padding.
        vocab: V, with padding. A GPU's products are faster with it, so it is cut off there after them.
        ids_NK: Ids asked for, -1 if a row has fewer than K.
        is_kept_NK: Which of them are kept ones; never one of -1.
        slice_rows: Rows of a slice.
    """
    for start in range(0, len(ids_NK), slice_rows):
        rows = slice(start, min(start + slice_rows, len(ids_NK)))
        if ids_NK.is_cuda:
            yield _WholeVocabulary(rows, slice(0, vocab), ids_NK[rows], is_kept_NK[rows], num_ids)
        else:
            yield from _ranges(num_ids, rows, ids_NK[rows], is_kept_NK[rows])


class _Logits:
    rows: slice
    ids: slice

    def logits(self, hidden_ND: torch.Tensor, head_VD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return apply_head(hidden_ND[self.rows], head_VD[self.ids], dtype)


@dataclass(frozen=True, eq=False)
class _WholeVocabulary(_Logits):
    """All ids at once; if a row has fewer than K, the other places stand for id 0, and change nothing."""

    rows: slice
    ids: slice
    ids_RK: torch.Tensor
    is_kept_RK: torch.Tensor
    num_ids: int

    def gather(self, logits_RW: torch.Tensor, gathered_NK: torch.Tensor) -> None:
        found_RK = logits_RW.gather(1, self.ids_RK.clamp_min(0))
        gathered_NK[self.rows] = found_RK.masked_fill(self.ids_RK < 0, 0)

    def hide(self, logits_RW: torch.Tensor) -> torch.Tensor:
        logits_RW[:, self.num_ids :] = -torch.inf
        highest_RK = torch.where(self.is_kept_RK, -torch.inf, torch.inf).to(logits_RW.dtype)
        return logits_RW.scatter_reduce_(1, self.ids_RK.clamp_min(0), highest_RK, "amin")

    def add(self, values_NK: torch.Tensor, grad_RW: torch.Tensor) -> None:
        values_RK = values_NK[self.rows].masked_fill(self.ids_RK < 0, 0)
        # the true token separately: all others are distinct, so that no order of additions can change a bit
        for part in (slice(0, 1), slice(1, None)):
            grad_RW.scatter_add_(1, self.ids_RK[:, part].clamp_min(0), values_RK[:, part])


def _ranges(vocab: int, rows: slice, ids_RK: torch.Tensor, is_kept_RK: torch.Tensor) -> Iterator[Tile]:
    """Yield the tiles of a slice of rows, by ranges of the vocabulary, each with its ids."""
    width = max(1, _TILE_LOGITS // len(ids_RK))
    firsts = torch.arange(0, vocab, width)
    row_E, rank_E = (ids_RK >= 0).nonzero(as_tuple=True)
    id_E, order_E = ids_RK[row_E, rank_E].sort()
    row_E, rank_E = row_E[order_E], rank_E[order_E]
    is_kept_E = is_kept_RK[row_E, rank_E]
    bounds = [*torch.searchsorted(id_E, firsts).tolist(), len(id_E)]
    for number, first in enumerate(firsts.tolist()):
        of_tile = slice(bounds[number], bounds[number + 1])
        ids = slice(first, min(first + width, vocab))
        yield _Range(rows, ids, row_E[of_tile], rank_E[of_tile], id_E[of_tile] - first, is_kept_E[of_tile])


@dataclass(frozen=True, eq=False)
class _Range(_Logits):
    """A range of the vocabulary.

    Attributes:
        row_E: Row of each id, counted within the slice.
        rank_E: Place of each id among those of its row.
        column_E: Its column in the tile.
        is_kept_E: Whether it is one of the kept ones.
    """

    rows: slice
    ids: slice
    row_E: torch.Tensor
    rank_E: torch.Tensor
    column_E: torch.Tensor
    is_kept_E: torch.Tensor

    def gather(self, logits_RW: torch.Tensor, gathered_NK: torch.Tensor) -> None:
        gathered_NK[self.rows][self.row_E, self.rank_E] = logits_RW[self.row_E, self.column_E]

    def hide(self, logits_RW: torch.Tensor) -> torch.Tensor:
        logits_RW[self.row_E[self.is_kept_E], self.column_E[self.is_kept_E]] = -torch.inf
        return logits_RW

    def add(self, values_NK: torch.Tensor, grad_RW: torch.Tensor) -> None:
        values_E = values_NK[self.rows][self.row_E, self.rank_E]
        grad_RW.index_put_((self.row_E, self.column_E), values_E, accumulate=True)
