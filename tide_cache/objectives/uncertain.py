"""Which rows a student is least sure of: a share of each view's, by the entropy that the head's statistics give.

With log Z at T the Rényi entropy of order 1/T over the whole vocabulary is exact: (log Z(T) - log Z(1)/T) / (1 - 1/T).
Near T = 1 it is Shannon's. The entropy over the kept ids and the rest as one outcome would need no further T, but calls
a student sure that spreads over the rest: docs/decisions/uncertain-rows.md.

Source: SE-KD, arXiv:2602.01395: distil only where the student's entropy is highest, a fifth of the positions.

Shape suffixes: N masked rows, U units of which some are chosen (rows, or chunks).
"""

import torch

from tide_cache.records import RowStatistics

NEAR_ONE = 1.05
"""T of the order: near enough to 1, and far enough for float32, which has 1e-4 nats left."""
_ROUNDING = 1e-9
"""0.1 * 30 is a little more than 3 and must not be rounded up to 4."""


def entropy(student: RowStatistics) -> torch.Tensor:
    """Return the student's Rényi entropy of order 1/1.05 at each row, in nats, not on the graph [N]."""
    at_one_N, near_one_N = (student.log_z_NT[:, student.temperatures.index(t)].detach() for t in (1.0, NEAR_ONE))
    return (near_one_N - at_one_N / NEAR_ONE) / (1 - 1 / NEAR_ONE)


def most_uncertain(entropy_U: torch.Tensor, view_U: torch.Tensor, share: float) -> torch.Tensor:
    """Tell which units are the least certain of their view: a share of them, rounded up; nobody waits for a GPU.

    How many are chosen of each view depends on `view_U` alone. Equal entropies are chosen in the order of the units.

    Args:
        entropy_U: In nats; any number for a unit that cannot be chosen.
        view_U: View of each unit, -1 for a unit that cannot be chosen.
        share: More than 0, at most 1.
    """
    by_entropy_U = entropy_U.argsort(descending=True, stable=True)
    order_U = by_entropy_U[view_U[by_entropy_U].argsort(stable=True)]
    sorted_U = view_U[order_U]
    start_U, end_U = (torch.searchsorted(sorted_U, sorted_U, right=right) for right in (False, True))
    quota_U = ((end_U - start_U).double() * share - _ROUNDING).ceil()
    rank_U = torch.arange(len(order_U), device=order_U.device) - start_U
    is_chosen_U = torch.zeros_like(view_U, dtype=torch.bool)
    return is_chosen_U.index_put((order_U,), (rank_U < quota_U) & (sorted_U >= 0))
