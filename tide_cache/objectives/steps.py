"""Objectives that teach some of the masked tokens: by when the view's decoding reveals them, or by the student's doubt.

Which tokens are soon or late is data. How many are `uncertain` is data too, but which ones the student decides.

Source: TAD, arXiv:2605.09536: cross-entropy on the tokens that are revealed within a few steps, KL on the others.
SE-KD, arXiv:2602.01395: KL where the student is least sure.

Shape suffixes: N masked rows, R some of them, C active chunks.
"""

import torch

from tide_cache.config.objectives import RowWeight
from tide_cache.objectives import uncertain
from tide_cache.objectives.base import Objective, sum_by_chunk
from tide_cache.records import RowStatistics, Targets


class ByStep(Objective):
    """An objective whose `row_weight` says which rows it teaches."""

    row_weight: RowWeight
    horizon: int
    share: float

    @property
    def step_signals(self) -> frozenset[str]:
        """What it needs besides the signals it compares."""
        return frozenset({"steps"}) if self.row_weight in ("soon", "later") else frozenset()

    @property
    def row_temperatures(self) -> frozenset[float]:
        """T at which it reads the student's distribution to choose rows."""
        return frozenset({1.0, uncertain.NEAR_ONE}) if self.row_weight == "uncertain" else frozenset()

    def taught(self, targets: Targets) -> torch.Tensor | None:
        """Tell which rows it teaches, as far as that is data, [N]; None for all."""
        if self.row_weight in ("even", "uncertain"):
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

    def of_rows(
        self, values_R: torch.Tensor, rows_R: torch.Tensor, targets: Targets, student: RowStatistics | None = None
    ) -> torch.Tensor:
        """Return values of some rows, 0 where these are not taught; nobody waits for a GPU.

        Args:
            values_R: Values.
            rows_R: Their rows, of which `uncertain` chooses.
            targets: Of the batch.
            student: What `uncertain` chooses by; without it as many rows are chosen, but others.
        """
        if self.row_weight == "uncertain":
            entropy_R = torch.zeros_like(values_R) if student is None else uncertain.entropy(student)[rows_R]
            is_chosen_R = uncertain.most_uncertain(entropy_R, targets.view_N[rows_R], self.share)
            return values_R.masked_fill(~is_chosen_R, 0)
        is_taught_N = self.taught(targets)
        return values_R if is_taught_N is None else values_R.masked_fill(~is_taught_N[rows_R], 0)

    def of_chunks(
        self, values_C: torch.Tensor, has_C: torch.Tensor, targets: Targets, student: RowStatistics | None = None
    ) -> torch.Tensor:
        """Return values of active chunks, 0 or False where these are not taught; rows of a chunk are all, or none.

        `uncertain` goes by the mean entropy of a chunk's rows.

        Args:
            values_C: Values.
            has_C: Of which chunks `uncertain` chooses.
            targets: Of the batch.
            student: As in `of_rows`.
        """
        if self.row_weight == "uncertain":
            num_N = torch.ones_like(targets.t_N)
            size_C = sum_by_chunk(num_N, targets)
            view_C = sum_by_chunk(targets.view_N.double(), targets).div(size_C).round().long()
            entropy_C = size_C if student is None else sum_by_chunk(uncertain.entropy(student), targets) / size_C
            return values_C.masked_fill(
                ~uncertain.most_uncertain(entropy_C, view_C.masked_fill(~has_C, -1), self.share), 0
            )
        is_taught_N = self.taught(targets)
        if is_taught_N is None:
            return values_C
        return values_C.masked_fill(sum_by_chunk(is_taught_N.long(), targets) == 0, 0)
