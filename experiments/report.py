"""The results: one JSON file with all figures, tables in docs/experiments.md, and plots next to it."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.arms import BASELINE, CE_UNWEIGHTED, SHARE_STAGES, STAGES
from experiments.bytes_table import bytes_table
from experiments.rows import Row, find, rows_of, rows_under
from experiments.shares import share_figures, share_table
from experiments.stages import Experiment
from experiments.statistics import Interval, interval, paired
from experiments.trials import grid_trials
from tide_cache.demo.design import TIMES, Pipeline

COLOURS = {"cross": "#b4472b", "shared": "#1f5fa8"}
TITLES = {"cross": "another tokenizer", "shared": "the teacher's tokenizer"}


def write_results(experiment: Experiment, file: Path) -> None:
    """Collect every measured student, the teacher and what captures took, in one file."""
    root = experiment.root
    measured = sorted((root / "students").glob("**/measured.json"))
    teacher = experiment.teacher / "measured.json"
    if not teacher.exists():
        teacher.write_text(json.dumps(experiment.measure(experiment.teacher / "model", "shared")), encoding="utf-8")
    content = {
        "size": asdict(experiment.size),
        "teacher": json.loads(teacher.read_text(encoding="utf-8")),
        "captures": {path.stem: _read(path) for path in sorted((root / "caches").glob("*.json"))},
        "students": {path.parent.relative_to(root / "students").as_posix(): _read(path) for path in measured},
    }
    if shares := share_figures(content):
        content["shares"] = shares
    content["rows"] = _taken_out(content["students"].values())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_one_line_each(content), encoding="utf-8")


def _one_line_each(content: dict[str, dict[str, Any]]) -> str:
    """Write JSON with a line for each student."""
    parts = []
    for name, entries in content.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
        parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_results(file: Path) -> dict[str, Any]:
    """Read what `write_results` wrote."""
    content = _read(file)
    for measured in content["students"].values():
        if "rows" in measured["test"]:
            measured["test"]["rows"] |= content["rows"][str(measured["test"]["rows"].pop("of"))]
    return content


def _taken_out(students: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Take out of the sums by row what all students of a tokenizer have in common, and round the rest, in place.

    Returns:
        What they have in common, by a number that each student's sums get as `of`.
    """
    found: list[dict[str, Any]] = []
    for rows in (measured["test"]["rows"] for measured in students if "rows" in measured["test"]):
        common = {name: values for name, values in rows.items() if name != "nll"}
        if common not in found:
            found.append(common)
        nll = [[round(value, 2) for value in of_row] for of_row in rows["nll"]]  # of some hundred nats
        rows.clear()
        rows |= {"of": found.index(common), "nll": nll}
    return {str(number): common for number, common in enumerate(found)}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def arm_table(rows: list[Row], pipeline: Pipeline, baselines: list[Row]) -> str:
    """Return a table of a pipeline's arms: chosen value, NLL, paired differences, accuracy and right numbers."""
    rows = [row for row in rows if row.arm.pipeline == pipeline]
    controls = {row.arm.name: find(baselines, f"{row.arm.name}, p = 1", pipeline) for row in rows}
    against = {f"minus {BASELINE}": dict.fromkeys(controls, find(baselines, BASELINE, pipeline))}
    if any(controls.values()):
        against["minus its p = 1"] = controls
    head = ["arm", "chosen", "seeds", "test NLL", *against, "token accuracy", "exact match"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        others = [of[row.arm.name] for of in against.values()]
        cells = [
            row.arm.full_name,
            _chosen(row),
            str(len(row.students)),
            str(interval(list(row.test().values()))),
            *("" if other in (None, row) else difference(row.test(), other.test()) for other in others),
            *(f"{interval(list(row.test(name).values())).mean:.1%}" for name in ("accuracy", "exact_match")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _chosen(row: Row) -> str:
    value = f"{row.value:g}" if row.arm.tunes == "weight" else f"{row.value:.0%} of the steps"
    if len(row.arm.grid) == 1:
        return f"{value} (fixed)"
    return value if row.is_tuned else f"{value} (grid not finished)"


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> str:
    """Write a paired difference, in bold where its interval leaves out zero."""
    found = paired(values, baseline)
    if found is None:
        return ""
    text = f"{found.mean:+.3f}" + ("" if found.half_width is None else f" ± {found.half_width:.3f}")
    return f"**{text}**" if found.excludes_zero else text


def time_table(rows: list[Row], pipeline: Pipeline) -> str:
    """Return a Markdown table of NLL by t, mean over seeds."""
    lines = ["| arm | " + " | ".join(f"t = {t:g}" for t in TIMES) + " |", "|---" * (len(TIMES) + 1) + "|"]
    for row in (row for row in rows if row.arm.pipeline == pipeline):
        means = [interval(list(row.test_at(place).values())).mean for place in range(len(TIMES))]
        lines.append(f"| {row.arm.name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines)


def cost_table(results: dict[str, Any]) -> str:
    """Return a Markdown table of CPU seconds: of captures, and of steps of one view with and without the teacher."""
    lines = ["| capture | CPU s | views | ms per view | MB |", "|---|---|---|---|---|"]
    for name, found in results["captures"].items():
        views = found["samples"] * found["views"]
        cells = f"{found['cpu_s']:.0f} | {views} | {1000 * found['cpu_s'] / views:.1f} | {found['bytes'] / 1e6:.1f}"
        lines.append(f"| {name} | {cells} |")
    lines += ["", "| student | runs | CPU ms per step |", "|---|---|---|"]
    steps = results["size"]["student_steps"]
    for arm in ("cross-ce--unweighted", "shared-kl", "shared-kl--fresh-masks", "cross-chunk-kl",
                "cross-chunk-kl--fresh-masks"):  # fmt: skip
        found = [
            measured["cpu_s"]["train"] / steps
            for key, measured in results["students"].items()
            if key.startswith(f"100/{arm}/") and "/steps-0" not in key
        ]
        if found:
            lines.append(f"| {arm} | {len(found)} | {1000 * sum(found) / len(found):.0f} |")
    return "\n".join(lines)


def teacher_table(results: dict[str, Any]) -> str:
    """Return a Markdown table of the teacher on the test rows."""
    teacher = results["teacher"]["test"]
    lines = ["| | " + " | ".join(f"t = {entry['t']:g}" for entry in teacher["times"]) + " | mean |", "|---" * 7 + "|"]
    for name in ("nll", "accuracy"):
        cells = [f"{entry[name]:.3f}" for entry in teacher["times"]]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {teacher[name]:.3f} |")
    lines += ["", f"Right final numbers of the GSM8K problems among the test rows: {teacher['exact_match']:.1%}."]
    return "\n".join(lines)


def tables(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return every table whose stage was run, by the name that it has in the page."""
    for ending, stage in SHARE_STAGES.items():
        if table := share_table(results, stage):
            yield f"share{ending}", table
    if _has_shares_alone(results):
        return
    first = rows_of(results, STAGES[0].name)
    yield "teacher", teacher_table(results)
    yield "cost", cost_table(results)
    for samples in ("300", "1000", "all"):
        rows = rows_under(results, f"{samples} samples")
        for pipeline in COLOURS:
            yield f"{samples} {pipeline}", arm_table(rows, pipeline, rows)
            yield f"{samples} {pipeline} by t", time_table(rows, pipeline)
    views = rows_under(results, "views")
    for pipeline in COLOURS:
        yield f"views {pipeline}", arm_table(views, pipeline, views)
        yield f"signals {pipeline}", arm_table(rows_of(results, "signals"), pipeline, first)
        yield f"bytes {pipeline}", bytes_table(results, pipeline)
    yield "grid", grid_table(results)


def _has_shares_alone(results: dict[str, Any]) -> bool:
    """Return whether only stages of shares were run, with `--only`; they have some arms of the first stage."""
    if find(rows_of(results, STAGES[0].name), BASELINE, "cross") is not None:
        return False
    return any(row.arm.taught for stage in SHARE_STAGES.values() for row in rows_of(results, stage.name))


def write_report(results: dict[str, Any], docs: Path) -> None:
    """Put the tables into the page, between the marks that name them, and draw the plots."""
    page = docs / "experiments.md"
    text = page.read_text(encoding="utf-8")
    for name, table in tables(results):
        block = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = block.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    page.write_text(text, encoding="utf-8")
    if _has_shares_alone(results):
        return
    folder = docs / "experiments"
    folder.mkdir(exist_ok=True)
    draw_arms(results, folder / "arms.png")
    draw_views(results, folder / "views.png")


def grid_table(results: dict[str, Any]) -> str:
    """Return a Markdown table of the NLL on the validation rows at every value of every grid that was begun."""
    lines = ["| arm | tokenizer | NLL on validation rows, seed 0 |", "|---|---|---|"]
    for stage in STAGES:
        for arm in (arm for arm in stage.arms if len(arm.grid) > 1):
            trials = grid_trials(stage, arm, results["size"]["seeds"][0])
            if trials[0].samples != stage.samples:
                continue
            found = {
                trial.value: results["students"][trial.key] for trial in trials if trial.key in results["students"]
            }
            if found:
                what = "weight" if arm.tunes == "weight" else "share of the steps"
                values = [f"{what} {value:g}: {one['validation']['nll']:.3f}" for value, one in found.items()]
                lines.append(f"| {arm.name} ({stage.samples or 'all'}) | {arm.pipeline} | {', '.join(values)} |")
    return "\n".join(lines)


def draw_arms(results: dict[str, Any], file: Path) -> None:
    """Draw what each teacher adds to cross-entropy on as many samples, with its interval."""
    figure = Figure(figsize=(11, 5), dpi=130, layout="constrained")
    rows = [row for samples in ("300", "1000", "all") for row in rows_under(results, f"{samples} samples")]
    for axes, pipeline in zip(figure.subplots(1, 2), COLOURS, strict=True):
        labels = []
        for row in (row for row in rows if row.arm.pipeline == pipeline):
            if not row.arm.taught or row.arm.ce != CE_UNWEIGHTED:
                continue
            baseline = find([peer for peer in rows if peer.stage.samples == row.stage.samples], BASELINE, pipeline)
            found = None if baseline is None else paired(row.test(), baseline.test())
            if found and found.num_values > 1:
                _point(axes, found, len(labels), COLOURS[pipeline])
                labels.append(f"{row.arm.full_name} ({row.stage.samples or 'all'})")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set(title=TITLES[pipeline], xlabel=f"test NLL minus {BASELINE} (nats, paired; 95%)")
        axes.grid(alpha=0.3)
    figure.savefig(file)


def _point(axes: Any, found: Interval, place: int, colour: str) -> None:
    axes.errorbar(found.mean, place, xerr=found.half_width or 0, marker="o", capsize=3, color=colour)


def draw_views(results: dict[str, Any], file: Path) -> None:
    """Draw NLL against views per sample; fresh masks from the live teacher at the right end."""
    rows = rows_under(results, "views")
    if not rows:
        return
    figure = Figure(figsize=(6, 3.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    for pipeline, colour in COLOURS.items():
        chosen = [row for row in rows if row.arm.pipeline == pipeline and row.arm.taught]
        if not chosen:
            continue
        places = [16 if row.arm.source == "live" else row.arm.num_views for row in chosen]
        found = [interval(list(row.test().values())) for _, row in sorted(zip(places, chosen, strict=True), key=_place)]
        widths = [entry.half_width or 0 for entry in found]
        axes.errorbar(sorted(places), [entry.mean for entry in found], widths, marker="o", capsize=3, color=colour,
                      label=TITLES[pipeline])  # fmt: skip
        baseline = find(rows, BASELINE, pipeline)
        if baseline is not None:
            mean = interval(list(baseline.test().values())).mean
            axes.axhline(mean, color=colour, linestyle="--", label=f"{BASELINE}, 8 views")
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "fresh"])
    axes.set(xlabel="masked views per sample", ylabel="test NLL (nats per masked token)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file)


def _place(pair: tuple[int, Row]) -> int:
    return pair[0]
