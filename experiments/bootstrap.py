"""Intervals that resample starts, seeds and rows together, from the sums by row that an evaluation keeps.

Starts are drawn first, then as many seeds of each as it has, then rows; a start alone is not resampled, and neither are
rows where an evaluation kept none. All arms of a comparison get the same draws, so that what they share cancels.

Shape suffixes: Z resamples, the first of which holds everything once; S students, R rows, G times of the grid.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Student = tuple[str, int]
"""Start and seed."""
Arm = Mapping[Student, Mapping[str, Any]]
"""Held-out figures of each student, as the JSON of `NllReport`."""
Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A figure on all that was measured, and the middle 95% of its resamples.

    Attributes:
        value: The figure.
        low: Lower end.
        high: Upper end.
        students: Pairs of start and seed that all arms have.
        rows: Rows that were resampled; None where only students were.
    """

    value: float
    low: float
    high: float
    students: int
    rows: int | None


def gain(arm: Arm, baseline: Arm) -> Estimate:
    """Return by how many bits per byte an arm is below its baseline."""
    drawn = _Resamples.of(arm, baseline)
    return drawn.estimate(drawn.bits(baseline) - drawn.bits(arm))


def share_of_gain(cross: Arm, cross_baseline: Arm, shared: Arm, shared_baseline: Arm) -> Estimate:
    """Return the gain across tokenizers, as a share of its baseline, over the same with the teacher's tokenizer."""
    arms = cross, cross_baseline, shared, shared_baseline
    drawn = _Resamples.of(*arms)
    across_Z, at_across_Z, own_Z, at_own_Z = map(drawn.bits, arms)
    return drawn.estimate((1 - across_Z / at_across_Z) / (1 - own_Z / at_own_Z))


@dataclass(frozen=True)
class _Resamples:
    """How often each resample holds each student and each row; None for rows that are not resampled."""

    students: tuple[Student, ...]
    times_ZS: Floats
    times_ZR: Floats | None

    @classmethod
    def of(cls, *arms: Arm) -> "_Resamples":
        """Draw for arms that are compared, over the students that all of them have."""
        students = tuple(sorted(set.intersection(*({*arm} for arm in arms))))
        if not students:
            raise ValueError("the arms have no pair of start and seed in common")
        random = np.random.default_rng(0)
        reports = [arm[student] for arm in arms for student in students]
        return cls(students, _draw_students([start for start, _ in students], random), _draw_rows(reports, random))

    def bits(self, arm: Arm) -> Floats:
        """Return the mean bits per byte of an arm's students in each resample, [Z]."""
        bits_SZ = np.stack([np.broadcast_to(bits_per_byte(arm[one], self.times_ZR), len(self.times_ZS))
                            for one in self.students])  # fmt: skip
        of_arm_Z: Floats = (self.times_ZS.T * bits_SZ).sum(axis=0) / self.times_ZS.sum(axis=1)
        return of_arm_Z

    def estimate(self, value_Z: Floats) -> Estimate:
        """Return a figure with its interval."""
        low, high = np.quantile(value_Z[1:], (0.025, 0.975)).tolist()
        num_rows = None if self.times_ZR is None else self.times_ZR.shape[1]
        return Estimate(float(value_Z[0]), low, high, len(self.students), num_rows)


def bits_per_byte(report: Mapping[str, Any], times_ZR: Floats | None) -> Floats:
    """Return a student's bits per byte, with each row as often as a resample says: [Z], or one number."""
    if times_ZR is None:
        return np.array([report["nats_per_byte"]]) / math.log(2)
    rows = report["rows"]
    nll_RG, num_masked_RG = (np.array(rows[name], np.float64) for name in ("nll", "num_masked"))
    mean_nll_Z = ((times_ZR @ nll_RG) / (times_ZR @ num_masked_RG)).mean(axis=1)
    tokens_per_byte_Z = (times_ZR @ rows["num_supervised"]) / (times_ZR @ rows["num_bytes"])
    bits_Z: Floats = mean_nll_Z * tokens_per_byte_Z / math.log(2)
    return bits_Z


def _draw_students(starts: Sequence[str], random: np.random.Generator) -> Floats:
    places = {start: [place for place, one in enumerate(starts) if one == start] for start in dict.fromkeys(starts)}
    times_ZS = np.zeros((1 + RESAMPLES, len(starts)))
    times_ZS[0] = 1
    times_of_start_ZE = random.multinomial(len(places), [1 / len(places)] * len(places), size=RESAMPLES)
    for number, of_start in enumerate(places.values()):
        seeds_Z = len(of_start) * times_of_start_ZE[:, number]
        times_ZS[1:, of_start] = random.multinomial(seeds_Z, [1 / len(of_start)] * len(of_start))
    return times_ZS


def _draw_rows(reports: Sequence[Mapping[str, Any]], random: np.random.Generator) -> Floats | None:
    if any((report.get("rows") or {}).get("num_bytes") is None for report in reports):
        return None
    ids = {tuple(report["rows"]["sample_id"]) for report in reports}
    if len(ids) > 1:
        raise ValueError("the students were measured on different rows; measure them on the same held-out text")
    num_rows = len(ids.pop())
    drawn_ZR = random.multinomial(num_rows, [1 / num_rows] * num_rows, size=RESAMPLES)
    return np.concatenate([np.ones((1, num_rows)), drawn_ZR])
