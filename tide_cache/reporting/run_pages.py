"""The page of a training run, and the page that compares several runs."""

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from tide_cache.evaluation.comparison import Spread
from tide_cache.reporting.comparing import ArmRuns, ComparisonRow, ComparisonTable, arm_settings, shared_evaluations
from tide_cache.reporting.page import duration, render
from tide_cache.reporting.plots import Captioned, Series, line_chart
from tide_cache.reporting.runs import Evaluation, RunFigures
from tide_cache.reporting.task_curves import CURVE_COLUMNS, curve_charts, curve_rows, join_curves
from tide_cache.wording import leaves, number, percent, size

RUN_SECTIONS = {
    "losses": "Losses",
    "times": "By diffusion time",
    "evaluation": "Evaluation",
    "work": "Work",
    "identity": "Settings and origin",
}
COMPARISON_SECTIONS = {
    "results": "Results",
    "losses": "Losses",
    "times": "By diffusion time",
    "identity": "Runs and settings",
}
SHARE = (0.0, 1.0)
T_AXIS = "diffusion time t"
STEP_AXIS = "optimizer step"
NLL_AXIS = "nats per token"

WORK = {
    "learning_rate": ("Learning rate", "", "Warm-up and decay, as the run file says."),
    "gradient_norm": ("Gradient norm", "", "Before clipping."),
    "trust": ("Trust in the teacher", "share", "TIDAL's weight of the teacher at t = 0.5: it grows over the run."),
    "tokens_per_s": (
        "Speed",
        "student tokens per second",
        "Over all ranks, one copy of each sample, padding left out.",
    ),
    "stall_share": ("Waiting for data", "share of the time", "Steps that wait are paid for and do nothing."),
}
"""Figures from the lines of metrics, with title, axis and caption."""


def run_page(run: RunFigures) -> str:
    """Return the page of one run."""
    first = run.evaluations[0] if run.evaluations else None
    return render(
        "run.html",
        f"Run {run.name}",
        RUN_SECTIONS,
        run=run,
        evaluation=first,
        losses=_losses(run),
        stages=_stages(run),
        stage_names=[f"steps {stage.step_from} to {stage.step_to}" for stage in run.nll_stages],
        stage_rows=_by_t([stage.nll for stage in run.nll_stages]),
        evaluations=[_evaluation(index, entry) for index, entry in enumerate(run.evaluations)],
        curves=curve_charts(run.curves),
        curve_columns=CURVE_COLUMNS,
        curve_rows=curve_rows(run.curves),
        work=_work(run),
        settings=list(leaves(run.settings)),
    )


def _losses(run: RunFigures) -> list[Captioned]:
    curve = run.curve
    names = [name for name in curve.values if name.startswith("losses/")]
    charts = []
    for colour, name in enumerate(["loss", *names]):
        title = "Loss" if name == "loss" else name.removeprefix("losses/")
        known = [value for value in curve.values[name] if value is not None]
        line = Series(title, curve.steps, curve.values[name], colour)
        chart = line_chart(f"loss-{colour}", title, [line], STEP_AXIS, "nats")
        charts.append((chart, f"From {number(known[0])} to {number(known[-1])}." if known else "Never finite."))
    return charts if len(names) > 1 else charts[:1]


def _stages(run: RunFigures) -> Captioned:
    lines = [
        Series(f"{stage.name} (steps {stage.step_from} to {stage.step_to})", _middles(stage.nll), stage.nll, i, i)
        for i, stage in enumerate(run.nll_stages)
    ]
    chart = line_chart("stages", "NLL over t, early and late", lines, T_AXIS, NLL_AXIS, SHARE)
    return (
        chart,
        "Where the lines part is where the student learned. Few masked tokens fall at low t: it is noisy there.",
    )


def _work(run: RunFigures) -> list[Captioned]:
    charts = []
    for name, (title, axis, caption) in WORK.items():
        if name in run.curve.values:
            line = Series(title, run.curve.steps, run.curve.values[name], 0)
            charts.append((line_chart(name.replace("_", "-"), title, [line], STEP_AXIS, axis), caption))
    return charts


def _evaluation(index: int, entry: Evaluation) -> dict[str, Any]:
    times, agreement = entry.nll.times, entry.agreement
    x = [at.t for at in times]
    nll = line_chart(
        f"eval-{index}-nll",
        "Held-out NLL",
        [Series("Held-out NLL", x, [at.nll for at in times], 0)],
        T_AXIS,
        NLL_AXIS,
        SHARE,
        (0, None),
    )
    right = Series("Held-out accuracy", x, [at.accuracy for at in times], 2)
    accuracy = line_chart(f"eval-{index}-accuracy", "Held-out accuracy", [right], T_AXIS, "share", SHARE, SHARE)
    charts = [
        (
            nll,
            "Each supervised token is masked with chance t. Lower is better; the mean over t bounds -log p of a token.",
        ),
        (accuracy, "Share of masked tokens whose most likely token is the true one."),
    ]
    rows = [[f"{at.t:.2f}", number(at.num_masked), number(at.nll, 4), percent(at.accuracy)] for at in times]
    of_teacher = [*agreement.by_time, agreement.overall] if agreement else []
    agreement_rows = [
        [
            "all" if at is of_teacher[-1] else f"{at.t_from:.1f} to {at.t_to:.1f}",
            number(at.num_rows),
            percent(at.top1_agreement),
            number(at.kl, 4),
            number(at.num_chunks),
            number(at.chunk_logprob_difference, 4),
        ]
        for at in of_teacher
    ]
    return {"document": entry, "charts": charts, "rows": rows, "agreement_rows": agreement_rows}


def comparison_page(arms: Sequence[ArmRuns], result: ComparisonTable) -> str:
    """Return the page of several runs.

    Args:
        arms: From `make_arms`.
        result: From `compare_arms`.
    """
    runs = [run for arm in arms for run in arm.runs]
    shared = shared_evaluations(runs)
    last = [_mean_by_place([run.nll_stages[-1].nll for run in arm.runs]) for arm in arms]
    held_out = (
        [_mean_by_place([[at.nll for at in shared[run.name].nll.times] for run in arm.runs]) for arm in arms]
        if shared
        else []
    )
    differing, common = arm_settings(arms)
    curves = join_curves({run.name: run.curves for run in runs})
    return render(
        "comparison.html",
        f"{len(runs)} runs compared",
        COMPARISON_SECTIONS,
        arms=arms,
        num_runs=len(runs),
        arm_names=[arm.name for arm in arms],
        result=result,
        result_rows=[_result_row(row) for row in result.rows],
        evaluation_charts=_shared_charts(arms, shared) if shared else [],
        evaluation_rows=_times(shared[runs[0].name], held_out) if shared else [],
        curves=curve_charts(curves),
        curve_columns=CURVE_COLUMNS,
        curve_rows=curve_rows(curves),
        losses=_compared_losses(arms),
        stages=_compared_stages(arms),
        stage_rows=_by_t(last),
        run_rows=[_run_row(arm, run) for arm in arms for run in arm.runs],
        differing=differing,
        common=common,
    )


def _result_row(row: ComparisonRow) -> list[str]:
    found = row.measure
    return [
        row.arm,
        ", ".join(map(str, row.seeds)),
        str(found.value) if found else "-",
        str(found.difference) if found and found.difference else "-",
        f"{found.num_better} of {found.num_paired}" if found and found.num_paired else "-",
        _percents(row.accuracy),
        str(row.nats_per_byte or "-"),
        str(row.agreement_kl or "-"),
    ]


def _percents(value: Spread | None) -> str:
    if value is None:
        return "-"
    return percent(value.mean) if value.deviation is None else f"{percent(value.mean)} ± {100 * value.deviation:.1f}"


def _arm_lines(
    arms: Sequence[ArmRuns], place: int, x: Sequence[float], of_runs: Sequence[Sequence[float | None]]
) -> list[Series]:
    """Return a thick line for the mean of an arm, and thin ones for its runs if there are several."""
    thin = [Series("", x, y, place, place, is_thin=True) for y in of_runs] if len(of_runs) > 1 else []
    return [*thin, Series(arms[place].name, x, _mean_by_place(of_runs), place, place)]


def _shared_charts(arms: Sequence[ArmRuns], shared: dict[str, Evaluation]) -> list[Captioned]:
    caption = (
        "Thick: mean over seeds; thin: single runs. All were asked the same questions. The axis need not begin at 0."
    )
    charts = []
    for figure, title, axis, y_range in (
        ("nll", "Held-out NLL", NLL_AXIS, None),
        ("accuracy", "Held-out accuracy", "share", None),
    ):
        lines = []
        for place, arm in enumerate(arms):
            times = [shared[run.name].nll.times for run in arm.runs]
            values = [[getattr(at, figure) for at in of_run] for of_run in times]
            lines += _arm_lines(arms, place, [at.t for at in times[0]], values)
        chart = line_chart(f"shared-{figure}", title, lines, T_AXIS, axis, SHARE, y_range)
        charts.append((chart, caption))
    return charts


def _compared_losses(arms: Sequence[ArmRuns]) -> list[Captioned]:
    names = dict.fromkeys(
        name
        for arm in arms
        for run in arm.runs
        for name in run.curve.values
        if name == "loss" or name.startswith("losses/")
    )
    charts = []
    for index, name in enumerate(names):
        lines = []
        for place, arm in enumerate(arms):
            runs = [run for run in arm.runs if name in run.curve.values]
            if runs and all(run.curve.steps == runs[0].curve.steps for run in runs):
                lines += _arm_lines(arms, place, runs[0].curve.steps, [run.curve.values[name] for run in runs])
            else:  # runs of different lengths have no mean
                lines += [
                    Series(f"{arm.name}, {run.name}", run.curve.steps, run.curve.values[name], place, place)
                    for run in runs
                ]
        title = "Loss" if name == "loss" else name.removeprefix("losses/")
        caption = "Weighted sum of the objectives." if name == "loss" else f"Mean of {title} in the arms that have it."
        charts.append((line_chart(f"loss-{index}", title, lines, STEP_AXIS, "nats"), caption))
    return charts


def _compared_stages(arms: Sequence[ArmRuns]) -> Captioned:
    lines = []
    for place, arm in enumerate(arms):
        values = [run.nll_stages[-1].nll for run in arm.runs]
        lines += _arm_lines(arms, place, _middles(values[0]), values)
    chart = line_chart("stages", "NLL over t at the end", lines, T_AXIS, NLL_AXIS, SHARE)
    return chart, "On the views that each run was trained on. Thick: mean over seeds; thin: single runs."


def _run_row(arm: ArmRuns, run: RunFigures) -> list[str]:
    return [
        run.name,
        arm.name,
        str(run.seed),
        number(run.last.step),
        duration(run.train_s),
        number(run.last.tokens_per_s, 0),
        size(run.last.peak_memory_bytes),
        "yes" if run.is_finished else "no",
    ]


def _middles(values: Sequence[Any]) -> list[float]:
    return [(index + 0.5) / len(values) for index in range(len(values))]


def _by_t(columns: Sequence[Sequence[float | None]]) -> list[list[str]]:
    num = len(columns[0])
    rows = zip(*columns, strict=True)
    return [[f"{i / num:.1f} to {(i + 1) / num:.1f}", *(number(value) for value in row)] for i, row in enumerate(rows)]


def _times(entry: Evaluation, columns: Iterable[Sequence[float | None]]) -> list[list[str]]:
    rows = zip(*columns, strict=True)
    return [
        [f"{at.t:.2f}", *(number(value, 4) for value in row)] for at, row in zip(entry.nll.times, rows, strict=True)
    ]


def _mean_by_place(lists: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the mean at each place, over the known values."""
    known = ([value for value in values if value is not None] for values in zip(*lists, strict=True))
    return [mean(values) if values else None for values in known]
