"""How close `tide-cache plan` comes to the build that follows: the corpus and teacher of the `build` benchmark."""

import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.build import run_values
from benchmarks.options import Options
from tide_cache.building.driver import build_prepared
from tide_cache.building.planning import plan_build
from tide_cache.building.prepare import prepare_build
from tide_cache.config.build import BuildRun

SAMPLE_ROWS = 16
BATCH_TOKENS = 2048
"""Small forwards, so that a corpus of minutes has many of them."""

TEACHER = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}


def run(options: Options) -> dict[str, float]:
    """Plan and build, in turns; a ratio of 1 is a true prediction."""
    with tempfile.TemporaryDirectory() as folder:
        values = run_values(Path(folder), options.rows, TEACHER)
        values["build"]["batch_tokens"] = BATCH_TOKENS
        rounds = []
        for number in range(options.repeats):
            values["build"]["out"] = str(Path(folder) / f"cache-{number}")
            rounds.append(_round(BuildRun.model_validate(values)))
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


def _round(run: BuildRun) -> dict[str, float]:
    plan = plan_build(run, prepare_build(run, "unread", pairs_all=False), SAMPLE_ROWS)
    started_s = perf_counter()  # every row is paired before the build's own clock starts
    summary = build_prepared(run, prepare_build(run))
    built_s = perf_counter() - started_s
    return {
        "sample_rows": float(plan.rows_sampled),
        "planned_bytes": float(plan.cache_bytes),
        "built_bytes": float(summary.cache_bytes),
        "bytes_ratio": plan.cache_bytes / summary.cache_bytes,
        "masked_positions_ratio": plan.masked_positions / summary.masked_positions,
        "planned_s": plan.hours * 3600,
        "built_s": built_s,
        "time_ratio": plan.hours * 3600 / built_s,
        "spread": plan.spread,
        "break_even_runs": plan.online.break_even_runs,
    }
