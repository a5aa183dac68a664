"""What a build will hold, guessed from its first rows before anything is paid."""

from dataclasses import dataclass

from tide_cache.building.prepare import PreparedBuild
from tide_cache.views import draw_view
from tide_cache.views.masking import active_chunks

ROWS_SAMPLED = 64
POSITION_BYTES = 12
"""Mask positions on both sides, log p(true) and the top-1 flag of a masked position, compressed."""
KEPT_ID_BYTES = {"float16": 4, "float32": 6}
"""An id and its log-prob, compressed, by the rounding of log-probs."""
TOKEN_BYTES = 8
"""A student token, a teacher token and their chunk in the pairs table, compressed."""


@dataclass(frozen=True)
class BuildEstimate:
    """A rough guess of a cache's size.

    Attributes:
        num_rows: Rows of the corpus.
        num_shards: Shards of each table.
        rows_sampled: Rows that were paired for the guess.
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
    """Pair the first rows, draw their views, and scale up.

    Args:
        build: A checked build.

    Raises:
        PairingError: A chat template cannot render one of the rows.
    """
    num_rows = len(build.corpus)
    rows = list(build.corpus.rows(0, ROWS_SAMPLED))
    paired = build.pairer.pair_many(rows)
    signals, num_temperatures = build.capture.signals, len(build.capture.signals.temperatures)
    kept_row_bytes = signals.top_k * KEPT_ID_BYTES[build.identity.signals.logprob_dtype] + 8 * num_temperatures
    num_masked = num_kept_rows = num_tokens = 0
    for pair in paired.pairs:
        is_pair_C = pair.is_aligned_pair_C(build.capture.shared_vocab_size)
        num_tokens += len(pair.student_ids_L)
        for number in range(build.views.num_views):
            view = draw_view(pair, number, build.views)
            num_masked += int(view.is_student_masked_L.sum())
            num_kept_rows += int((active_chunks(pair, view) & is_pair_C).sum()) if signals.top_k else 0
    scale = num_rows / len(rows)
    pass_bytes = num_masked * POSITION_BYTES + num_kept_rows * kept_row_bytes
    sampled_bytes = num_tokens * TOKEN_BYTES + len(build.passes) * pass_bytes
    return BuildEstimate(
        num_rows=num_rows,
        num_shards=build.plan.num_shards,
        rows_sampled=len(rows),
        coverage=paired.report.covered_tokens / max(paired.report.supervised_tokens, 1),
        masked_positions=round(num_masked * scale),
        cache_bytes=round(sampled_bytes * scale),
    )
