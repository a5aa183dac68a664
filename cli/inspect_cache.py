"""`tide-cache inspect`: what a cache holds, or one of its views as text."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import chatter_to_stderr, number, percent, print_fields, print_json, print_table, print_text, size
from .options import Json

if TYPE_CHECKING:
    from tide_cache.reporting.inspection import Inspection
    from tide_cache.reporting.viewing import ViewDescription


def inspect_cache(
    cache: Annotated[str, typer.Argument(metavar="CACHE", help="Folder or URL of a complete cache.")],
    view: Annotated[
        int | None,
        typer.Option(min=0, help="Show one view as text: 0 is the first view of the first sample.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Student tokenizer that turns the ids of --view into text.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show what a cache holds: identity, coverage, what the teacher knew, and where the bytes go."""
    with chatter_to_stderr():
        from tide_cache.locations import cache_path
        from tide_cache.reporting.inspection import Inspection, inspect
        from tide_cache.reporting.viewing import describe_view

        root = cache_path(cache)
        found = inspect(root) if view is None else describe_view(root, view, tokenizer)
    if json:
        print_json(asdict(found))
    elif isinstance(found, Inspection):
        _print_inspection(found)
    else:
        _print_view(found)


def _print_inspection(found: "Inspection") -> None:
    print_fields(f"Cache {found.cache_id}", [("folder", str(found.cache)), *_leaves(found.identity)])
    print_fields("Plan", _leaves(found.plan))
    print_fields("Samples", _sample_fields(found))
    print_fields("Teacher", _teacher_fields(found))
    read = f"from {number(found.sampled.num_views)} of {number(found.num_views)} views"
    print_table(
        f"Teacher by diffusion time, {read}",
        ["t", "views", "masked positions", "top-1 accuracy", "-log p(true)", "kept ids per row", "kept mass"],
        (
            (
                f"{entry.t_from:.1f}-{entry.t_to:.1f}",
                number(entry.num_views),
                number(entry.num_positions),
                percent(entry.top1_accuracy),
                number(entry.mean_nll),
                number(entry.kept_ids, 1),
                number(entry.kept_mass, 4),
            )
            for entry in found.sampled.by_time
        ),
    )
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
        num_text_columns=2,
    )


def _sample_fields(found: "Inspection") -> list[tuple[str, str]]:
    return [
        ("rows of the corpus", number(found.num_rows)),
        ("samples", number(found.num_samples)),
        *((f"dropped: {reason}", number(count)) for reason, count in found.dropped.items()),
        ("truncated", number(found.pairing.get("truncated", 0))),
        ("views", f"{number(found.num_views)}, {found.identity['views']['num_views']} of each sample"),
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
    print_fields(
        f"View {view.view} of sample {view.sample_id}",
        [
            ("t", f"{view.t:.4f}"),
            ("student tokens", f"{view.num_tokens}, {view.num_supervised} supervised, {view.num_masked} masked"),
            ("teacher tokens", f"{view.num_teacher_tokens}, {view.num_teacher_masked} masked"),
        ],
    )
    print_text(view.text + "\n")
    print_table(
        "Masked chunks",
        ["student tokens", "positions", "teacher log p", "top-1", "kept ids"],
        (
            (
                chunk.text,
                f"{chunk.student_start}-{chunk.student_end - 1}",
                number(chunk.teacher_logprob),
                "yes" if chunk.is_top1 else "no",
                number(chunk.kept_ids),
            )
            for chunk in view.chunks
        ),
    )


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give nested values under dotted names; hashes are shortened."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            text = str(value)
            yield f"{prefix}{name}", text[:16] if len(text) == 64 else text
