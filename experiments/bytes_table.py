"""What a megabyte of cache gains: ids kept, views, and both, in one table."""

from typing import Any

from experiments.arms import BASELINE, STAGES
from experiments.rows import Row, find, rows_of
from experiments.stages import NUM_VIEWS, cache_name
from experiments.statistics import Interval, paired
from tide_cache.demo.design import Pipeline

READ_SHARE = {"shared": 0.5, "cross": 1.0}
"""Share of a capture that the objective reads. With the teacher's tokenizer `topk` and `chunks` were captured, in as
many bytes each, and `kl` reads the former."""


def bytes_table(results: dict[str, Any], pipeline: Pipeline) -> str:
    """Return a Markdown table of the arms that differ in what they keep, the most gained per megabyte first."""
    lines = ["| samples | arm | MB | gain, nats | gain per MB |", "|---|---|---|---|---|"]
    stages = [stage.name for stage in STAGES if stage.name.startswith(("signals", "views"))]
    found = [entry for name in stages for entry in _entries(results, name, pipeline)]
    for row, megabytes, gain in sorted(
        found, key=lambda entry: (-(entry[0].stage.samples or 0), -entry[2].mean / entry[1])
    ):
        width = "" if gain.half_width is None else f" ± {gain.half_width:.3f}"
        views = "" if row.stage.samples == 300 else ", 8 views" if row.arm.num_views == NUM_VIEWS else ""
        cells = f"{row.arm.full_name}{views} | {megabytes:.1f} | {gain.mean:.3f}{width} | {gain.mean / megabytes:.4f}"
        lines.append(f"| {row.stage.samples} | {cells} |")
    return "\n".join(lines)


def _entries(results: dict[str, Any], stage: str, pipeline: Pipeline) -> list[tuple[Row, float, Interval]]:
    """Return arms from a cache with its megabytes and the gain over cross-entropy."""
    rows = [row for row in rows_of(results, stage) if row.arm.pipeline == pipeline]
    baseline = find([*rows, *rows_of(results, STAGES[0].name)], BASELINE, pipeline)
    found = []
    for row in rows:
        if not row.arm.taught or row.arm.source != "cache" or baseline is None or row.arm.name.startswith("calm"):
            continue
        gain = paired(baseline.test(), row.test())
        capture = results["captures"].get(f"{cache_name(row.arm, row.stage.samples)}-{row.arm.signal_pass}")
        if gain is not None and capture is not None:
            megabytes = capture["bytes"] / 1e6 * READ_SHARE[pipeline] * row.arm.num_views / NUM_VIEWS
            found.append((row, megabytes, gain))
    return found
