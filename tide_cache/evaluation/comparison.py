"""Comparison of several runs: mean and spread over seeds, and the difference from a baseline, paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from types import MappingProxyType

T_95 = MappingProxyType(
    {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
)
"""Two-sided 95% points of Student's t, by degrees of freedom."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the latter is None for a single seed."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        """Return it as `1.011 ± .071`."""
        return f"{self.mean:.3f}" if self.deviation is None else f"{self.mean:.3f} ± {self.deviation:.3f}"


@dataclass(frozen=True)
class Comparison:
    """One arm compared with the baseline.

    Attributes:
        value: Mean and spread over this arm's seeds.
        difference: This arm minus the baseline, over the seeds that both have; None for the baseline itself.
        num_better: Seeds in which this arm is lower.
        num_paired: Seeds that both have.
    """

    value: Spread
    difference: Spread | None
    num_better: int
    num_paired: int


def spread(values: list[float]) -> Spread:
    """Return mean and deviation of at least one value."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def half_interval(values: Sequence[float]) -> float | None:
    """Return half the width of the 95% interval of the mean of two to eleven values; None for fewer."""
    if len(values) < 2:
        return None
    return T_95[len(values) - 1] * stdev(values) / sqrt(len(values))


def paired_differences(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Return values minus those of the baseline, over the seeds that both have, in their order."""
    return [value - baseline[seed] for seed, value in sorted(values.items()) if seed in baseline]


def compare(values: Mapping[int, float], baseline: Mapping[int, float] | None) -> Comparison:
    """Compare an arm with a baseline, seed by seed; lower is better.

    Args:
        values: Value of each seed.
        baseline: The same of the baseline; None when this arm is the baseline.
    """
    differences = paired_differences(values, baseline or {})
    return Comparison(
        value=spread(list(values.values())),
        difference=spread(differences) if differences else None,
        num_better=sum(difference < 0 for difference in differences),
        num_paired=len(differences),
    )
