"""Students who are told a part of what the teacher said, or what it said when it was asked otherwise.

`python told.py RUN_FILE ARM START CACHE OUT SEED PART [OTHER]` trains one student of an arm, in the order of CACHE
and with the masks of CACHE. PART is

- `1-1`, `1-n`, `n-1` or `n-n`: candidate chunks of this shape alone (teacher's tokens first), for `chunk_kl`;
- `text`: top-k rows without those of the end-of-text tokens that fill the last block;
- `one-to-one`: top-k rows of tokens that are one to one in the cache OTHER, of another tokenizer;
- `unseen`: top-k rows without those of tokens of whose chunk in OTHER another token is seen;
- `other`: the signals of the cache OTHER, whose corpus, tokenizers and masks are the same.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE))

from shapes import SHAPES, shapes_of  # noqa: E402

from tide_cache import open_cache  # noqa: E402
from tide_cache.loading.groups import Groups  # noqa: E402
from tide_cache.loading.source import RecordSource, TeacherSource  # noqa: E402
from tide_cache.records import ViewRecord  # noqa: E402
from tide_cache.signal_table import take  # noqa: E402
from tide_cache.sweep.arms import make_jobs  # noqa: E402
from tide_cache.training.distributed import World  # noqa: E402
from tide_cache.training.prepare import prepare  # noqa: E402
from tide_cache.training.run import train_prepared  # noqa: E402

Change = Callable[[ViewRecord], ViewRecord]
Told = Callable[[ViewRecord], npt.NDArray[np.bool_]]
"""Which teacher tokens of a view a student is told of."""


class Changed(RecordSource):
    """A source whose records are changed on the way."""

    def __init__(self, source: TeacherSource, change: Change):
        self._source, self._change = source, change

    @property
    def groups(self) -> Groups:
        """Those of the source."""
        return self._source.groups

    def records(self, samples: Sequence[int], epoch: int) -> list[ViewRecord]:
        """Return the source's records, changed."""
        return [self._change(record) for record in self._source.records(samples, epoch)]


def only_shape(shape: int) -> Change:
    """Leave out the candidates of chunks of other shapes."""

    def change(record: ViewRecord) -> ViewRecord:
        signal: Any = record.signal
        chunks, size_C = signal.chunks, record.pair.chunks_C4[:, 3] - record.pair.chunks_C4[:, 2]
        chosen = np.flatnonzero(shapes_of(record.pair, chunks.chunks_A) == shape)
        return replace(record, signal=replace(signal, chunks=take(chunks, chosen, size_C[chunks.chunks_A])))

    return change


def only_tokens(is_told: Told) -> Change:
    """Leave out the top-k rows of other teacher tokens."""

    def change(record: ViewRecord) -> ViewRecord:
        signal: Any = record.signal
        position_R = np.flatnonzero(record.view.is_teacher_masked_M)[signal.topk.rows_R]
        topk = take(signal.topk, np.flatnonzero(is_told(record)[position_R]))
        return replace(record, signal=replace(signal, topk=topk))

    return change


def is_text(record: ViewRecord) -> npt.NDArray[np.bool_]:
    """Return which tokens come before the second of the equal tokens that a sample ends with."""
    ids_M = record.pair.teacher_ids_M
    differs = np.flatnonzero(ids_M != ids_M[-1])
    return np.arange(len(ids_M)) <= (differs[-1] + 1 if len(differs) else 0)


def one_to_one_in(cache: str) -> Told:
    """Return what tells which tokens are one to one in a cache of another tokenizer."""
    chunks = _chunks_in(cache)

    def is_one_to_one(record: ViewRecord) -> npt.NDArray[np.bool_]:
        start_C, end_C, first_C, last_C = chunks[record.pair.sample_id].T
        at = start_C[(end_C - start_C == 1) & (last_C - first_C == 1)]
        return np.isin(np.arange(len(record.pair.teacher_ids_M)), at)

    return is_one_to_one


def unseen_in(cache: str) -> Told:
    """Return what tells of which tokens' chunks in a cache of another tokenizer all other tokens are masked too."""
    chunks = _chunks_in(cache)

    def is_unseen(record: ViewRecord) -> npt.NDArray[np.bool_]:
        is_unseen_M = np.ones(len(record.pair.teacher_ids_M), bool)
        for start, end, _, _ in chunks[record.pair.sample_id].tolist():
            is_unseen_M[start:end] = record.view.is_teacher_masked_M[start:end].all()
        return is_unseen_M

    return is_unseen


def _chunks_in(cache: str) -> dict[str, npt.NDArray[np.int32]]:
    return {record.pair.sample_id: record.pair.chunks_C4 for record in open_cache(cache) if record.view.view == 0}


def signals_of(cache: str) -> Change:
    """Take the signals of another cache of the same views."""
    said = {(record.pair.sample_id, record.view.view): record for record in open_cache(cache)}

    def change(record: ViewRecord) -> ViewRecord:
        other = said[record.pair.sample_id, record.view.view]
        assert np.array_equal(other.view.is_teacher_masked_M, record.view.is_teacher_masked_M), "another mask"
        return replace(record, signal=other.signal)

    return change


def main(run_file: str, arm: str, start: str, cache: str, out: str, seed: str, part: str, other: str = "") -> None:
    """Train one student."""
    places = {"student.model": start, "data.cache": cache, "train.out": out}
    _, jobs = make_jobs(Path(run_file), places, (), int(seed) + 1, None)
    run = next(job.run for job in jobs if (job.arm, job.seed) == (arm, int(seed)))
    run = run.model_copy(update={"train": run.train.model_copy(update={"out": Path(out)})})
    if part in SHAPES:
        change = only_shape(SHAPES.index(part))
    elif part == "other":
        change = signals_of(other)
    else:
        change = only_tokens(
            is_text if part == "text" else {"one-to-one": one_to_one_in, "unseen": unseen_in}[part](other)
        )
    world = World(0, 1, 0)
    prepared = prepare(run, world, resume=False)
    train_prepared(run, replace(prepared, source=Changed(prepared.source, change)), world)


if __name__ == "__main__":
    main(*sys.argv[1:])
