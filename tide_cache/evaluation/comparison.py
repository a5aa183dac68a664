"""Several runs side by side: mean and spread over seeds, and the difference to a baseline paired by seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the latter is None for a single seed."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        """Write as `1.011 ± .071`."""
        return f"{self.mean:.3f}" if self.deviation is None else f"{self.mean:.3f} ± {self.deviation:.3f}"


@dataclass(frozen=True)
class Comparison:
    """One arm against the baseline.

    Attributes:
        value: Over this arm's seeds.
        difference: This arm minus the baseline, over the seeds that both have; None for the baseline itself.
        num_better: Seeds in which this arm is lower.
        num_paired: Seeds that both have.
    """

    value: Spread
    difference: Spread | None
    num_better: int
    num_paired: int


def spread(values: list[float]) -> Spread:
    """Give mean and deviation of at least one value."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def compare(values: Mapping[int, float], baseline: Mapping[int, float] | None) -> Comparison:
    """Compare an arm with a baseline, seed by seed; lower is better.

    Args:
        values: Value of each seed.
        baseline: The same of the baseline; None when this arm is the baseline.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values) if baseline and seed in baseline]
    return Comparison(
        value=spread(list(values.values())),
        difference=spread(differences) if differences else None,
        num_better=sum(difference < 0 for difference in differences),
        num_paired=len(differences),
    )
