"""The weight of a masked token in the denoising loss: the inverse of its probability of being masked.

A unit is what is masked together: the supervised tokens of a chunk, or one token outside every chunk. If each token
is drawn with probability p, a unit of n tokens is masked with probability r = 1 - (1 - p)^n, and in the complement of
that view with r = (1 - p)^n. With g(p) the density of p over views, the weight 1 / (g r) gives every p the same weight.
The mean over views of the weight times the mask is then 1 for every token, whatever its unit.

Several p could have given the same mask, and a student sees only the mask. So the weight is replaced by its mean over
all of them, given the mask: the same expectation with the least noise (Rao-Blackwell). With m of L tokens masked, each
its own unit, and the linear schedule, it is (L + 1) / m. It depends only on what a cache stores: the mask, the chunks,
the number of the view, and the schedule.

In complements 1 / (1 - p)^n has no finite variance for n > 1. There the mean is conditioned only on how many units of
the same size are masked: the weight times the mask still has the mean 1, but high noise levels count for more.

Source: docs/decisions/semantics.md.

Shape suffixes: L tokens of all views, concatenated, N masked ones, C chunks, B views, U sizes of units, J nodes of
the quadrature over t, E pairs of a view and a size, M those of several tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import Int64s, ranges, sums_before
from tide_cache.config.settings import Schedule
from tide_cache.records import Bools, Int32s
from tide_cache.views.schedule import MIN_T, mask_probability, slope

NUM_NODES = 256
"""Exact for polynomials of degree 511: with the linear schedule, for samples of up to 511 supervised tokens."""

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ViewLaw:
    """How the mask of a view came about.

    Attributes:
        schedule: How much is masked at each t.
        is_complement: Whether the view masks what another one shows.
    """

    schedule: Schedule
    is_complement: bool


def unit_sizes(is_supervised_L: Bools, student_spans_C2: Int32s) -> Int32s:
    """Return how many supervised tokens are masked together with each token, itself included; 0 if it never is [L].

    Args:
        is_supervised_L: Tokens that may be masked.
        student_spans_C2: Where each chunk starts and ends; chunks do not overlap.
    """
    starts_C, ends_C = student_spans_C2.T
    before_L = sums_before(is_supervised_L)
    length_C = ends_C - starts_C
    token_I = ranges(starts_C, length_C)
    size_L = np.ones(len(is_supervised_L), np.int32)
    size_L[token_I] = np.repeat(before_L[ends_C] - before_L[starts_C], length_C)
    result: Int32s = np.where(is_supervised_L, size_L, np.int32(0))
    return result


def denoising_weights(
    unit_L: Int32s, is_masked_L: Bools, view_L: npt.NDArray[np.int64], laws: Sequence[ViewLaw]
) -> Float64s:
    """Return the weight of each masked token [N].

    Args:
        unit_L: From `unit_sizes`.
        is_masked_L: What the views mask; only what `unit_L` has a size for.
        view_L: Which view each token belongs to.
        laws: How the mask of each view came about.
    """
    has_size = np.bincount(unit_L) > 0
    has_size[:1] = False  # a token that is never masked
    sizes_U = np.flatnonzero(has_size)
    place_L = view_L * len(sizes_U) + sums_before(has_size)[unit_L]
    shape = (len(laws), len(sizes_U))
    units_BU, masked_BU = (
        (np.bincount(place_L[is_counted_L], minlength=shape[0] * shape[1]).reshape(shape) / sizes_U)
        for is_counted_L in (unit_L > 0, is_masked_L)
    )
    weight_BU = np.zeros(shape)
    for law in set(laws):
        of_law_B = np.array([other == law for other in laws])
        weight_BU[of_law_B] = _weights(masked_BU[of_law_B], units_BU[of_law_B], sizes_U, law)
    result: Float64s = weight_BU.ravel()[place_L[is_masked_L]]
    return result


def _weights(masked_BU: Float64s, units_BU: Float64s, sizes_U: Int64s, law: ViewLaw) -> Float64s:
    """Return the mean of dp/dt / r over t, given how many units of each size are masked; 0 if none is."""
    log_node_J, log_slope_J, log_shown_J = _nodes(law.schedule)
    untouched_UJ = sizes_U[:, None] * log_shown_J
    touched_UJ = np.log(-np.expm1(untouched_UJ))
    masked_UJ, shown_UJ = (untouched_UJ, touched_UJ) if law.is_complement else (touched_UJ, untouched_UJ)
    view_E, size_E = masked_BU.nonzero()
    shown_BU = units_BU - masked_BU
    log_masked_BJ, log_shown_BJ = np.zeros((2, len(masked_BU), len(log_node_J)))
    for size in range(len(sizes_U)):  # the order of a matrix product depends on how many views there are
        log_masked_BJ += masked_BU[:, size, None] * masked_UJ[size]
        log_shown_BJ += shown_BU[:, size, None] * shown_UJ[size]
    log_posterior_EJ = (log_masked_BJ + log_shown_BJ)[view_E]
    if law.is_complement:
        view_M, size_M = view_E[is_several_E := sizes_U[size_E] > 1], size_E[is_several_E]
        masked_M1, units_M1 = masked_BU[view_M, size_M, None], units_BU[view_M, size_M, None]
        log_posterior_EJ[is_several_E] = masked_M1 * masked_UJ[size_M] + (units_M1 - masked_M1) * shown_UJ[size_M]
    log_posterior_EJ += log_node_J
    log_posterior_EJ -= log_posterior_EJ.max(axis=1, keepdims=True)
    sum_E = np.exp(log_posterior_EJ).sum(axis=1)
    weight_BU = np.zeros_like(masked_BU)
    weight_BU[view_E, size_E] = np.exp(log_posterior_EJ + log_slope_J - masked_UJ[size_E]).sum(axis=1) / sum_E
    return weight_BU


@lru_cache(maxsize=4)
def _nodes(schedule: Schedule) -> tuple[Float64s, Float64s, Float64s]:
    """Return nodes over t in [MIN_T, 1]: logs of their weights, of dp/dt and of 1 - p, all [J]."""
    x_J, weight_J = np.polynomial.legendre.leggauss(NUM_NODES)
    t_J = MIN_T + (1 - MIN_T) * (x_J + 1) / 2
    slope_J = np.array([slope(t, schedule) for t in t_J.tolist()])
    p_J = np.array([mask_probability(t, schedule) for t in t_J.tolist()])
    return np.log(weight_J), np.log(slope_J), np.log1p(-p_J)
