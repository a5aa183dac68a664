"""Which shards one of several runs builds: a range, a part of an even split, or the part that a launcher gives it."""

import re
from collections.abc import Mapping

from tide_cache.errors import RunFileError
from tide_cache.launchers import PAIRS


def shard_range(text: str, num_shards: int, environment: Mapping[str, str]) -> range:
    """Read `--shard-range`.

    Args:
        text: `A:B`, half-open; `K/N`, part K of N equal ones, from 0; or `auto`, K and N from the environment.
        num_shards: Shards of the plan.
        environment: Of this process.

    Raises:
        RunFileError: It is none of these, lies outside the plan, or the environment does not tell.
    """
    if text == "auto":
        return _part(*_place(environment), num_shards)
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        start, stop = map(int, match.groups())
        if start < stop <= num_shards:
            return range(start, stop)
        raise RunFileError(
            f"--shard-range {text}: the plan has {num_shards} shards; expected A:B with 0 <= A < B <= {num_shards}"
        )
    if (match := re.fullmatch(r"(\d+)/(\d+)", text)) and int(match[1]) < int(match[2]):
        return _part(int(match[1]), int(match[2]), num_shards)
    raise RunFileError(
        f"--shard-range {text!r}: expected A:B (shards A up to, not including, B), K/N with K < N (part K of N, "
        "counted from 0), or auto"
    )


def check_shard_range(text: str, environment: Mapping[str, str]) -> None:
    """Check what can be checked before the corpus is read: the form and, for `auto`, the environment.

    Args:
        text: As for `shard_range`.
        environment: Of this process.

    Raises:
        RunFileError: As `shard_range`.
    """
    if not re.fullmatch(r"\d+:\d+", text):
        shard_range(text, 1, environment)


def _part(rank: int, size: int, num_shards: int) -> range:
    return range(rank * num_shards // size, (rank + 1) * num_shards // size)


def _place(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of this process and the count of all: elements of a Slurm array times processes of each."""
    rank, size, is_known = 0, 1, False
    if "SLURM_ARRAY_TASK_ID" in environment:
        rank, size = _array_place(environment)
        is_known = True
    for name, of in PAIRS:
        if name in environment and of in environment:
            rank, size = rank * _number(environment, of) + _number(environment, name), size * _number(environment, of)
            is_known = True
            break
    if not is_known:
        raise RunFileError(
            "--shard-range auto: found neither SLURM_ARRAY_TASK_ID nor RANK and WORLD_SIZE in the environment; "
            "start the command in a Slurm array or with a launcher, or use A:B or K/N"
        )
    if not 0 <= rank < size:
        raise RunFileError(f"--shard-range auto: the environment makes this process {rank} of {size}; use A:B or K/N")
    return rank, size


def _array_place(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the index of a Slurm array's element among all elements.

    Slurm tells the smallest and the largest id, a step and a count. They describe the ids of `--array=0-6:2`; for a
    list such as `--array=1,3` the step is 1 whatever the ids are, so the number of ids before this one is unknown.
    """
    task, count = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    first, step = (_number(environment, f"SLURM_ARRAY_TASK_{name}", d) for name, d in (("MIN", 0), ("STEP", 1)))
    step = max(step, 1)
    last = _number(environment, "SLURM_ARRAY_TASK_MAX", first + step * (count - 1) if count else 0)
    if last != first + step * (count - 1) or (task - first) % step or not first <= task <= last:
        raise RunFileError(
            f"--shard-range auto: this is element {task} of a Slurm array of {count} ids from {first} to {last}, step "
            f"{step}: a list such as --array=1,3, of which Slurm does not tell the ids. Use --shard-range "
            "$SLURM_ARRAY_TASK_ID/N, where N is the number of elements of the whole array counted from 0; or submit "
            "a range, such as --array=0-15"
        )
    return (task - first) // step, count


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise RunFileError(f"--shard-range auto: found {name}={text!r}, expected a whole number; use A:B or K/N")
    return int(text)
