"""All rows of a corpus as samples, made once before the teacher runs, and read back shard by shard.

Every row is rendered and paired here, so that a row that cannot be used is known before the first forward. The samples
are in a temporary file whose name is already deleted, like the corpus's own; memory does not grow with the corpus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tide_cache.corpus import Corpus
from tide_cache.corpus.store import RowKind, store_rows
from tide_cache.manifest import ShardPlan
from tide_cache.pairing import Lengths, PairedRows, Pairer, PairingReport
from tide_cache.progress import doing
from tide_cache.records import SampleId, SamplePair

ROWS_AT_ONCE = 512
KEPT_FAULTS = 1000


@dataclass(frozen=True, eq=False)
class IndexedPair:
    """A sample and its row number in the corpus."""

    index: int
    pair: SamplePair


@dataclass(frozen=True, eq=False)
class PairedShard:
    """The samples of a shard.

    Attributes:
        indexes: Each one's row number in the corpus, increasing.
        pairs: The samples, in the same order.
        report: Counts of all rows of the shard.
    """

    indexes: list[int]
    pairs: list[SamplePair]
    report: PairingReport


@dataclass(frozen=True, eq=False)
class PairedCorpus:
    """The samples of a corpus.

    Attributes:
        samples: All of them, in the order of the rows.
        starts: First sample of each shard, then the number of samples.
        reports: Counts of each shard.
        lengths: Of all rows, before they were cut.
        faults: The first bad rows, each with its place and fault.
        num_faults: Number of bad rows.
    """

    samples: Corpus[IndexedPair]
    starts: list[int]
    reports: list[PairingReport]
    lengths: Lengths
    faults: list[str]
    num_faults: int

    @property
    def report(self) -> PairingReport:
        """Counts of all rows."""
        return sum(self.reports, PairingReport())

    def rows(self) -> Iterator[int]:
        """Iterate over the row numbers of all samples."""
        return (one.index for one in self.samples.rows(0, self.starts[-1]))

    def pairs(self) -> Iterator[SamplePair]:
        """Iterate over all samples; memory does not grow with their number."""
        return (one.pair for one in self.samples.rows(0, self.starts[-1]))

    def shard(self, shard: int) -> PairedShard:
        """Return the samples of a shard and their row numbers; rows left out appear only in the counts."""
        found = list(self.samples.rows(self.starts[shard], self.starts[shard + 1]))
        return PairedShard([one.index for one in found], [one.pair for one in found], self.reports[shard])


def pair_range(corpus: Corpus[Any], pairer: Pairer, rows: range) -> tuple[list[int], PairedRows]:
    """Pair some rows of a corpus.

    Args:
        corpus: The rows.
        pairer: Makes samples of them.
        rows: Which.

    Returns:
        The row number of each sample, and the report on all rows.
    """
    found = list(corpus.rows(rows.start, rows.stop))
    paired = pairer.pair_many(found)
    index_of = {row.sample_id: index for index, row in zip(rows, found, strict=True)}
    return [index_of[pair.sample_id] for pair in paired.pairs], paired


def pair_corpus(corpus: Corpus[Any], pairer: Pairer, plan: ShardPlan) -> PairedCorpus:
    """Pair every row.

    Args:
        corpus: The rows.
        pairer: Makes samples of them.
        plan: How rows are cut into shards.

    Raises:
        CorpusError: The temporary folder cannot hold the samples.
    """
    starts, reports, faults = [0], list[PairingReport](), list[str]()
    lengths, num_faults = Lengths(), 0

    def samples() -> Iterator[IndexedPair]:
        nonlocal lengths, num_faults
        for shard in range(plan.num_shards):
            rows, report, count = plan.rows_of(shard), PairingReport(), 0
            for first in range(rows.start, rows.stop, ROWS_AT_ONCE):
                some = range(first, min(first + ROWS_AT_ONCE, rows.stop))
                indexes, paired = pair_range(corpus, pairer, some)
                report, lengths = report + paired.report, lengths + paired.lengths
                num_faults += len(paired.faults)
                faults.extend(paired.faults[: KEPT_FAULTS - len(faults)])
                count += len(paired.pairs)
                yield from map(IndexedPair, indexes, paired.pairs)
                phase.advance(len(some))
            reports.append(report)
            starts.append(starts[-1] + count)

    with doing("Rendering and pairing every row", len(corpus), "rows") as phase:
        stored = store_rows(samples(), [], _PAIRS)
    return PairedCorpus(stored, starts, reports, lengths, faults, num_faults)


def _columns_of(samples: Sequence[IndexedPair]) -> list[list[Any]]:
    pairs = [one.pair for one in samples]
    return [
        [one.index for one in samples],
        [pair.sample_id for pair in pairs],
        [pair.student_ids_L for pair in pairs],
        [pair.is_supervised_L for pair in pairs],
        [pair.teacher_ids_M for pair in pairs],
        [pair.chunks_C4.reshape(-1) for pair in pairs],
    ]


def _samples_of(batch: Any) -> Iterator[IndexedPair]:
    for index, sample_id, *arrays in zip(*batch.columns, strict=True):
        student_ids_L, is_supervised_L, teacher_ids_M, chunks = (
            np.array(array.values.to_numpy(zero_copy_only=False)) for array in arrays
        )
        pair = SamplePair(
            SampleId(sample_id.as_py()), student_ids_L, is_supervised_L, teacher_ids_M, chunks.reshape(-1, 4)
        )
        yield IndexedPair(index.as_py(), pair)


_PAIRS: RowKind[IndexedPair] = RowKind(
    schema=pa.schema(
        [
            ("index", pa.int64()),
            ("sample_id", pa.string()),
            ("student_ids", pa.list_(pa.int32())),
            ("is_supervised", pa.list_(pa.bool_())),
            ("teacher_ids", pa.list_(pa.int32())),
            ("chunks", pa.list_(pa.int32())),
        ]
    ),
    columns_of=_columns_of,
    rows_of=_samples_of,
    hashed_form=lambda sample: b"",  # samples follow from the corpus, whose hash is in the identity
    size_of=lambda sample: len(sample.pair.student_ids_L) + len(sample.pair.teacher_ids_M),
)
