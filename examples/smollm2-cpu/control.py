"""The control of `chunk_kl`: the same students, taught by a teacher that gives the true text probability 1.

`python control.py RUN_FILE START CACHE OUT SEED` trains one student of the arm `chunk_kl`. What it gains over
cross-entropy is what the loss gives without a teacher.
"""

import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from experiments.stages import CertainTeacher  # noqa: E402
from tide_cache.sweep.arms import make_jobs  # noqa: E402
from tide_cache.training.distributed import World  # noqa: E402
from tide_cache.training.prepare import prepare  # noqa: E402
from tide_cache.training.run import train_prepared  # noqa: E402


def main(run_file: str, start: str, cache: str, out: str, seed: str) -> None:
    """Train the student that the sweep would train, from a source without a teacher."""
    places = {"student.model": start, "data.cache": cache, "train.out": out}
    _, jobs = make_jobs(Path(run_file), places, (), int(seed) + 1, None)
    run = next(job.run for job in jobs if (job.arm, job.seed) == ("chunk_kl", int(seed)))
    run = run.model_copy(update={"train": run.train.model_copy(update={"out": Path(out)})})
    world = World(0, 1, 0)
    prepared = prepare(run, world, resume=False)
    train_prepared(run, replace(prepared, source=CertainTeacher(prepared.source)), world)


if __name__ == "__main__":
    main(*sys.argv[1:])
