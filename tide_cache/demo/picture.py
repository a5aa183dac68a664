"""The demonstration's picture: what the teacher knows against t, and what more views of a sample are worth."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from tide_cache.evaluation.comparison import Spread

TEACHER, STUDENT = "#1f5fa8", "#b4472b"


def draw(path: Path, accuracy_at: Mapping[float, float], nll_at_views: Mapping[int, Spread], arm: str) -> None:
    """Write a PNG with two panels.

    Args:
        path: Of the PNG.
        accuracy_at: Teacher's top-1 accuracy on masked tokens, by middle of a bucket of t.
        nll_at_views: Held-out NLL of an arm, by views per sample.
        arm: Name of that arm.
    """
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(list(accuracy_at), list(accuracy_at.values()), marker="o", color=TEACHER)
    left.set(
        xlabel="diffusion time t (share of the answer that is masked)",
        ylabel="accuracy on masked tokens",
        title="What the teacher knows, by diffusion time",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    views = list(nll_at_views)
    means = [nll_at_views[v].mean for v in views]
    deviations = [nll_at_views[v].deviation or 0 for v in views]
    right.errorbar(views, means, yerr=deviations, marker="o", capsize=3, color=STUDENT)
    right.set_xscale("log", base=2)
    right.set_xticks(views, [str(v) for v in views])
    right.set(
        xlabel="masked views captured per sample",
        ylabel="held-out NLL (nats per masked token)",
        title=f"More views, better student ({arm})" if means[-1] < means[0] else f"NLL against views ({arm})",
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
