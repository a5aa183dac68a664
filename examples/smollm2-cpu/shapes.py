"""Chunks by shape: what the teacher knows of each.

`python shapes.py CACHE` prints, for a cache with the signals `chunks` and `projected`, how much of the teacher's
probability its candidates hold, and how much lies in texts of another number of student tokens. A shape is `1-1` (one
teacher token, one student token), `1-n`, `n-1` or `n-n`. `told.py` trains a student who is told of one shape alone.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tide_cache import open_cache  # noqa: E402
from tide_cache.arrays import sums_before  # noqa: E402
from tide_cache.records import SamplePair, ViewRecord  # noqa: E402

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


if __name__ == "__main__":
    print_table(*sys.argv[1:])
