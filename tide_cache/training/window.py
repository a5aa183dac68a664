"""Figures of the steps since the last line of metrics, over all ranks.

Shape suffixes: O objectives, B buckets of t, W ranks.
"""

import resource
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from tide_cache.training.distributed import sum_over_ranks
from tide_cache.training.step import T_BUCKETS, StepSums


@dataclass(frozen=True)
class WindowFigures:
    """Means and rates of some steps, equal on every rank; see `StepMetrics` for units."""

    means: list[float]
    nll_by_t: list[float | None]
    tokens_per_s: float
    stall_share: float
    peak_memory_bytes: int


class Window:
    """Sums up steps until `close`, then starts over."""

    def __init__(self, num_objectives: int, device: torch.device):
        self._num_objectives, self._device = num_objectives, device
        self._clear()

    def add(self, sums: StepSums, num_tokens: int, stall_s: float) -> None:
        """Add a step of this rank.

        Args:
            sums: Of the step.
            num_tokens: Student tokens in it.
            stall_s: Seconds that it waited for its data.
        """
        self._totals_O += sums.totals_O
        self._counts_O += sums.counts_O
        self._nll_B += sums.nll_by_t_B
        self._rows_B += sums.rows_by_t_B
        self._num_tokens += num_tokens
        self._stall_s += stall_s

    def close(self) -> WindowFigures:
        """Return the figures of the steps added, and begin the next window; every rank calls this."""
        figures = self.figures()
        self._clear()
        return figures

    def figures(self) -> WindowFigures:
        """Return the figures of the steps added so far; every rank calls this."""
        ours = torch.tensor([self._num_tokens, self._stall_s, 1.0], dtype=torch.float64, device=self._device)
        memory_W = torch.zeros(dist.get_world_size(), dtype=torch.float64, device=self._device)
        memory_W[dist.get_rank()] = _peak_memory_bytes(self._device)
        parts = [self._totals_O, self._nll_B, self._rows_B, ours, memory_W]
        summed = sum_over_ranks(torch.cat(parts)).cpu()
        total_O, nll_B, rows_B, (num_tokens, stall_s, num_ranks), memory_W = torch.split(
            summed, [len(part) for part in parts]
        )
        elapsed_s = max(time.monotonic() - self._start_s, 1e-9)
        return WindowFigures(
            means=(total_O / self._counts_O.masked_fill(self._counts_O == 0, 1).cpu()).tolist(),
            nll_by_t=[nll / rows if rows else None for nll, rows in zip(nll_B.tolist(), rows_B.tolist(), strict=True)],
            tokens_per_s=float(num_tokens) / elapsed_s,
            stall_share=float(stall_s / num_ranks) / elapsed_s,
            peak_memory_bytes=int(memory_W.max()),
        )

    def _clear(self) -> None:
        self._totals_O = torch.zeros(self._num_objectives, dtype=torch.float64, device=self._device)
        self._counts_O = torch.zeros_like(self._totals_O)
        self._nll_B = torch.zeros(T_BUCKETS, dtype=torch.float64, device=self._device)
        self._rows_B = torch.zeros_like(self._nll_B)
        self._num_tokens, self._stall_s = 0, 0.0
        self._start_s = time.monotonic()


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
