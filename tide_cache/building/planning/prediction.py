"""The plan as a whole: measure a sample of a build, and multiply."""

import math
from statistics import mean

from tide_cache.building.budget import Budget
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.disk import free_bytes
from tide_cache.modeling.backbone import resolve_device
from tide_cache.progress import tell

from .forwards import time_decoding, time_forwards
from .result import CachePlan, OnlineCost
from .rows import draw_rows
from .signals import bytes_by_signal, repeats
from .tables import measure_tables
from .timing import timed

BUDGET_S = 60.0
SHARE_COUNTING = 0.25
"""Of the budget, for rows that are paired only to be counted."""


def plan_build(
    run: BuildRun,
    build: PreparedBuild,
    sample_rows: int = 64,
    workers: int = 1,
    epochs: int = 10,
    budget: Budget | None = None,
) -> CachePlan:
    """Measure a sample of a build, and scale up; nothing is written to the cache.

    Args:
        run: The run file.
        build: The same, checked; neither its pairs nor the hash of the weights are needed.
        sample_rows: Number of rows to measure.
        workers: Number of devices to predict the time for.
        epochs: Of a student run that would distil online.
        budget: For all of it; by default a minute from now on. However little is left, the teacher is loaded, one
            forward is timed and one sample captured of each pass.

    Raises:
        PairingError: A row of the sample cannot be used, or none became a sample; lists the reasons.
    """
    budget = budget or Budget(BUDGET_S)
    device = resolve_device(run.teacher.device)
    rows = draw_rows(run, build, sample_rows, budget.share(SHARE_COUNTING))
    for remark in rows.remarks:
        tell(remark)
    views, draw_s = timed(lambda: [build.draw_views(pair) for pair in rows.pairs])
    teacher, load_s = timed(lambda: load_teacher(run, build, device))
    timings = {}
    for place, name in enumerate(build.passes):
        share = budget.share(1 / (2 * len(build.passes) - place))
        timings[name] = time_forwards(build, teacher, rows.pairs, views, rows.kept, name, share)
    decode_s = time_decoding(build, teacher, rows.pairs, budget)
    num_samples = round(rows.kept * len(build.corpus))
    scale = num_samples / len(rows.pairs)
    num_masked = [sum(int(view.is_student_masked_L.sum()) for view in of_sample) for of_sample in views]
    tables, encode_s = measure_tables(build, teacher, rows.pairs, num_masked, rows.kept, scale, budget)
    columns: dict[str, dict[str, int]] = {table: measured.columns for table, measured in tables.items()}
    by_signal = {name: bytes_by_signal(columns[name]) for name in build.passes}
    for remark in (told := repeats(build, by_signal)):
        tell(remark)
    cache_bytes = sum(sum(of_table.values()) for of_table in columns.values())
    # A record is stored next to its shard, and again in the manifest.
    disk_bytes = cache_bytes + 2 * build.plan.num_shards * sum(measured.record_bytes for measured in tables.values())
    free = free_bytes(run.build.out)
    shard_share = build.plan.num_rows / len(build.plan.rows_of(0))
    teacher_s = sum(timing.seconds_per_token * timing.tokens_per_shard * shard_share for timing in timings.values())
    teacher_s += decode_s * num_samples
    other_s = rows.seconds_per_row * len(build.corpus) + draw_s * len(build.passes) * scale + encode_s
    most_shards = math.ceil(build.plan.num_shards / workers) / build.plan.num_shards
    first = timings[build.passes[0]]
    forwards = 2 if "compdemo" in build.passes else 1
    tokens_per_forward = (1 + build.capture.copies) * mean(len(pair.teacher_ids_M) for pair in rows.pairs)
    online_s = epochs * num_samples * forwards * tokens_per_forward * first.seconds_per_token
    return CachePlan(
        num_rows=len(build.corpus),
        rows_counted=rows.rows_counted,
        rows_sampled=rows.rows_measured,
        views_captured=sum(tables[name].num_samples for name in build.passes) * build.identity.stored_views,
        is_cut=rows.is_cut or any(of.is_cut for of in tables.values()) or any(of.is_cut for of in timings.values()),
        num_shards=build.plan.num_shards,
        num_samples=num_samples,
        dropped=1 - rows.kept,
        coverage=rows.report.covered_tokens / max(rows.report.supervised_tokens, 1),
        num_views=build.identity.stored_views,
        passes=build.passes,
        masked_positions=round(sum(num_masked) * scale),
        bytes_by_column=columns,
        bytes_by_signal=by_signal,
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
        remarks=(*rows.remarks, *told),
    )
