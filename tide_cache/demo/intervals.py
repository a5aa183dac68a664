"""How sure a difference is: half of a 95% interval of a mean, from a few independent values."""

from collections.abc import Sequence
from math import sqrt
from statistics import stdev
from types import MappingProxyType

T_95 = MappingProxyType(
    {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
)
"""Two-sided 95% points of Student's t, by degrees of freedom."""


def half_interval(values: Sequence[float]) -> float | None:
    """Return half the width of the 95% interval of the mean of two to eleven values; None of fewer."""
    if len(values) < 2:
        return None
    return T_95[len(values) - 1] * stdev(values) / sqrt(len(values))
