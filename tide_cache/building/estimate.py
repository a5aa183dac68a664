"""The size of a build, estimated from some of its rows before anything is computed, and whether it fits on the disk."""

from dataclasses import dataclass

from tide_cache.arrays import evenly
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.shard import pair_rows
from tide_cache.corpus import Corpus, Row
from tide_cache.disk import free_bytes
from tide_cache.errors import WriteError
from tide_cache.locations import CachePath
from tide_cache.pairing import PairingReport
from tide_cache.records import SamplePair
from tide_cache.views.masking import active_chunks
from tide_cache.wording import size

ROWS_SAMPLED = 64
SHARDS_SAMPLED = 4
POSITION_BYTES = 12
"""Mask positions on both sides, log p(true) and the top-1 flag of a masked position, compressed."""
STEP_BYTES = 2
"""The steps until a masked token is revealed."""
KEPT_ID_BYTES = {"float16": 4, "float32": 6}
"""An id and its log-prob, compressed, by the rounding of log-probs."""
TOKEN_BYTES = 8
"""A student token, a teacher token and their chunk in the pairs table, compressed."""


@dataclass(frozen=True)
class BuildEstimate:
    """A rough estimate of a cache's size.

    Attributes:
        num_rows: Rows of the corpus.
        num_shards: Shards of each table.
        rows_sampled: Rows that were paired for the estimate.
        coverage: Share of their supervised tokens inside chunks.
        masked_positions: Masked student positions over all views.
        cache_bytes: At most about this: every position with `top_k` ids, however few hold `top_p`.
    """

    num_rows: int
    num_shards: int
    rows_sampled: int
    coverage: float
    masked_positions: int
    cache_bytes: int


def estimate_build(build: PreparedBuild) -> BuildEstimate:
    """Pair rows spread over the corpus, draw their views, and scale up.

    Args:
        build: A checked build.

    Raises:
        PairingError: A chat template cannot render one of the rows.
    """
    num_rows, pairs, report = _sample(build)
    signals, num_temperatures = build.capture.signals, len(build.capture.signals.temperatures)
    id_bytes = KEPT_ID_BYTES[build.identity.signals.logprob_dtype]
    kept_row_bytes = (signals.ids_per_row + signals.tail_samples) * id_bytes + 8 * num_temperatures
    num_masked = num_kept_rows = num_tokens = num_chunks = num_chunk_tokens = 0
    for pair in pairs:
        is_pair_C = pair.is_aligned_pair_C(build.capture.shared_vocab_size)
        student_size_C = pair.chunks_C4[:, 3] - pair.chunks_C4[:, 2]
        num_tokens += len(pair.student_ids_L)
        for view in build.draw_views(pair):
            is_active_C = active_chunks(pair, view)
            num_masked += int(view.is_student_masked_L.sum())
            of_chunks = int(student_size_C[is_active_C].sum())
            num_kept_rows += int((is_active_C & is_pair_C).sum()) if signals.has_topk else 0
            num_kept_rows += of_chunks if signals.has_projected else 0
            num_chunks += int(is_active_C.sum())
            num_chunk_tokens += of_chunks
    scale = len(build.corpus) / num_rows
    # A candidate is a log-prob and its tokens, each about half of an id with its log-prob.
    candidates_bytes = signals.chunk_k * (num_chunks + num_chunk_tokens) * id_bytes / 2
    candidates_bytes = candidates_bytes + 8 * num_temperatures * num_chunks if signals.has_chunks else 0
    position_bytes = POSITION_BYTES + (STEP_BYTES if build.views.source == "trajectory" else 0)
    pass_bytes = num_masked * position_bytes + num_kept_rows * kept_row_bytes + candidates_bytes
    sampled_bytes = num_tokens * TOKEN_BYTES + len(build.passes) * pass_bytes
    return BuildEstimate(
        num_rows=len(build.corpus),
        num_shards=build.plan.num_shards,
        rows_sampled=num_rows,
        coverage=report.covered_tokens / max(report.supervised_tokens, 1),
        masked_positions=round(num_masked * scale),
        cache_bytes=round(sampled_bytes * scale),
    )


def _sample(build: PreparedBuild) -> tuple[int, list[SamplePair], PairingReport]:
    """Pair some rows, or read published samples; return how many rows they stand for, the samples and a report."""
    if build.published is None:
        rows = spread_rows(build.corpus, ROWS_SAMPLED)
        paired = build.pairer.pair_many(rows)
        return len(rows), paired.pairs, paired.report
    shards = [pair_rows(build, shard) for shard in evenly(build.plan.num_shards, SHARDS_SAMPLED)]
    report = sum((shard.report for shard in shards), PairingReport())
    found = [pair for shard in shards for pair in shard.pairs]
    pairs = [found[index] for index in evenly(len(found), ROWS_SAMPLED)]
    num_rows = (report.samples + sum(report.dropped.values())) * len(pairs) / max(len(found), 1)
    return max(1, round(num_rows)), pairs, report


def spread_rows(corpus: Corpus[Row], count: int) -> list[Row]:
    """Take rows at even distances; see `evenly`.

    Args:
        corpus: The rows.
        count: How many; all if there are no more.
    """
    return [corpus[index] for index in evenly(len(corpus), count)]


def require_disk(build: PreparedBuild, out: CachePath, num_shards: int) -> None:
    """Refuse a build that may not fit on the disk.

    Args:
        build: A checked build.
        out: Folder of the cache.
        num_shards: Number of shards still to be written.

    Raises:
        WriteError: There is less free space than the estimate.
    """
    free = free_bytes(out)
    if free is None:
        return
    needed = estimate_build(build).cache_bytes * num_shards / build.plan.num_shards
    if needed > free:
        raise WriteError(
            f"{out}: found {size(free)} free, and {num_shards} shards are still to be written, at most about "
            f"{size(needed)}. Nothing was computed.\n"
            "Free space, give build.out a larger disk, or keep less (signals.top_k, views.num_views). `tide-cache "
            "plan` says more closely what is needed; --no-disk-check builds all the same, and whatever is committed "
            "before the disk is full stays."
        )
