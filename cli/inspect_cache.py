"""`tide-cache inspect`: show what a cache holds, or one of its views as text."""

from collections.abc import Sequence
from dataclasses import asdict
from math import exp
from typing import TYPE_CHECKING, Annotated

import typer

from tide_cache.config.settings import PassName
from tide_cache.errors import RunFileError
from tide_cache.locations import cache_path
from tide_cache.places import require_cache
from tide_cache.wording import leaves, shared_views, sparkline, visible

from .console import (
    chatter_to_stderr,
    number,
    percent,
    print_fields,
    print_json,
    print_table,
    print_text,
    size,
    spark_bars,
)
from .options import Json
from .progress import ProgressReport

if TYPE_CHECKING:
    from tide_cache.inspecting.inspection import Inspection
    from tide_cache.inspecting.sampling import SampledSignals
    from tide_cache.inspecting.viewing import MaskedChunk, ViewDescription


_STEPS = {
    "decode": "steps of the teacher's decoding, with the steps until each token is revealed",
    "given": "steps that the corpus gives, with the steps until each token is revealed",
}


def inspect_cache(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="Folder or URL of a complete cache.")],
    view: Annotated[
        int | None,
        typer.Option(min=0, help="Show one view as text: 0 is the first view of the first sample.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Student tokenizer, to show the ids of --view as text.", show_default=False),
    ] = None,
    teacher_tokenizer: Annotated[
        str | None,
        typer.Option(help="Teacher tokenizer, for kept ids that the student does not have.", show_default=False),
    ] = None,
    signal_pass: Annotated[
        PassName | None, typer.Option("--pass", help="Pass to show with --view; by default the first in the cache.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what a cache holds: identity, coverage, what the teacher knew, and where the bytes go."""
    of_views = {"--tokenizer": tokenizer, "--teacher-tokenizer": teacher_tokenizer, "--pass": signal_pass}
    if view is None and (given := [name for name, value in of_views.items() if value is not None]):
        raise RunFileError(f"{', '.join(given)}: found no --view with it; add --view N, or leave it out")
    require_cache(cache_path(cache))
    with chatter_to_stderr():
        from tide_cache.inspecting.inspection import Inspection, inspect

        root = cache_path(cache)
        found: Inspection | ViewDescription
        if view is None:
            with ProgressReport("inspect", "row groups") as report:
                found = inspect(root, report.update)
        else:
            from tide_cache.inspecting.viewing import describe_view  # loads what tokenizers need

            found = describe_view(root, view, tokenizer, teacher_tokenizer, signal_pass)
    if json:
        print_json(asdict(found))
    elif isinstance(found, Inspection):
        _print_inspection(found)
    else:
        _print_view(found)


def _print_inspection(found: "Inspection") -> None:
    print_fields(f"Cache {found.cache_id}", [("folder", str(found.cache)), *leaves(found.identity)])
    print_fields("Plan", leaves(found.plan))
    if found.remarks:
        print_text("The build said of the corpus:\n" + "\n".join(f"  {remark}" for remark in found.remarks))
    print_fields("Samples", _sample_fields(found))
    print_fields(f"Teacher, pass {found.first_pass}", _teacher_fields(found))
    for name, signals in found.by_pass.items():
        _print_by_time(name, signals, found.num_views)
    _print_chunk_lengths(found)
    total = sum(sum(columns.values()) for columns in found.column_bytes.values())
    print_table(
        f"Bytes by column: {size(found.cache_bytes)} in all, "
        f"{number(found.bytes_per_position, 1)} B per masked position",
        ["table", "column", "bytes", "share", "per position"],
        (
            (table, name, size(count), percent(count / total), f"{count / max(found.masked_student_positions, 1):.2f}")
            for table, columns in found.column_bytes.items()
            for name, count in columns.items()
        ),
        text_columns=(0, 1),
    )


def _print_by_time(name: str, signals: "SampledSignals", num_views: int) -> None:
    by_time = signals.by_time
    read = f"{name}, from {number(signals.num_views)} of {number(num_views)} views"
    figures = {
        "top-1 accuracy": [entry.top1_accuracy for entry in by_time],
        "p(true token)": [entry.truth_probability for entry in by_time],
        "confidence": [entry.confidence for entry in by_time],
        "kept mass": [entry.kept_mass for entry in by_time],
        "candidate mass": [entry.candidate_mass for entry in by_time],
    }
    print_table(
        f"Over diffusion time t, {read}; a bar is a tenth of t, its height a share of 0 to 1",
        ["figure", "t: 0 to 1", "lowest t", "highest t"],
        (_spark_row(figure, values) for figure, values in figures.items() if any(v is not None for v in values)),
        text_columns=(0, 1),
    )
    print_table(
        f"Teacher by diffusion time, {read}",
        [
            *("t", "views", "positions", "top-1", "-log p(true)", "p(true)", "confidence", "kept ids", "kept mass"),
            "candidate mass",
        ],
        (
            (
                f"{entry.t_from:.1f}-{entry.t_to:.1f}",
                number(entry.num_views),
                number(entry.num_positions),
                percent(entry.top1_accuracy),
                number(entry.mean_nll),
                number(entry.truth_probability),
                number(entry.confidence),
                number(entry.kept_ids, 1),
                number(entry.kept_mass, 4),
                number(entry.candidate_mass, 4),
            )
            for entry in by_time
        ),
    )


def _spark_row(name: str, values: Sequence[float | None]) -> tuple[str, ...]:
    known = [value for value in values if value is not None]
    return name, sparkline(values, 0, 1, spark_bars()), percent(known[0]), percent(known[-1])


def _print_chunk_lengths(found: "Inspection") -> None:
    shapes = found.chunk_shapes
    sides = {"student": shapes.student_lengths, "teacher": shapes.teacher_lengths}
    if not any(shapes.student_lengths):
        return
    names = [str(length) for length in range(1, len(shapes.student_lengths))]
    print_table(
        f"Tokens of a chunk, from {number(shapes.num_samples)} of {number(found.num_samples)} samples",
        ["side", "1 to more", *names, f"{len(shapes.student_lengths)}+"],
        (
            (side, sparkline(lengths, 0, max(lengths), spark_bars()), *map(number, lengths))
            for side, lengths in sides.items()
        ),
        text_columns=(0, 1),
    )


def _sample_fields(found: "Inspection") -> list[tuple[str, str]]:
    shared = shared_views(found.identity["teacher"].get("context"), found.identity["views"]["num_views"])
    is_stepwise = found.identity["views"].get("source") == "trajectory"
    return [
        ("rows of the corpus", number(found.num_rows)),
        ("samples", number(found.num_samples)),
        *((f"dropped: {reason}", number(count)) for reason, count in found.dropped.items()),
        ("truncated", number(found.pairing.get("truncated", 0))),
        ("views", f"{number(found.num_views)}, {found.num_views // max(found.num_samples, 1)} of each sample{shared}"),
        *([("masks", _STEPS[found.identity["views"].get("trajectory", "decode")])] if is_stepwise else []),
        ("supervised tokens", number(found.pairing.get("supervised_tokens", 0))),
        ("coverage", f"{percent(found.coverage)} of supervised tokens are in chunks"),
        ("chunks", number(found.pairing.get("chunks", 0))),
        ("one token to one token", number(found.pairing.get("pairs_one_to_one", 0))),
        ("spans dropped", number(found.pairing.get("spans_dropped", 0))),
    ]


def _teacher_fields(found: "Inspection") -> list[tuple[str, str]]:
    return [
        ("masked student positions", number(found.masked_student_positions)),
        ("masked teacher positions", number(found.masked_teacher_positions)),
        ("top-1 accuracy", percent(found.top1_accuracy)),
        ("rows with kept ids", number(found.topk_rows)),
        ("kept ids per row", number(found.kept_ids_per_row, 2)),
        ("kept mass", f"{number(found.sampled.kept_mass, 4)} (5th percentile {number(found.sampled.kept_mass_p5, 4)})"),
    ]


def _print_view(view: "ViewDescription") -> None:
    from tide_cache.inspecting.viewing import worth_showing

    print_fields(
        f"View {view.view} of sample {view.sample_id} (--view {view.number})",
        [
            ("pass", view.signal_pass),
            ("t", f"{view.t:.4f}"),
            ("student tokens", f"{view.num_tokens}, {view.num_supervised} supervised, {view.num_masked} masked"),
            ("teacher tokens", f"{view.num_teacher_tokens}, {view.num_teacher_masked} masked"),
        ],
    )
    print_text(view.text + "\n")
    print_table(
        "Masked chunks, and what the teacher would write there",
        ["true text", "tokens", "p(true)", "top-1", "kept ids", "kept mass", "most likely, by the teacher"],
        (
            (
                visible(chunk.text),
                _span(chunk),
                f"{exp(chunk.teacher_logprob):.3f}",
                "yes" if chunk.is_top1 else "no",
                number(chunk.kept_ids),
                number(chunk.candidate_mass),
                "  ".join(f"{visible(c.text)} {exp(c.logprob):.2f}" for c in worth_showing(chunk.candidates)) or "-",
            )
            for chunk in view.chunks
        ),
        text_columns=(0, 6),
    )


def _span(chunk: "MaskedChunk") -> str:
    last = chunk.student_end - 1
    return str(last) if last == chunk.student_start else f"{chunk.student_start}-{last}"
