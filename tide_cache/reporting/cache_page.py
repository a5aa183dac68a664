"""The page of a cache: what it is, what the teacher knew, how samples are cut, where the bytes go, and some views."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tide_cache.inspecting.inspection import Inspection, inspect
from tide_cache.inspecting.sampling import OnGroups, SampledSignals, TeacherAtTime
from tide_cache.inspecting.viewing import ViewDescription, describe_views, example_views
from tide_cache.locations import CachePath
from tide_cache.reporting.page import render
from tide_cache.reporting.plots import Captioned, Series, bar_chart, line_chart, row_chart
from tide_cache.wording import leaves, number, percent, shared_views, size

SECTIONS = {
    "knows": "What the teacher knows",
    "chunks": "Chunks and coverage",
    "bytes": "Bytes",
    "views": "Views",
    "identity": "Identity and plan",
}
MOST_COLUMNS = 12
MOST_CHUNKS = 60


@dataclass(frozen=True)
class CacheReport:
    """The figures of the page; `dataclasses.asdict` makes them JSON-ready."""

    inspection: Inspection
    views: tuple[ViewDescription, ...]
    has_text: bool


def gather_cache(
    cache: CachePath,
    tokenizer: str | None = None,
    teacher_tokenizer: str | None = None,
    views: Sequence[int] = (),
    on_groups: OnGroups | None = None,
) -> CacheReport:
    """Read the figures of the page: one pass over at most 64 row groups, and a few views.

    Args:
        cache: Folder of the cache.
        tokenizer: As for `describe_views`.
        teacher_tokenizer: As for `describe_views`.
        views: Numbers of the views to show; by default three views of one sample.
        on_groups: As for `inspect`.

    Raises:
        TideCacheError: The cache is incomplete or damaged, there is no such view, or a tokenizer is not the cache's.
    """
    shown = describe_views(cache, views or example_views(cache), tokenizer, teacher_tokenizer)
    return CacheReport(inspect(cache, on_groups), shown, tokenizer is not None)


def cache_page(report: CacheReport) -> str:
    """Return the page of a cache."""
    cache = report.inspection
    return render(
        "cache.html",
        f"Cache {cache.cache.name}",
        SECTIONS,
        cache=cache,
        knows=_knows(cache),
        knowledge=_knowledge(cache),
        by_time={
            name: [_time_row(entry) for entry in signals.by_time] for name, signals in cache.by_pass.items()
        }.items(),
        length_chart=_length_chart(cache),
        cover_chart=_cover_chart(cache),
        chunk_rows=_chunk_rows(cache),
        pairing_rows=_pairing_rows(cache),
        byte_chart=_byte_chart(cache),
        byte_rows=_byte_rows(cache),
        views=report.views,
        has_text=report.has_text,
        gap="" if report.has_text else " ",
        most_chunks=MOST_CHUNKS,
        identity=list(leaves(cache.identity)),
        plan=list(leaves(cache.plan)),
    )


def _ends(entries: Sequence[TeacherAtTime], figure: str) -> tuple[float, float] | None:
    known = [value for entry in entries if (value := getattr(entry, figure)) is not None]
    return (known[0], known[-1]) if known else None


def _knows(cache: Inspection) -> str:
    """Return in words what the first chart shows."""
    if cache.identity["teacher"].get("context") == "causal":
        return (
            "A causal teacher sees the true tokens before each one, so what it knows does not depend on t. Its one "
            f"stored view holds every supervised token{shared_views('causal', cache.identity['views']['num_views'])}."
        )
    ends = _ends(cache.sampled.by_time, "top1_accuracy")
    if ends is None:
        return "No masked position was read."
    low, high = ends
    return (
        f"Here the teacher's most likely token is the true one for {percent(low)} of masked tokens at the lowest t, "
        f"and for {percent(high)} at the highest."
    )


KNOWLEDGE = (
    (
        "knows",
        "Accuracy",
        {"top1_accuracy": "top-1 accuracy", "truth_probability": "p(true token)"},
        "Means over the masked teacher tokens of views in a tenth of t. Top-1 accuracy: the share whose most likely "
        "token is the true one. p(true token): the probability that the true one got.",
    ),
    (
        "sure",
        "Confidence, and whether it is earned",
        {"confidence": "confidence", "kept_accuracy": "accuracy there"},
        "At positions with kept ids alone: the probability of the most likely token, and how often it is the true one. "
        "Confidence above accuracy: the teacher is surer than it should be; below: less sure.",
    ),
    (
        "mass",
        "Mass that is kept",
        {"kept_mass": "kept ids", "candidate_mass": "candidate chunks"},
        "Share of the teacher's probability that the stored candidates hold; what is missing is one outcome, the rest. "
        "Where little is kept, objectives over candidates say little.",
    ),
)
"""Charts over t: name, title, figures with their labels, caption."""


def _knowledge(cache: Inspection) -> list[Captioned]:
    share = (0.0, 1.0)
    charts = []
    for chart, title, figures, caption in KNOWLEDGE:
        lines = []
        for index, (name, signals) in enumerate(cache.by_pass.items()):
            suffix = f", {name}" if cache.other_passes else ""
            lines += _lines(signals, figures, suffix, index if cache.other_passes else None)
        if lines:
            charts.append((line_chart(chart, title, lines, "diffusion time t", "share", share, share), caption))
    return charts


def _lines(signals: SampledSignals, figures: dict[str, str], suffix: str, dash: int | None) -> list[Series]:
    """Return a line for each figure that exists; where dashes mark passes, only colours distinguish figures."""
    x = [(entry.t_from + entry.t_to) / 2 for entry in signals.by_time]
    found = []
    for colour, (figure, label) in enumerate(figures.items()):
        y = [getattr(entry, figure) for entry in signals.by_time]
        if any(value is not None for value in y):
            found.append(Series(label + suffix, x, y, colour, colour if dash is None else dash))
    return found


def _time_row(entry: TeacherAtTime) -> list[str]:
    return [
        f"{entry.t_from:.1f} to {entry.t_to:.1f}",
        number(entry.num_views),
        number(entry.num_positions),
        percent(entry.top1_accuracy),
        number(entry.mean_nll),
        number(entry.truth_probability),
        number(entry.confidence),
        percent(entry.kept_accuracy),
        number(entry.kept_ids, 1),
        number(entry.kept_mass, 4),
        number(entry.candidate_mass, 4),
    ]


def _length_names(cache: Inspection) -> list[str]:
    most = len(cache.chunk_shapes.student_lengths)
    return [*map(str, range(1, most)), f"{most}+"]


def _length_chart(cache: Inspection) -> Captioned:
    shapes = cache.chunk_shapes
    sides = {"student tokens": shapes.student_lengths, "teacher tokens": shapes.teacher_lengths}
    groups = [(name, [count / max(sum(counts), 1) for count in counts]) for name, counts in sides.items()]
    names = _length_names(cache)
    chart = bar_chart("chunk-lengths", "Length of chunks", names, groups, "tokens of a chunk", "share of chunks")
    return chart, (
        "With one tokenizer on both sides nearly all chunks are of one token. Longer ones cost candidates: the "
        "teacher's probability of a chunk is the product over its tokens."
    )


def _cover_chart(cache: Inspection) -> Captioned:
    shapes = cache.chunk_shapes
    parts = {
        "one token to one": shapes.one_to_one_tokens,
        "longer chunks": shapes.longer_tokens,
        "outside chunks": shapes.uncovered_tokens,
    }
    total = max(sum(parts.values()), 1)
    rows = [(name, count / total, percent(count / total)) for name, count in parts.items()]
    chart = row_chart("chunk-cover", "Where supervised tokens are", rows, "share of supervised student tokens")
    return chart, "Objectives over single tokens speak at the first kind alone, those over chunks at the second too."


def _chunk_rows(cache: Inspection) -> list[list[str]]:
    shapes = cache.chunk_shapes
    both = zip(_length_names(cache), shapes.student_lengths, shapes.teacher_lengths, strict=True)
    return [[name, number(student), number(teacher)] for name, student, teacher in both]


def _pairing_rows(cache: Inspection) -> list[list[str]]:
    counts = [[name.replace("_", " "), number(count)] for name, count in cache.pairing.items()]
    return counts + [[f"dropped: {reason}", number(count)] for reason, count in cache.dropped.items()]


def _columns(cache: Inspection) -> list[tuple[str, str, int]]:
    every = [(table, name, count) for table, columns in cache.column_bytes.items() for name, count in columns.items()]
    return sorted(every, key=lambda entry: -entry[2])


def _byte_chart(cache: Inspection) -> Captioned:
    columns = _columns(cache)
    per_position = 1 / max(cache.masked_student_positions, 1)
    bars = [(f"{table} {name}", count) for table, name, count in columns[:MOST_COLUMNS]]
    if rest := columns[MOST_COLUMNS:]:
        bars.append((f"{len(rest)} others", sum(count for _, _, count in rest)))
    rows = [(label, count * per_position, size(count)) for label, count in bars]
    total = sum(count for _, _, count in columns)
    largest = (
        f"{columns[0][0]} {columns[0][1]}, {percent(columns[0][2] / max(total, 1))} of the bytes" if columns else "none"
    )
    chart = row_chart("columns", "Largest columns", rows, "bytes per masked student position")
    return chart, f"Compressed bytes of each column over all shards. The largest is {largest}."


def _byte_rows(cache: Inspection) -> list[list[Any]]:
    columns = _columns(cache)
    total, positions = max(sum(count for _, _, count in columns), 1), max(cache.masked_student_positions, 1)
    return [
        [table, name, size(count), percent(count / total), f"{count / positions:.2f}"] for table, name, count in columns
    ]
