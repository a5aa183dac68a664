"""What chunks of one shape teach: students of the arm `chunk_kl` who are told of these chunks alone.

`python shapes.py RUN_FILE START CACHE OUT SEED SHAPE` trains one student. SHAPE is `1-1` (one teacher token, one
student token), `1-n`, `n-1` or `n-n`.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tide_cache.loading.source import TeacherSource  # noqa: E402
from tide_cache.records import SamplePair, ViewRecord  # noqa: E402
from tide_cache.signal_table import take  # noqa: E402
from tide_cache.sweep.arms import make_jobs  # noqa: E402
from tide_cache.training.distributed import World  # noqa: E402
from tide_cache.training.prepare import prepare  # noqa: E402
from tide_cache.training.run import train_prepared  # noqa: E402

SHAPES = ("1-1", "1-n", "n-1", "n-n")


def shapes_of(pair: SamplePair, chunks_A: np.ndarray) -> np.ndarray:
    """Return the shape of some chunks, as places in `SHAPES`."""
    spans_A4 = pair.chunks_C4[chunks_A]
    is_several_A = spans_A4[:, 1] - spans_A4[:, 0] > 1
    return 2 * is_several_A + (spans_A4[:, 3] - spans_A4[:, 2] > 1)


class OneShape:
    """A source that says nothing of chunks of other shapes."""

    def __init__(self, source: TeacherSource, shape: str):
        self._source, self._shape = source, SHAPES.index(shape)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Those of the source."""
        return self._source.group_sizes

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return the source's records without the candidates of other chunks."""
        return [self._cut(record) for record in self._source.records(samples, epoch)]

    def _cut(self, record: ViewRecord) -> ViewRecord:
        signal: Any = record.signal
        chunks, size_C = signal.chunks, record.pair.chunks_C4[:, 3] - record.pair.chunks_C4[:, 2]
        chosen = np.flatnonzero(shapes_of(record.pair, chunks.chunks_A) == self._shape)
        return replace(record, signal=replace(signal, chunks=take(chunks, chosen, size_C[chunks.chunks_A])))


def main(run_file: str, start: str, cache: str, out: str, seed: str, shape: str) -> None:
    """Train the student that the sweep would train, from a source that speaks of one shape."""
    places = {"student.model": start, "data.cache": cache, "train.out": out}
    _, jobs = make_jobs(Path(run_file), places, (), int(seed) + 1, None)
    run = next(job.run for job in jobs if (job.arm, job.seed) == ("chunk_kl", int(seed)))
    run = run.model_copy(update={"train": run.train.model_copy(update={"out": Path(out)})})
    world = World(0, 1, 0)
    prepared = prepare(run, world, resume=False)
    train_prepared(run, replace(prepared, source=OneShape(prepared.source, shape)), world)


if __name__ == "__main__":
    main(*sys.argv[1:])
