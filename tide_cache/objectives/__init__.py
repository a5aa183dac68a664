"""From row statistics and targets to a sum and a count; pure, one file each.

To add an objective: write a frozen dataclass like those in `calm.py`, name it here, and give it an entry in
`tide_cache/config/objectives.py` with the same `kind` and fields.
"""

from tide_cache.objectives.base import Needs, Objective, ids_to_gather, union_of_needs
from tide_cache.objectives.calm import BernoulliKL, Calm, ReverseCalm
from tide_cache.objectives.ce import CrossEntropy
from tide_cache.objectives.chunk_kl import ChunkKL
from tide_cache.objectives.kl import ForwardKL, ReverseKL
from tide_cache.objectives.tidal import Tidal

OBJECTIVES: dict[str, type[Objective]] = {
    objective.kind: objective
    for objective in (CrossEntropy, ForwardKL, ReverseKL, Calm, ReverseCalm, BernoulliKL, ChunkKL, Tidal)
}

__all__ = ["OBJECTIVES", "Needs", "Objective", "ids_to_gather", "union_of_needs"]
