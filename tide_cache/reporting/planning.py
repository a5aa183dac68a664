"""What a build will take, measured on a sample: bytes, teacher time, and when it pays.

Some rows, spread over the corpus, become samples. Their views are counted exactly. Some samples go through the real
teacher and the real encoder, which gives bytes per position and column. A few forwards of the very shape that the
build will use are timed, which gives seconds per token. The rest is multiplication. What does not
fit into a budget of seconds is left out of the sample, which makes the answer coarser, not late.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from tide_cache.building.prepare import PreparedBuild
from tide_cache.building.shard import capture_records
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.disk import free_bytes
from tide_cache.errors import PairingError, fault_list
from tide_cache.manifest import CommitRecord
from tide_cache.modeling.backbone import resolve_device
from tide_cache.pairing import PairedRows
from tide_cache.progress import doing
from tide_cache.records import MaskedView, SamplePair, ViewRecord
from tide_cache.reporting.budget import Budget, Clock, affordable_parts, spread_first
from tide_cache.reporting.estimate import spread_rows
from tide_cache.shards import (
    EncodedShard,
    PassName,
    ShardHeader,
    ShardLayout,
    TableName,
    encode_pairs,
    encode_signals,
)
from tide_cache.shards.layout import SAMPLES_PER_GROUP
from tide_cache.teacher.batches import ViewGroup
from tide_cache.teacher.capture import Teacher
from tide_cache.teacher.compdemo import demo_parts
from tide_cache.views import draw_view

VIEWS_CAPTURED = 256
"""About how many views are captured of each pass for the bytes; whole samples."""
BATCHES_TIMED = 8
SHARE_MEASURED = 0.25
"""Of a small build's samples and forwards: measuring all of it would cost what it costs."""
BUDGET_S = 60.0

Views = Sequence[Sequence[MaskedView]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class OnlineCost:
    """What distilling online costs in teacher time, and when the cache has paid for itself.

    One run shows the teacher `epochs * num_samples * forwards_per_step` views, one at a time, with
    `tokens_per_forward` tokens each. `break_even_runs` is the time of the capture over the time of one run.

    Attributes:
        epochs: Of one student run.
        forwards_per_step: 1, or 2 with the compdemo pass.
        tokens_per_forward: Mean teacher tokens of a sample, twice in the block context, for the clean copy.
        hours_per_run: Teacher hours of one student run, on one device.
        break_even_runs: Student runs after which the cache is cheaper.
    """

    epochs: int
    forwards_per_step: int
    tokens_per_forward: float
    hours_per_run: float
    break_even_runs: float


@dataclass(frozen=True)
class CachePlan:
    """What a build will take.

    Attributes:
        num_rows: Rows of the corpus.
        rows_sampled: Rows that were paired.
        views_captured: Views of all passes that the bytes of signals come from.
        is_cut: Whether the budget ended the sample.
        num_shards: Shards of each table.
        num_samples: Rows that become samples.
        dropped: Share of rows that do not.
        coverage: Share of supervised tokens inside chunks.
        num_views: Of each sample.
        passes: What is captured.
        masked_positions: Masked student positions over all views.
        bytes_by_column: By table and column; `footer` is what Parquet adds.
        cache_bytes: Of all shards.
        disk_bytes: With commit records and manifest.
        free_bytes: Found where the cache goes; None for an object store.
        fits: Whether that is enough; None for an object store.
        device: Where the batches were timed.
        batches_timed: How many.
        tokens_per_second: Teacher tokens, padding included.
        spread: Standard deviation over the timed batches, of the time per token, relative to its mean.
        load_s: Loading the teacher.
        teacher_hours: Forwards, head and top-k, on one device.
        other_hours: Pairing, drawing, encoding and writing, on one device.
        workers: Devices for `hours_on_workers`.
        hours: Whole build on one device.
        hours_on_workers: On `workers` devices like this one; the one with the most shards decides.
        online: Against distilling online.
    """

    num_rows: int
    rows_sampled: int
    views_captured: int
    is_cut: bool
    num_shards: int
    num_samples: int
    dropped: float
    coverage: float
    num_views: int
    passes: tuple[PassName, ...]
    masked_positions: int
    bytes_by_column: dict[str, dict[str, int]]
    cache_bytes: int
    disk_bytes: int
    free_bytes: int | None
    fits: bool | None
    device: str
    batches_timed: int
    tokens_per_second: float
    spread: float
    load_s: float
    teacher_hours: float
    other_hours: float
    workers: int
    hours: float
    hours_on_workers: float
    online: OnlineCost


@dataclass(frozen=True)
class _Table:
    """Bytes of all shards of a table, and of one commit record; from how many samples, and whether more were wanted."""

    columns: dict[str, int]
    record_bytes: int
    num_samples: int
    is_cut: bool


@dataclass(frozen=True)
class _Timing:
    """Forwards of the build, from those that were timed."""

    seconds_per_token: float
    spread: float
    num_batches: int
    tokens_per_shard: float
    is_cut: bool


def plan_build(
    run: BuildRun,
    build: PreparedBuild,
    sample_rows: int = 64,
    workers: int = 1,
    epochs: int = 10,
    budget_s: float = BUDGET_S,
    clock: Clock = perf_counter,
) -> CachePlan:
    """Measure a sample of a build, and scale up; nothing is written to the cache.

    Args:
        run: The run file.
        build: The same, checked.
        sample_rows: Rows to pair.
        workers: Devices to foresee the time for.
        epochs: Of a student run that would distil online.
        budget_s: Seconds for forwards and encoding, half of them for each; at least one forward is timed and one
            sample captured of each pass.
        clock: Gives the seconds of the budget.

    Raises:
        PairingError: No row of the sample became a sample; lists the reasons.
    """
    rows = spread_rows(build.corpus, sample_rows)
    paired, pair_s = _timed(lambda: build.pairer.pair_many(rows))
    if not paired.pairs:
        reasons = [f"{reason}: {count}" for reason, count in paired.report.dropped.items()]
        raise PairingError(fault_list(f"None of {len(rows)} rows became a sample:", reasons, "Raise max_length."))
    numbers = range(build.views.num_views)
    views, draw_s = _timed(lambda: [[draw_view(pair, n, build.views) for n in numbers] for pair in paired.pairs])
    device = resolve_device(run.teacher.device)
    teacher, load_s = _timed(lambda: load_teacher(run, build, device))
    kept = len(paired.pairs) / len(rows)
    budget, timings = Budget(budget_s, clock), {}
    for place, name in enumerate(build.passes):
        share = budget.share(1 / (2 * len(build.passes) - place))
        timings[name] = _time_forwards(build, teacher, paired.pairs, views, kept, name, share)
    scale = len(build.corpus) / len(rows)
    num_samples = round(len(paired.pairs) * scale)
    num_masked = [sum(int(view.is_student_masked_L.sum()) for view in of_sample) for of_sample in views]
    tables, encode_s = _measure_tables(build, teacher, paired, num_masked, kept, scale, budget)
    columns: dict[str, dict[str, int]] = {table: measured.columns for table, measured in tables.items()}
    cache_bytes = sum(sum(of_table.values()) for of_table in columns.values())
    # A record lies beside its shard, and again in the manifest.
    disk_bytes = cache_bytes + 2 * build.plan.num_shards * sum(measured.record_bytes for measured in tables.values())
    free = free_bytes(run.build.out)
    shard_share = build.plan.num_rows / len(build.plan.rows_of(0))
    teacher_s = sum(timing.seconds_per_token * timing.tokens_per_shard * shard_share for timing in timings.values())
    other_s = (pair_s + draw_s * len(build.passes)) * scale + encode_s
    most_shards = math.ceil(build.plan.num_shards / workers) / build.plan.num_shards
    first = timings[build.passes[0]]
    forwards = 2 if "compdemo" in build.passes else 1
    tokens_per_forward = (1 + build.capture.copies) * mean(len(pair.teacher_ids_M) for pair in paired.pairs)
    online_s = epochs * num_samples * forwards * tokens_per_forward * first.seconds_per_token
    return CachePlan(
        num_rows=len(build.corpus),
        rows_sampled=len(rows),
        views_captured=sum(tables[name].num_samples for name in build.passes) * build.views.num_views,
        is_cut=any(of.is_cut for of in tables.values()) or any(of.is_cut for of in timings.values()),
        num_shards=build.plan.num_shards,
        num_samples=num_samples,
        dropped=1 - kept,
        coverage=paired.report.covered_tokens / max(paired.report.supervised_tokens, 1),
        num_views=build.views.num_views,
        passes=build.passes,
        masked_positions=round(sum(num_masked) * scale),
        bytes_by_column=columns,
        cache_bytes=cache_bytes,
        disk_bytes=disk_bytes,
        free_bytes=free,
        fits=None if free is None else disk_bytes <= free,
        device=device,
        batches_timed=sum(timing.num_batches for timing in timings.values()),
        tokens_per_second=1 / first.seconds_per_token,
        spread=max(timing.spread for timing in timings.values()),
        load_s=load_s,
        teacher_hours=teacher_s / 3600,
        other_hours=other_s / 3600,
        workers=workers,
        hours=(load_s + teacher_s + other_s) / 3600,
        hours_on_workers=(load_s + (teacher_s + other_s) * most_shards) / 3600,
        online=OnlineCost(epochs, forwards, tokens_per_forward, online_s / 3600, teacher_s / online_s),
    )


def _time_forwards(
    build: PreparedBuild,
    teacher: Teacher,
    pairs: Sequence[SamplePair],
    views: Views,
    kept: float,
    name: PassName,
    budget: Budget,
) -> _Timing:
    """Time forwards spread over those of a full shard, which the sample repeated stands for."""
    shown = demo_parts(pairs, views, build.views.seed, build.demo_ratio) if name == "compdemo" else views
    num_rows = len(build.plan.rows_of(0))
    chosen = [index % len(pairs) for index in range(max(1, round(num_rows * kept)))]
    batches = build.capture.batches([len(pairs[i].teacher_ids_M) for i in chosen], [len(shown[i]) for i in chosen])
    wanted = min(BATCHES_TIMED, max(2, round(len(batches) * build.plan.num_shards * SHARE_MEASURED)))
    picked = spread_first(_spread(len(batches), wanted))

    def show(batch: Sequence[ViewGroup]) -> None:
        members = [chosen[group.sample] for group in batch]
        teacher.signals(
            [pairs[i] for i in members],
            [[shown[i][v] for v in group.views] for i, group in zip(members, batch, strict=True)],
        )

    def num_tokens(batch: Sequence[ViewGroup]) -> int:
        longest = max(len(pairs[chosen[group.sample]].teacher_ids_M) for group in batch)
        return len(batch) * longest * (len(batch[0].views) + build.capture.copies)

    with doing(f"Timing forwards of the pass {name}", len(picked) + 1, "forwards") as phase:
        first_s = _timed(lambda: show(batches[picked[0]]))[1]  # it also allocates and tunes
        phase.advance()
        seconds: list[float] = []
        for index in picked:
            if budget.left_s() <= 0:
                break
            seconds.append(_timed(lambda batch=batches[index]: show(batch))[1])  # type: ignore[misc]
            phase.advance()
    is_cut = len(seconds) < len(picked)
    seconds = seconds or [first_s]
    tokens = [num_tokens(batches[index]) for index in picked[: len(seconds)]]
    rates = [second / token for second, token in zip(seconds, tokens, strict=True)]
    return _Timing(
        seconds_per_token=sum(seconds) / sum(tokens),
        spread=stdev(rates) / mean(rates) if len(rates) > 1 else 0.0,
        num_batches=len(rates),
        tokens_per_shard=sum(map(num_tokens, batches)),
        is_cut=is_cut,
    )


def _measure_tables(
    build: PreparedBuild,
    teacher: Teacher,
    paired: PairedRows,
    num_masked: Sequence[int],
    kept: float,
    scale: float,
    budget: Budget,
) -> tuple[dict[TableName, _Table], float]:
    """Encode samples as the build will, and scale each column; also gives the seconds that encoding will take."""
    cache_id, rules = build.identity.cache_id, build.identity.shard_rules
    result: dict[TableName, _Table] = {}
    total_s = 0.0

    def header(table: TableName) -> ShardHeader:
        return ShardHeader(cache_id, build.plan.plan_hash(cache_id), table, 0)

    def measure(
        table: TableName,
        members: Sequence[int],
        amounts: Sequence[int],
        encode: Callable[[slice], EncodedShard],
        is_cut: bool = False,
    ) -> None:
        nonlocal total_s
        whole, seconds = _timed(lambda: _hashed(encode(slice(None))))
        ratio = sum(amounts) * scale / max(sum(amounts[i] for i in members), 1)
        total_s += seconds * ratio
        num_groups = _num_row_groups(build, kept, rules.num_views if table != "pairs" else 1)
        half = len(members) // 2
        halves = [encode(slice(half)), encode(slice(half, None))] if half else []
        result[table] = _Table(
            _scaled_columns(whole, halves, encode(slice(0)), ratio, num_groups, build.plan.num_shards),
            len(CommitRecord.of(whole, dict.fromkeys(whole.column_bytes, whole.size)).model_dump_json()),
            len(members),
            is_cut,
        )

    everyone = _spread(len(paired.pairs), SAMPLES_PER_GROUP)
    some = [paired.pairs[i] for i in everyone]
    lengths = [len(pair.student_ids_L) + len(pair.teacher_ids_M) for pair in paired.pairs]
    measure(
        "pairs", everyone, lengths,
        lambda part: encode_pairs(header("pairs"), range(len(some))[part], some[part], rules),
    )  # fmt: skip
    few = math.ceil(len(paired.pairs) * scale * SHARE_MEASURED)
    few = max(min(VIEWS_CAPTURED // rules.num_views, SAMPLES_PER_GROUP, few), 2)
    for place, name in enumerate(build.passes):
        wanted = spread_first(_spread(len(paired.pairs), few))
        share = budget.share(1 / (len(build.passes) - place))
        members, records = _capture_some(build, teacher, paired, name, wanted, share)

        def encode(part: slice, name: PassName = name, records: Any = records) -> EncodedShard:
            indexes = range(len(records[0]))[part]
            dtype = build.identity.signals.logprob_dtype
            return encode_signals(header(name), indexes, [of_view[part] for of_view in records], rules, dtype)

        measure(name, members, num_masked, encode, len(members) < len(wanted))
    return result, total_s


def _capture_some(
    build: PreparedBuild,
    teacher: Teacher,
    paired: PairedRows,
    name: PassName,
    wanted: Sequence[int],
    budget: Budget,
) -> tuple[list[int], list[list[ViewRecord]]]:
    """Capture samples until all that are wanted are there, or the budget is used up; gives which, and their records."""
    members: list[int] = []
    records: list[list[ViewRecord]] = [[] for _ in range(build.views.num_views)]
    num_views = len(wanted) * build.views.num_views * (2 if name == "compdemo" else 1)
    with doing(f"Capturing a sample of the pass {name}", num_views, "views") as phase:
        for part in affordable_parts(wanted, budget):
            chosen = PairedRows([paired.pairs[i] for i in part], [], paired.report)
            for of_view, more in zip(
                records, capture_records(build, teacher, chosen, name, phase.advance), strict=True
            ):
                of_view += more
            members += part
    return members, records


def _scaled_columns(
    whole: EncodedShard,
    halves: Sequence[EncodedShard],
    empty: EncodedShard,
    ratio: float,
    num_groups: int,
    num_shards: int,
) -> dict[str, int]:
    """Scale columns by what they hold, and what every row group and every shard adds by their numbers.

    The same samples in twice as many row groups tell what a row group adds to a column; a shard without samples tells
    what a shard adds.
    """
    groups, result = len(whole.row_groups), {}
    for name, size in whole.column_bytes.items():
        added = (sum(half.column_bytes[name] for half in halves) - size) / groups if halves else 0.0
        per_group = min(max(added, 0.0), size / groups)
        result[name] = round((size - per_group * groups) * ratio + per_group * num_groups)
    footer = (whole.size - sum(whole.column_bytes.values()) - empty.size) / groups
    return {**result, "footer": round(empty.size * num_shards + footer * num_groups)}


def _num_row_groups(build: PreparedBuild, kept: float, num_views: int) -> int:
    shards = (len(build.plan.rows_of(shard)) for shard in range(build.plan.num_shards))
    return sum(ShardLayout(round(num_rows * kept), num_views).num_row_groups for num_rows in shards)


def _spread(count: int, wanted: int) -> list[int]:
    return list(np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int)).tolist())


def _hashed(encoded: EncodedShard) -> EncodedShard:
    _ = encoded.sha256
    return encoded


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started_s = perf_counter()
    result = work()
    return result, perf_counter() - started_s
