"""Denoising cross-entropy on the true tokens: the BD3LM row of the paper's table, and the term of every other row."""

from dataclasses import dataclass

import torch

from tide_cache.config.objectives import CrossEntropyConfig
from tide_cache.objectives.base import Needs, student_truth
from tide_cache.objectives.steps import ByStep
from tide_cache.records import RowStatistics, Targets


@dataclass(frozen=True)
class CrossEntropy(CrossEntropyConfig, ByStep):
    """Sum -w log q(true) over masked rows.

    `scheduler`: w = 1/t (for the linear schedule), divided by all supervised tokens, masked or not: an estimate of the
    diffusion bound per token. `realised_ratio`: w = the mean of 1 / (the token's probability of being masked) over the
    noise levels that could have given the mask. If each token is masked by itself, it is about 1 / the masked share of
    the sample; if chunks are masked whole, the bound is the same. `uniform`: w = 1, divided by the masked tokens.

    Source: `scheduler` is BD3LM's, arXiv:2503.09573, as used by TIDE, arXiv:2604.26951; `realised_ratio` the form of
    the same bound in LLaDA, arXiv:2502.09992; docs/decisions/semantics.md.
    """

    @property
    def needs(self) -> Needs:
        """No teacher signal, but the steps of its decoding if `row_weight` is not `even`."""
        return Needs(self.step_signals)

    def count(self, targets: Targets) -> float:
        """Return the number of supervised tokens, or of masked ones that are taught for `uniform`."""
        return float(self.num_taught(targets) if self.time_weight == "uniform" else targets.num_supervised)

    def total(self, student: RowStatistics, targets: Targets, progress: float = 0.0) -> torch.Tensor:
        """Return the weighted sum of negative log-likelihoods, in nats."""
        nll_N = -student_truth(student)
        if self.time_weight == "scheduler":
            nll_N = nll_N * targets.time_weight_N
        elif self.time_weight == "realised_ratio":
            nll_N = nll_N * targets.mask_weight_N
        is_taught_N = self.taught(targets)
        return nll_N.sum() if is_taught_N is None else nll_N.masked_fill(~is_taught_N, 0).sum()
