"""From row statistics and targets to a sum and a count; pure, one file each.

To add an objective: declare its entry in `tide_cache/config/objectives.py`, write a class like those in `calm.py` that
inherits its fields from there, and name it here.
"""

from dataclasses import asdict

from tide_cache.config.objectives import AnyObjective
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


def objective_of(entry: AnyObjective) -> Objective:
    """Return the objective that an entry of a run file describes."""
    return OBJECTIVES[entry.kind](**asdict(entry))


__all__ = ["OBJECTIVES", "Needs", "Objective", "ids_to_gather", "objective_of", "union_of_needs"]
