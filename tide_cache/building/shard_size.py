"""How many samples a shard has if the run file does not say: as many as the teacher answers in minutes.

A shard that is not committed is lost when a build stops, so its size is the cost of an interruption. The
size is decided once, when a build is planned, and stored in `plan.json`, from which later runs take it.
It is not part of a cache's identity. docs/decisions/shard-size.md.
"""

from typing import Any

from tide_cache.config.build import BuildRun
from tide_cache.errors import CacheIncompleteError, RunFileError
from tide_cache.manifest.commit import MAX_RECORD_BYTES, most_record_bytes
from tide_cache.manifest.manifest import read_plan
from tide_cache.manifest.plan import MAX_SHARDS
from tide_cache.shards import ShardLayout

MOST = 512
"""About 64 MiB with the usual signals, views and lengths; larger files gain nothing."""
FEWEST = 8
FLOP_PER_SHARD = {"cuda": 6e16, "cpu": 6e13}
"""Five minutes at 200 TFLOP/s, and at 200 GFLOP/s: what a large GPU and a few cores were seen to keep up."""


def samples_per_shard(run: BuildRun, config: Any, device: str, num_rows: int) -> int:
    """Return the size of a build's shards: the run file's, else that of the build in its folder, else a new one.

    Args:
        run: The run file.
        config: Of the teacher.
        device: Where the teacher runs, `auto` resolved.
        num_rows: Rows of the corpus.
    """
    if run.build.samples_per_shard is not None:
        return run.build.samples_per_shard
    try:
        return read_plan(run.build.out).plan.samples_per_shard
    except CacheIncompleteError:
        is_asked = run.teacher.topk is None
        size = fitting(config, run.teacher.max_length * reads_per_sample(run), device) if is_asked else MOST
        while size * MAX_SHARDS < num_rows:
            size *= 2
        return size


def require_openable(num_rows: int, samples_per_shard: int, stored_views: int) -> None:
    """Refuse a cut whose finished cache no reader would accept.

    Args:
        num_rows: Rows of the corpus.
        samples_per_shard: Of the cut.
        stored_views: Views of each sample that shards hold.

    Raises:
        RunFileError: Too many shards, or a shard of too many row groups.
    """
    num_shards = -(-num_rows // samples_per_shard)
    if num_shards > MAX_SHARDS:
        raise RunFileError(
            f"build.samples_per_shard: found {samples_per_shard}, which cuts {num_rows} rows into {num_shards} shards; "
            f"a cache has at most {MAX_SHARDS}. Give at least {-(-num_rows // MAX_SHARDS)}, or leave it out. Nothing "
            "was computed."
        )
    row_groups = ShardLayout(min(samples_per_shard, num_rows), stored_views).num_row_groups
    if most_record_bytes(row_groups) > MAX_RECORD_BYTES:
        raise RunFileError(
            f"build.samples_per_shard: found {samples_per_shard}, which gives a shard up to {row_groups} row groups; "
            "its commit record would be larger than readers accept. Give a smaller number, or leave it out. Nothing "
            "was computed."
        )


def reads_per_sample(run: BuildRun) -> int:
    """Return how many times the teacher reads a sample of the longest length, over all views and passes.

    Under the block mask the views of a forward share one clean copy. Each view of `compdemo` takes two forwards, and
    each forward is repeated for chunks of several tokens up to `signals.chunk_passes` times.
    """
    forwards = sum({"plain": 1, "compdemo": 2}[name] for name in run.build.passes)
    forwards *= 1 + run.signals.chunk_passes
    views = 1 if run.teacher.context == "causal" else run.views.num_views
    clean = -(-views // run.build.views_per_forward) if run.teacher.context == "block" else 0
    return forwards * (views + clean)


def fitting(config: Any, tokens: int, device: str) -> int:
    """Return the power of two nearest to a shard of minutes, within `FEWEST` and `MOST`.

    Args:
        config: Of the teacher.
        tokens: That it reads for a sample.
        device: Where it runs.
    """
    budget = FLOP_PER_SHARD["cuda" if device.startswith("cuda") else "cpu"]
    wanted = budget / (2 * active_parameters(config) * tokens)
    size = FEWEST
    while size < MOST and size * 1.5 <= wanted:
        size *= 2
    return size


def active_parameters(config: Any) -> float:
    """Return about how many weights a token passes through, embedding and output head left out.

    Args:
        config: Of a model; experts that a token does not visit do not count.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    attention = 2 * hidden * width * (heads + groups)
    chosen = getattr(config, "num_experts_per_tok", None)
    if chosen:
        inner = config.moe_intermediate_size * (chosen + (getattr(config, "num_shared_experts", None) or 0))
    else:
        inner = config.intermediate_size
    return float(layers * (attention + 3 * hidden * inner))
