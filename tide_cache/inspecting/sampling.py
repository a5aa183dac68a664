"""Figures that need views to be read: what the teacher knew at which t, and how samples are cut into chunks.

Row groups spread evenly over the cache are read one after the other. Only sums are kept of each, and the kept mass of
each row for its percentile, so that memory does not grow with the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tide_cache.arrays import evenly, sums_before
from tide_cache.locations import CachePath
from tide_cache.manifest import Manifest
from tide_cache.records import SamplePair, TeacherSignal, ViewRecord
from tide_cache.shards import PassName, ShardLayout

NUM_BUCKETS = 10
GROUPS_READ = 64
"""Row groups to read of each pass; each holds one view of up to 64 samples."""
MOST_TOKENS = 8
"""Chunks of this many tokens or more are counted together."""

OnGroups = Callable[[int, int], None]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TeacherAtTime:
    """What the teacher knew on views with `t_from` <= t < `t_to`; t = 1 belongs to the last bucket.

    Figures are None if there is nothing to average: no position, no kept ids, no candidate chunks.

    Attributes:
        t_from: Lower end of the bucket.
        t_to: Upper end.
        num_views: Number of views read.
        num_positions: Number of their masked teacher positions.
        top1_accuracy: Share of positions whose true token is the most likely one.
        mean_nll: Mean of -log p(true token), in nats.
        truth_probability: Mean of p(true token).
        confidence: Mean probability of the most likely token, at positions with kept ids.
        kept_accuracy: Top-1 accuracy at these positions only; a calibrated teacher's equals `confidence`.
        kept_ids: Mean number of kept ids per row.
        kept_mass: Mean probability of the kept ids at T = 1.
        candidate_mass: Mean probability of a chunk's candidates at T = 1.
    """

    t_from: float
    t_to: float
    num_views: int
    num_positions: int
    top1_accuracy: float | None
    mean_nll: float | None
    truth_probability: float | None
    confidence: float | None
    kept_accuracy: float | None
    kept_ids: float | None
    kept_mass: float | None
    candidate_mass: float | None


@dataclass(frozen=True)
class SampledSignals:
    """Figures of one pass; `kept_mass_p5` is the 5th percentile over rows."""

    num_views: int
    kept_mass: float | None
    kept_mass_p5: float | None
    by_time: tuple[TeacherAtTime, ...]


@dataclass(frozen=True)
class ChunkShapes:
    """How samples are cut into chunks; only chunks that can be distilled count.

    Attributes:
        num_samples: Number of samples read.
        student_lengths: Number of chunks with 1, 2, ... student tokens; the last entry includes all longer ones.
        teacher_lengths: The same by teacher tokens.
        one_to_one_tokens: Supervised tokens in chunks of one token on each side.
        longer_tokens: Supervised tokens in other chunks.
        uncovered_tokens: Supervised tokens outside chunks.
    """

    num_samples: int
    student_lengths: tuple[int, ...]
    teacher_lengths: tuple[int, ...]
    one_to_one_tokens: int
    longer_tokens: int
    uncovered_tokens: int


@dataclass(frozen=True)
class CacheSample:
    """Figures of the row groups read."""

    signals: dict[PassName, SampledSignals]
    chunks: ChunkShapes


def sample_cache(cache: CachePath, manifest: Manifest, on_groups: OnGroups | None = None) -> CacheSample:
    """Read at most 64 row groups of each pass.

    Args:
        cache: Folder of the cache.
        manifest: Its manifest.
        on_groups: Called with the number of row groups read and of all to read.

    Raises:
        TideCacheError: A shard is damaged.
    """
    sums = {name: _PassSums(manifest) for name in manifest.passes}
    chunks = _ChunkSums()
    places = _spread_places(manifest)
    read: tuple[int, int] | None = None
    pairs: list[SamplePair] = []
    for done, (shard, group, view) in enumerate(places, 1):
        if read != (shard, group):
            pairs = manifest.reader(cache, "pairs", shard).read_pairs(group)
            read = shard, group
            chunks.add(pairs)
        for name, of_pass in sums.items():
            of_pass.add(manifest.reader(cache, name, shard).read_signals(view, group, pairs))
        if on_groups is not None:
            on_groups(done, len(places))
    return CacheSample({name: of_pass.result() for name, of_pass in sums.items()}, chunks.result())


def _spread_places(manifest: Manifest) -> list[tuple[int, int, int]]:
    """Choose (shard, group, view) spread evenly over shards, groups and views, in the order of the cache."""
    num_views = manifest.identity.stored_views
    layouts = [ShardLayout(count, num_views) for count in manifest.num_samples]
    places = [(s, g, v) for s, layout in enumerate(layouts) for g in range(layout.num_groups) for v in range(num_views)]
    return [places[index] for index in evenly(len(places), GROUPS_READ)]


class _PassSums:
    """Sums of one pass by bucket of t."""

    FIGURES = (
        *("top1_accuracy", "mean_nll", "truth_probability", "confidence", "kept_accuracy", "kept_ids", "kept_mass"),
        "candidate_mass",
    )

    def __init__(self, manifest: Manifest) -> None:
        self._unit_temperature = manifest.identity.signals.temperatures.index(1.0)
        self._num_views = np.zeros(NUM_BUCKETS, dtype=np.int64)
        self._counts = {name: np.zeros(NUM_BUCKETS, dtype=np.int64) for name in self.FIGURES}
        self._totals = {name: np.zeros(NUM_BUCKETS) for name in self.FIGURES}
        self._kept_masses: list[Floats] = []

    def add(self, records: Sequence[ViewRecord]) -> None:
        for record in records:
            assert record.signal is not None, "views of a cache carry signals"
            bucket = min(int(record.view.t * NUM_BUCKETS), NUM_BUCKETS - 1)
            self._num_views[bucket] += 1
            for name, values in self._figures(record.signal):
                self._counts[name][bucket] += len(values)
                self._totals[name][bucket] += values.sum(dtype=np.float64)
                if name == "kept_mass":
                    self._kept_masses.append(values)

    def _figures(self, signal: TeacherSignal) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        yield "top1_accuracy", signal.is_top1_N
        yield "mean_nll", -signal.truth_logprobs_N
        yield "truth_probability", np.exp(signal.truth_logprobs_N)
        if (topk := signal.topk) is not None:
            first_R = sums_before(topk.counts_R)[:-1]
            yield "confidence", np.exp(topk.logprobs_E[first_R])
            yield "kept_accuracy", signal.is_top1_N[topk.rows_R]
            yield "kept_ids", topk.counts_R
            yield "kept_mass", 1 - np.exp(topk.log_tail_RT[:, self._unit_temperature])
        if (chunks := signal.chunks) is not None:
            yield "candidate_mass", 1 - np.exp(chunks.log_tail_AT[:, self._unit_temperature])

    def result(self) -> SampledSignals:
        edges = pairwise(index / NUM_BUCKETS for index in range(NUM_BUCKETS + 1))
        kept_R = np.concatenate([np.zeros(0), *self._kept_masses])
        return SampledSignals(
            num_views=int(self._num_views.sum()),
            kept_mass=float(kept_R.mean()) if len(kept_R) else None,
            kept_mass_p5=float(np.percentile(kept_R, 5)) if len(kept_R) else None,
            by_time=tuple(
                TeacherAtTime(
                    t_from,
                    t_to,
                    int(self._num_views[bucket]),
                    int(self._counts["top1_accuracy"][bucket]),
                    **{name: self._mean(name, bucket) for name in self.FIGURES},
                )
                for bucket, (t_from, t_to) in enumerate(edges)
            ),
        )

    def _mean(self, name: str, bucket: int) -> float | None:
        count = int(self._counts[name][bucket])
        return float(self._totals[name][bucket]) / count if count else None


class _ChunkSums:
    """Counts of chunks by length."""

    def __init__(self) -> None:
        self._num_samples = 0
        self._student_lengths, self._teacher_lengths = (np.zeros(MOST_TOKENS, dtype=np.int64) for _ in range(2))
        self._one_to_one = self._longer = self._uncovered = 0

    def add(self, pairs: Sequence[SamplePair]) -> None:
        for pair in pairs:
            teacher_start_C, teacher_end_C, start_C, end_C = pair.chunks_C4[pair.is_distillable_C].T
            student_C, teacher_C = end_C - start_C, teacher_end_C - teacher_start_C
            is_one_to_one_C = (student_C == 1) & (teacher_C == 1)
            self._num_samples += 1
            self._student_lengths += _counts_of(student_C)
            self._teacher_lengths += _counts_of(teacher_C)
            self._one_to_one += int(is_one_to_one_C.sum())
            self._longer += int(student_C[~is_one_to_one_C].sum())
            self._uncovered += int(pair.is_supervised_L.sum()) - int(student_C.sum())

    def result(self) -> ChunkShapes:
        return ChunkShapes(
            num_samples=self._num_samples,
            student_lengths=tuple(self._student_lengths.tolist()),
            teacher_lengths=tuple(self._teacher_lengths.tolist()),
            one_to_one_tokens=self._one_to_one,
            longer_tokens=self._longer,
            uncovered_tokens=self._uncovered,
        )


def _counts_of(length_C: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return np.bincount(np.clip(length_C, 1, MOST_TOKENS) - 1, minlength=MOST_TOKENS)
