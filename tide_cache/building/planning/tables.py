"""The size of the cache: encode some samples with the real teacher, and scale each column by its content."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tide_cache.arrays import evenly
from tide_cache.building.budget import Budget, affordable_parts, spread_first
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.reveal import steps_of
from tide_cache.building.shard import capture_records
from tide_cache.manifest import CommitRecord
from tide_cache.progress import doing
from tide_cache.records import SamplePair, ViewRecord
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
from tide_cache.teacher.sorting import AnyTeacher

from .timing import timed

VIEWS_CAPTURED = 256
"""About how many views are captured of each pass for the bytes; whole samples."""
SHARE_CAPTURED = 0.25
"""Of a small build's samples: capturing all of them would cost what the build costs."""


@dataclass(frozen=True)
class Table:
    """Bytes of all shards of a table, and of one commit record; from how many samples, and whether more were wanted."""

    columns: dict[str, int]
    record_bytes: int
    num_samples: int
    is_cut: bool


def measure_tables(
    build: PreparedBuild,
    teacher: AnyTeacher,
    pairs: Sequence[SamplePair],
    num_masked: Sequence[int],
    kept: float,
    scale: float,
    budget: Budget,
) -> tuple[dict[TableName, Table], float]:
    """Encode samples as the build will, and scale each column; also return the seconds that encoding will take."""
    cache_id, rules = build.identity.cache_id, build.identity.shard_rules
    result: dict[TableName, Table] = {}
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
        whole, seconds = timed(lambda: _hashed(encode(slice(None))))
        ratio = sum(amounts) * scale / max(sum(amounts[i] for i in members), 1)
        total_s += seconds * ratio
        num_groups = _num_row_groups(build, kept, rules.num_views if table != "pairs" else 1)
        half = len(members) // 2
        halves = [encode(slice(half)), encode(slice(half, None))] if half else []
        result[table] = Table(
            _scaled_columns(whole, halves, encode(slice(0)), ratio, num_groups, build.plan.num_shards),
            len(CommitRecord.of(whole, dict.fromkeys(whole.column_bytes, whole.size)).model_dump_json()),
            len(members),
            is_cut,
        )

    everyone = evenly(len(pairs), SAMPLES_PER_GROUP)
    some = [pairs[i] for i in everyone]
    lengths = [len(pair.student_ids_L) + len(pair.teacher_ids_M) for pair in pairs]
    measure(
        "pairs", everyone, lengths,
        lambda part: encode_pairs(header("pairs"), range(len(some))[part], some[part], rules),
    )  # fmt: skip
    few = math.ceil(len(pairs) * scale * SHARE_CAPTURED)
    few = max(min(VIEWS_CAPTURED // rules.num_views, SAMPLES_PER_GROUP, few), 2)
    for place, name in enumerate(build.passes):
        wanted = spread_first(evenly(len(pairs), few))
        share = budget.share(1 / (len(build.passes) - place))
        members, records = _capture_some(build, teacher, pairs, name, wanted, share)

        def encode(part: slice, name: PassName = name, records: Any = records) -> EncodedShard:
            indexes = range(len(records))[part]
            return encode_signals(header(name), indexes, records[part], rules, build.identity.signals.logprob_dtype)

        measure(name, members, num_masked, encode, len(members) < len(wanted))
    return result, total_s


def _capture_some(
    build: PreparedBuild,
    teacher: AnyTeacher,
    pairs: Sequence[SamplePair],
    name: PassName,
    wanted: Sequence[int],
    budget: Budget,
) -> tuple[list[int], list[list[ViewRecord]]]:
    """Capture samples until enough are captured or the budget is used up; return which ones, and their records."""
    members: list[int] = []
    records: list[list[ViewRecord]] = []
    num_views = len(wanted) * build.identity.stored_views * (2 if name == "compdemo" else 1)
    with doing(f"Capturing a sample of the pass {name}", num_views, "views") as phase:
        for part in affordable_parts(wanted, budget):
            some = [pairs[i] for i in part]
            steps = partial(steps_of, build, teacher, None, some, phase.advance)
            records += capture_records(build, teacher, some, name, phase.advance, steps)
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


def _hashed(encoded: EncodedShard) -> EncodedShard:
    _ = encoded.sha256
    return encoded
