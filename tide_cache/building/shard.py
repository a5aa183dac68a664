"""One shard from its corpus rows: pair, mask, ask the teacher, encode; a pure function of plan and number."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial

from tide_cache.building.paired_corpus import PairedShard, pair_range
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.reveal import steps_of
from tide_cache.config.settings import LogprobDtype
from tide_cache.manifest import CacheFolder, Statistics, tables_of
from tide_cache.pairing import PairingReport
from tide_cache.records import Int32s, SamplePair, UInt16s, ViewRecord
from tide_cache.shards import (
    EncodedShard,
    PassName,
    ShardHeader,
    ShardRules,
    TableName,
    encode_pairs,
    encode_signals,
)
from tide_cache.teacher.compdemo import compdemo_signals
from tide_cache.teacher.sorting import AnyTeacher

SHOWINGS: dict[TableName, int] = {"pairs": 0, "plain": 1, "compdemo": 2}
"""How often the teacher sees a view, at most, for each table."""


@dataclass(frozen=True)
class BuiltShard:
    """What a worker did."""

    shard: int
    num_bytes: int
    num_samples: int


Encode = Callable[[], tuple[EncodedShard, Statistics]]
"""Makes a table's file from what was captured; the teacher is no longer needed."""


@dataclass(frozen=True)
class SignalEncoder:
    """Encodes the signals of a table; beside a GPU a copy of it does, in a process of its own (`aside.py`)."""

    rules: ShardRules
    logprob_dtype: LogprobDtype

    @classmethod
    def of(cls, build: PreparedBuild) -> "SignalEncoder":
        """Make the one of a build."""
        return cls(build.identity.shard_rules, build.identity.signals.logprob_dtype)

    def encode(
        self, header: ShardHeader, indexes: Sequence[int], records: list[list[ViewRecord]]
    ) -> tuple[EncodedShard, Statistics]:
        """Encode what was captured, and count it.

        Args:
            header: Which shard it is.
            indexes: Each sample's number in the corpus.
            records: For each sample those of its views.
        """
        encoded = encode_signals(header, indexes, records, self.rules, self.logprob_dtype)
        return encoded, _signal_statistics(records)


FindSteps = Callable[[], list[Int32s]]
"""Finds when each student token of some samples is revealed; see `steps_of`."""

EncodeSignals = Callable[[ShardHeader, Sequence[int], list[list[ViewRecord]]], tuple[EncodedShard, Statistics]]
"""`SignalEncoder.encode`, here or elsewhere."""


def build_shard(
    build: PreparedBuild, teacher: AnyTeacher, folder: CacheFolder, shard: int, on_views: Callable[[int], None]
) -> BuiltShard:
    """Compute and commit the missing tables of a shard; see `capture_shard`."""
    return capture_shard(build, teacher, folder, shard, on_views)()


def capture_shard(
    build: PreparedBuild,
    teacher: AnyTeacher,
    folder: CacheFolder,
    shard: int,
    on_views: Callable[[int], None],
    encode: EncodeSignals | None = None,
) -> Callable[[], BuiltShard]:
    """Capture the missing tables of a shard; calling the result encodes and commits them.

    Args:
        build: The checked build.
        teacher: With its weights loaded.
        folder: Where the cache goes.
        shard: Number of the shard.
        on_views: Called with the number of views as they are captured; may raise to stop before anything is published.
        encode: Encodes signals; by default here.
    """
    missing = [table for table in tables_of(build.passes) if not folder.is_committed(table, shard)]
    paired = pair_rows(build, shard)
    steps = cache(partial(steps_of, build, teacher, paired.indexes, paired.pairs, on_views))  # once for all passes
    tables = [
        capture_table(build, teacher, paired, folder.header(table, shard), on_views, encode, steps) for table in missing
    ]

    def write() -> BuiltShard:
        num_bytes = sum(folder.commit(*encoded()).size for encoded in tables)
        return BuiltShard(shard, num_bytes, len(paired.pairs))

    return write


def pair_rows(build: PreparedBuild, shard: int) -> PairedShard:
    """Return the samples of a shard: those made before the build began, those published, or else pair the rows here."""
    if build.paired is not None:
        return build.paired.shard(shard)
    if build.published is not None and (reader := build.published.reader("pairs", shard)) is not None:
        groups = [reader.read_indexed_pairs(group) for group in range(reader.layout.num_groups)]
        indexes = [index for found, _ in groups for index in found]
        pairs = [pair for _, found in groups for pair in found]
        return PairedShard(indexes, pairs, _report_of(build.published.statistics("pairs", shard)))
    indexes, paired = pair_range(build.corpus, build.pairer, build.plan.rows_of(shard))
    return PairedShard(indexes, paired.pairs, paired.report)


def encode_table(
    build: PreparedBuild,
    teacher: AnyTeacher | None,
    paired: PairedShard,
    header: ShardHeader,
    on_views: Callable[[int], None],
) -> tuple[EncodedShard, Statistics]:
    """Compute one table of a shard; nothing is written. Arguments as for `capture_table`."""
    return capture_table(build, teacher, paired, header, on_views)()


def capture_table(
    build: PreparedBuild,
    teacher: AnyTeacher | None,
    paired: PairedShard,
    header: ShardHeader,
    on_views: Callable[[int], None],
    encode: EncodeSignals | None = None,
    steps: FindSteps | None = None,
) -> Encode:
    """Capture one table of a shard; calling the result encodes it.

    Args:
        build: The checked build.
        teacher: With its weights loaded; the pairs need none.
        paired: The shard's samples.
        header: Which shard it is.
        on_views: As for `capture_shard`.
        encode: As for `capture_shard`.
        steps: As for `capture_records`; by default those of the paired rows.
    """
    rules, name = build.identity.shard_rules, header.table
    if name == "pairs":
        statistics = _pairing_statistics(paired.report)
        return lambda: (encode_pairs(header, paired.indexes, paired.pairs, rules), statistics)
    assert teacher is not None, "signals without a teacher"
    steps = steps or partial(steps_of, build, teacher, paired.indexes, paired.pairs, on_views)
    records = capture_records(build, teacher, paired.pairs, name, on_views, steps)
    encode = encode or SignalEncoder.of(build).encode
    return partial(encode, header, paired.indexes, records)


def capture_records(
    build: PreparedBuild,
    teacher: AnyTeacher,
    pairs: Sequence[SamplePair],
    name: PassName,
    on_views: Callable[[int], None],
    steps: FindSteps,
) -> list[list[ViewRecord]]:
    """Return the records of all views of each sample, with signals.

    Args:
        build: The checked build.
        teacher: With its weights loaded.
        pairs: The samples.
        name: The pass.
        on_views: As for `capture_shard`.
        steps: Called for views of trajectories.
    """
    left: list[list[UInt16s]] | None = None
    if build.views.source == "trajectory":
        taken = [build.take_views(pair, step_L) for pair, step_L in zip(pairs, steps(), strict=True)]
        views = [[view for view, _ in of_sample] for of_sample in taken]
        left = [[left_N for _, left_N in of_sample] for of_sample in taken]
    else:
        views = [build.draw_views(pair) for pair in pairs]
    if name == "compdemo":
        signals = compdemo_signals(teacher, pairs, views, build.views.seed, build.views.demo_ratio, on_views)
    else:
        signals = teacher.signals(pairs, views, on_views)
    if left is not None:
        signals = [
            [replace(signal, steps_to_reveal_N=left_N) for signal, left_N in zip(said, of_sample, strict=True)]
            for said, of_sample in zip(signals, left, strict=True)
        ]
    return [
        [ViewRecord(pair, view, signal) for view, signal in zip(of_sample, said, strict=True)]
        for pair, of_sample, said in zip(pairs, views, signals, strict=True)
    ]


def _pairing_statistics(report: PairingReport) -> Statistics:
    counts = asdict(report)
    dropped = counts.pop("dropped")
    return {**counts, **{f"dropped.{reason}": count for reason, count in dropped.items()}}


def _report_of(statistics: Statistics) -> PairingReport:
    """Invert `_pairing_statistics`."""
    dropped = {n.partition(".")[2]: int(count) for n, count in statistics.items() if n.startswith("dropped.")}
    names = [field.name for field in fields(PairingReport) if field.name != "dropped"]
    counts = {name: int(statistics.get(name, 0)) for name in names}
    return PairingReport(dropped=dropped, **counts)


def _signal_statistics(records_by_sample: list[list[ViewRecord]]) -> Statistics:
    records = [record for of_sample in records_by_sample for record in of_sample]
    signals = [record.signal for record in records if record.signal is not None]
    topks = [part for signal in signals for part in (signal.topk, signal.projected) if part is not None]
    splits = [signal.is_shown_first_N for signal in signals if signal.is_shown_first_N is not None]
    of_splits: Statistics = {
        "teacher_views": sum(2 if split.any() and not split.all() else 1 for split in splits),
        "shown_first_positions": sum(int(split.sum()) for split in splits),
    }
    return {
        "views": len(records),
        "masked_student_positions": sum(int(record.view.is_student_masked_L.sum()) for record in records),
        "masked_teacher_positions": sum(len(signal.truth_logprobs_N) for signal in signals),
        "top1_correct": sum(int(signal.is_top1_N.sum()) for signal in signals),
        "topk_rows": sum(len(topk.rows_R) for topk in topks),
        "topk_ids": sum(len(topk.ids_E) for topk in topks),
        **(of_splits if splits else {}),
    }
