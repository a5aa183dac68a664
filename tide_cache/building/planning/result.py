"""What a plan says of a build."""

from dataclasses import dataclass

from tide_cache.shards import PassName


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
        rows_counted: Rows that were paired; samples, what is dropped and coverage come from them.
        rows_sampled: Rows among them whose views were drawn.
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
        bytes_by_signal: By pass and signal; `views` are masks, names and footers.
        cache_bytes: Size of all shards.
        disk_bytes: With commit records and manifest.
        free_bytes: Free space where the cache goes; None for an object store.
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
        online: Comparison with distilling online.
        remarks: What became of the rows that were paired, and what would be stored twice.
    """

    num_rows: int
    rows_counted: int
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
    bytes_by_signal: dict[PassName, dict[str, int]]
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
    remarks: tuple[str, ...]
