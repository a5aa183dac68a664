"""Mean, interval and paired difference over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from tide_cache.evaluation.comparison import half_interval, paired_differences


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
    """Return the mean of one to ten values, and the interval by Student's t."""
    return Interval(mean(values), half_interval(values), len(values))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Interval | None:
    """Return the difference to a baseline over the seeds that both have; None when they share none."""
    differences = paired_differences(values, baseline)
    return interval(differences) if differences else None
