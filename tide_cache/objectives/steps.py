"""Objectives that teach some of the masked tokens: those that the view's decoding reveals soon, or those it does not.

Source: TAD, arXiv:2605.09536: cross-entropy on the tokens that are revealed within a few steps, KL on the others.

Shape suffixes: N masked rows, R some of them, C active chunks.
"""

import torch

from tide_cache.config.objectives import RowWeight
from tide_cache.objectives.base import Objective
from tide_cache.records import Targets


class ByStep(Objective):
    """An objective whose `row_weight` says which rows it teaches."""

    row_weight: RowWeight
    horizon: int

    @property
    def step_signals(self) -> frozenset[str]:
        """What it needs besides the signals it compares."""
        return frozenset() if self.row_weight == "even" else frozenset({"steps"})

    def taught(self, targets: Targets) -> torch.Tensor | None:
        """Tell which rows it teaches, [N]; None for all."""
        if self.row_weight == "even":
            return None
        assert targets.steps_to_reveal_N is not None, "rows without steps"
        is_soon_N = targets.steps_to_reveal_N <= self.horizon
        return is_soon_N if self.row_weight == "soon" else ~is_soon_N

    def num_taught(self, targets: Targets) -> int:
        """Return the number of rows that it teaches."""
        is_taught_N = self.taught(targets)
        return len(targets.true_id_N) if is_taught_N is None else int(is_taught_N.sum())

    def or_not_taught(self, is_told_N: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Add the rows that it does not teach to those of which a teacher speaks, [N]."""
        is_taught_N = self.taught(targets)
        return is_told_N if is_taught_N is None else is_told_N | ~is_taught_N

    def of_rows(self, values_R: torch.Tensor, rows_R: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Return values of some rows, 0 where these are not taught; nobody waits for a GPU."""
        is_taught_N = self.taught(targets)
        return values_R if is_taught_N is None else values_R.masked_fill(~is_taught_N[rows_R], 0)

    def of_chunks(self, values_C: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Return values of active chunks, 0 or False where these are not taught; rows of a chunk are all, or none."""
        is_taught_N, num_chunks = self.taught(targets), len(values_C)
        if is_taught_N is None:
            return values_C
        chunk_N = targets.truth.chunk_of_row_N
        place_N = torch.where(chunk_N >= 0, chunk_N, num_chunks)
        number_C = is_taught_N.new_zeros(num_chunks + 1, dtype=torch.int64).index_add(0, place_N, is_taught_N.long())
        return values_C.masked_fill(number_C[:num_chunks] == 0, 0)
