"""The demonstration's picture: held-out NLL of each student, and what more views of a sample bring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tide_cache.demo.design import Pipeline
from tide_cache.evaluation.comparison import Spread

TITLES: Mapping[Pipeline, str] = {"shared": "The teacher's tokenizer", "cross": "Another tokenizer"}
BASELINE, STUDENT, TEACHER = "#6b7280", "#b4472b", "#1f5fa8"
NLL = "held-out NLL (nats per masked token), lower is better"


@dataclass(frozen=True)
class Bar:
    """One student of the picture.

    Attributes:
        name: Its objectives.
        nll: Held-out NLL, mean over the seeds.
        interval: Half of the 95% interval of its difference from the first; None for the first.
    """

    name: str
    nll: float
    interval: float | None


def draw(
    path: Path,
    bars: Mapping[Pipeline, Sequence[Bar]],
    teacher_nll: float,
    nll_at_views: Mapping[int, Spread],
    num_seeds: int,
) -> None:
    """Write a PNG with a panel for each tokenizer, and one for the views if they were compared.

    Args:
        path: The PNG to write.
        bars: Students by pipeline; the first of each is its baseline.
        teacher_nll: NLL of the teacher, in its own tokens.
        nll_at_views: NLL of `kl` by views per sample; empty for no panel.
        num_seeds: Seeds of each student; intervals are over them, or with a single seed over parts of the tasks.
    """
    num_panels = len(bars) + bool(nll_at_views)
    figure = Figure(
        figsize=(4.6 * num_panels, 1.7 + 0.36 * max(map(len, bars.values()))), dpi=130, layout="constrained"
    )
    panels = figure.subplots(1, num_panels, squeeze=False)[0]
    for axes, (pipeline, students) in zip(panels, bars.items(), strict=False):
        _draw_students(axes, TITLES[pipeline], students)
    panels[0].axvline(teacher_nll, color=TEACHER, linestyle=":")
    panels[0].annotate("teacher", (teacher_nll, -0.45), (4, 0), textcoords="offset points", color=TEACHER, va="center")
    if nll_at_views:
        _draw_views(panels[-1], nll_at_views)
    over = f"{num_seeds} seeds" if num_seeds > 1 else "the held-out tasks, one seed"
    figure.supxlabel(f"{NLL}; line: 95% interval of the difference to ce, over {over}", fontsize=9)
    figure.savefig(path)


def _draw_students(axes: Axes, title: str, students: Sequence[Bar]) -> None:
    baseline = students[0].nll
    axes.axvline(baseline, color=BASELINE, linestyle="--", linewidth=1)
    for place, bar in enumerate(students):
        colour = BASELINE if bar is students[0] else STUDENT
        axes.errorbar(bar.nll, place, xerr=bar.interval, fmt="o", capsize=4, color=colour)
        axes.annotate(f"{bar.nll:.2f}", (bar.nll, place), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(students)), [bar.name for bar in students])
    axes.set_ylim(len(students) - 0.4, -0.8)
    axes.margins(x=0.15)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_views(axes: Axes, nll_at_views: Mapping[int, Spread]) -> None:
    views = list(nll_at_views)
    deviations = [nll_at_views[v].deviation or 0 for v in views]
    axes.errorbar([nll_at_views[v].mean for v in views], range(len(views)), xerr=deviations, marker="o", capsize=4,
                  color=STUDENT)  # fmt: skip
    axes.set_yticks(range(len(views)), [str(v) for v in views])
    axes.invert_yaxis()
    axes.set(title="kl, by views captured per sample", ylabel="views")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
