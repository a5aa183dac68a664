"""The tables of `eval-tasks`."""

from typing import Any

from .console import print_fields, print_table

DECODING = ["task", "model", "answers", "tokens/forward", "forwards/answer", "tokens/s", "prompts"]


def print_results(document: dict[str, Any]) -> None:
    """Print what `eval-tasks` found: scores, how parallel answers were decoded, and curves over thresholds."""
    student = document["results"]["student"]
    baseline = document["results"].get("baseline", {})
    print_fields(
        "Evaluation on tasks",
        [
            ("model", document["checkpoint"]),
            ("baseline", document["baseline"] or "none: the scores cannot be compared with anything"),
            (
                "questions",
                "all" if document["limit"] is None else f"the first {document['limit']} of each set: no score",
            ),
        ],
    )
    print_table(
        "Scores, in per cent, with standard errors",
        ["task", "figure", "questions", "baseline", "student", "difference"],
        [_row(name, entry, baseline.get(name)) for name, entry in student.items()],
        text_columns=range(2),
    )
    results = document["results"]
    rows = [
        _decoding_row(name, role, entry["decoding"])
        for name in student
        for role in results
        if (entry := results[role][name]).get("decoding")
    ]
    if rows:
        print_table("Decoding; the first step of a batch computes its prompts and is apart", DECODING, rows, range(2))
    for task, curve in document["curves"].items():
        print_table(
            f"{task}: accuracy under parallelism (AUP), of per cent and tokens per forward",
            ["model", "AUP", "tokens per forward: per cent"],
            [_curve_row(role, found) for role, found in curve["models"].items()],
            text_columns=[0, 2],
        )


def _decoding_row(name: str, role: str, counts: dict[str, Any]) -> list[str]:
    rates = [counts["tokens_per_forward"], counts["forwards_per_sequence"], counts["tokens_per_s"]]
    return [
        name,
        role,
        f"{counts['sequences']:,}",
        *("-" if rate is None else f"{rate:,.2f}" for rate in rates),
        f"{counts['prefill_s']:.1f} s",
    ]


def _curve_row(role: str, curve: dict[str, Any]) -> list[str]:
    points = sorted(curve["points"], key=lambda point: point["tokens_per_forward"])
    shown = ", ".join(f"{point['tokens_per_forward']:.2f}: {100 * point['accuracy']:.1f}" for point in points)
    return [role, "-" if curve["aup"] is None else f"{curve['aup']:.1f}", shown]


def _row(name: str, student: dict[str, Any], baseline: dict[str, Any] | None) -> list[str]:
    scores = [student["score"], baseline["score"] if baseline else None]
    difference = f"{100 * (scores[0] - scores[1]):+.2f}" if None not in scores else "-"
    return [
        name,
        student["metric"],
        f"{student['num_questions']:,}",
        _score_text(baseline) if baseline else "-",
        _score_text(student),
        difference,
    ]


def _score_text(entry: dict[str, Any]) -> str:
    if entry["score"] is None:
        return "-"
    error = "" if entry["stderr"] is None else f" ± {100 * entry['stderr']:.2f}"
    return f"{100 * entry['score']:.2f}{error}"
