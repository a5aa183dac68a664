"""Chunks by shape: what the teacher knows of each, and what a student learns from those of one shape alone.

`python shapes.py table CACHE` prints, for a cache with the signals `chunks` and `projected`, how much of the teacher's
probability its candidates hold, and how much lies in texts of another number of student tokens.

`python shapes.py train RUN_FILE START CACHE OUT SEED SHAPE` trains one student of the arm `chunk_kl` who is told of
chunks of one shape. A shape is `1-1` (one teacher token, one student token), `1-n`, `n-1` or `n-n`.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tide_cache import open_cache  # noqa: E402
from tide_cache.arrays import sums_before  # noqa: E402
from tide_cache.loading.groups import Groups  # noqa: E402
from tide_cache.loading.source import TeacherSource  # noqa: E402
from tide_cache.records import SamplePair, ViewRecord  # noqa: E402
from tide_cache.signal_table import take  # noqa: E402
from tide_cache.sweep.arms import make_jobs  # noqa: E402
from tide_cache.training.distributed import World  # noqa: E402
from tide_cache.training.prepare import prepare  # noqa: E402
from tide_cache.training.run import train_prepared  # noqa: E402

SHAPES = ("1-1", "1-n", "n-1", "n-n")


def print_table(cache: str) -> None:
    """Print a table of shapes in Markdown."""
    told, num_rows = [np.zeros((0, 6))], 0
    for record in open_cache(cache):
        told.append(_told(record))
        num_rows += int(record.view.is_student_masked_L.sum())
    every = np.concatenate(told)
    print("| shape | chunks | masked tokens | NLL, nats a token | candidates hold | of another size | neither |")
    print("|---|---|---|---|---|---|---|")
    for number, shape in enumerate(SHAPES):
        of_shape = every[every[:, 0] == number]
        size, nll, spelled, other, neither = of_shape[:, 1:].mean(axis=0)
        chunks, rows = len(of_shape) / len(every), of_shape[:, 1].sum() / num_rows
        print(
            f"| {shape} | {chunks:.1%} | {rows:.1%} | {nll / size:.2f} | {spelled:.1%} | {other:.1%} | {neither:.1%} |"
        )
    print(f"| in no active chunk | | {1 - every[:, 1].sum() / num_rows:.1%} | | | | |")


def _told(record: ViewRecord) -> npt.NDArray[np.float64]:
    """Return a row for each active chunk: shape, student tokens, the teacher's NLL of the true text, and masses."""
    signal: Any = record.signal
    chunks, projected, spans_C4 = signal.chunks, signal.projected, record.pair.chunks_C4
    spans_A4 = spans_C4[chunks.chunks_A]
    truth = np.append(signal.truth_logprobs_N.astype(np.float64), 0)
    position_A2 = sums_before(record.view.is_teacher_masked_M)[spans_A4[:, :2]]
    nll_A = -np.add.reduceat(truth, position_A2.ravel())[::2] if len(spans_A4) else np.zeros(0)
    owner_J = np.repeat(np.arange(len(spans_A4)), chunks.counts_A)
    spelled_A = np.bincount(owner_J, weights=np.exp(chunks.logprobs_J), minlength=len(spans_A4))
    written_N = np.zeros(int(record.view.is_student_masked_L.sum()))
    written_N[projected.rows_R] = 1 - np.exp(projected.log_tail_RT[:, 0])  # T = 1 comes first
    written_A = written_N[sums_before(record.view.is_student_masked_L)[spans_A4[:, 2]]]
    other_A = (written_A - spelled_A).clip(0)
    shape_A = shapes_of(record.pair, chunks.chunks_A)
    return np.stack(
        [shape_A, spans_A4[:, 3] - spans_A4[:, 2], nll_A, spelled_A, other_A, 1 - spelled_A - other_A], axis=1
    )


def shapes_of(pair: SamplePair, chunks_A: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return the shape of some chunks, as places in `SHAPES`."""
    spans_A4 = pair.chunks_C4[chunks_A]
    is_several_A = spans_A4[:, 1] - spans_A4[:, 0] > 1
    return 2 * is_several_A + (spans_A4[:, 3] - spans_A4[:, 2] > 1)


class OneShape:
    """A source that says nothing of chunks of other shapes."""

    def __init__(self, source: TeacherSource, shape: str):
        self._source, self._shape = source, SHAPES.index(shape)

    @property
    def groups(self) -> Groups:
        """Those of the source."""
        return self._source.groups

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return the source's records without the candidates of other chunks."""
        return [self._cut(record) for record in self._source.records(samples, epoch)]

    def _cut(self, record: ViewRecord) -> ViewRecord:
        signal: Any = record.signal
        chunks, size_C = signal.chunks, record.pair.chunks_C4[:, 3] - record.pair.chunks_C4[:, 2]
        chosen = np.flatnonzero(shapes_of(record.pair, chunks.chunks_A) == self._shape)
        return replace(record, signal=replace(signal, chunks=take(chunks, chosen, size_C[chunks.chunks_A])))


def train_one(run_file: str, start: str, cache: str, out: str, seed: str, shape: str) -> None:
    """Train the student that the sweep would train, from a source that speaks of one shape."""
    places = {"student.model": start, "data.cache": cache, "train.out": out}
    _, jobs = make_jobs(Path(run_file), places, (), int(seed) + 1, None)
    run = next(job.run for job in jobs if (job.arm, job.seed) == ("chunk_kl", int(seed)))
    run = run.model_copy(update={"train": run.train.model_copy(update={"out": Path(out)})})
    world = World(0, 1, 0)
    prepared = prepare(run, world, resume=False)
    train_prepared(run, replace(prepared, source=OneShape(prepared.source, shape)), world)


if __name__ == "__main__":
    {"table": print_table, "train": train_one}[sys.argv[1]](*sys.argv[2:])
