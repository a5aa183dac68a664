"""The variables by which a launcher tells a process its rank; needs no torch."""

from collections.abc import Mapping

PLAIN = ("RANK", "WORLD_SIZE")
"""Number and count, as torchrun and DeepSpeed's launcher set them."""

SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
"""The same of `srun`; a batch script by itself has no count."""

PAIRS = (PLAIN, SLURM)
"""The first pair that is set counts."""


def launcher_names(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the two variables in force, rank and count; None where the process is alone.

    Args:
        environment: Of this process.
    """
    if all(name in environment for name in PLAIN):
        return PLAIN
    if all(name in environment for name in SLURM) and environment[SLURM[1]] != "1":
        return SLURM
    return None


def is_first(environment: Mapping[str, str]) -> bool:
    """Return whether this process is alone or the first of several, and speaks for all.

    Args:
        environment: Of this process.
    """
    names = launcher_names(environment)
    return names is None or environment[names[0]] == "0"
