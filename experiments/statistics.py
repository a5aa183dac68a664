"""Mean, interval and paired difference over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Quantiles of Student's t at 97.5%, by degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its 95% interval; None for a single value, which has none."""

    mean: float
    half_width: float | None
    num_values: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def __str__(self) -> str:
        """Write as `1.011 ± .071`."""
        return f"{self.mean:.3f}" if self.half_width is None else f"{self.mean:.3f} ± {self.half_width:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """Give the mean of one to ten values, and the interval by Student's t."""
    if len(values) == 1:
        return Interval(values[0], None, 1)
    half_width = _T_975[len(values) - 1] * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), half_width, len(values))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """Give the difference to a baseline over the seeds that both have; None when they share none."""
    differences = [value - baseline[seed] for seed, value in sorted(values.items()) if seed in baseline]
    return interval(differences) if differences else None
