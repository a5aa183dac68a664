"""Charts as SVG for a page: text stays text, and colours are the page's own, so one drawing serves light and dark.

matplotlib knows no CSS. Colours are drawn as placeholders that nothing else uses, and replaced by the page's variables.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

INK, FAINT = "#010203", "#010204"
NUM_COLOURS = 6
_SERIES = tuple(f"#01030{index}" for index in range(NUM_COLOURS))
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--rule)",
    **{colour: f"var(--s{index})" for index, colour in enumerate(_SERIES)},
}
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
NUM_DASHES = len(_DASHES)
WIDTH_INCHES, HEIGHT_INCHES = 4.4, 2.75


@dataclass(frozen=True)
class Series:
    """A line, or bars of a legend; gaps are None. Any colour or dash number is valid; thin lines get no legend."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int
    dash: int = 0
    is_thin: bool = False

    @property
    def swatch(self) -> str:
        """Classes of the page's style that draw the line in a legend."""
        shape = f"dash{self.dash % NUM_DASHES}" if self.x else "bar"
        return f"c{self.colour % NUM_COLOURS} {shape}"


@dataclass(frozen=True)
class Chart:
    """A drawing, what it shows in words, and its legend."""

    title: str
    svg: Markup
    legend: tuple[Series, ...] = ()


Captioned = tuple[Chart, str]
"""A chart and what it shows."""


def line_chart(
    name: str,
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float | None] | None = None,
) -> Chart:
    """Draw lines over one axis.

    Args:
        name: Unique on the page; letters and dashes.
        title: Heading of the chart, and its text for those who cannot see it.
        series: Lines, in the order of the legend.
        x_label: With unit.
        y_label: With unit.
        x_range: Ends of the axis; by default those of the lines.
        y_range: The same for y; an upper end of None leaves room above the highest point.
    """
    figure, axes = _axes(HEIGHT_INCHES)
    for line in series:
        y = [float("nan") if value is None else value for value in line.y]
        has_markers = len(line.x) <= 12 and not line.is_thin
        axes.plot(
            list(line.x), y, color=_SERIES[line.colour % NUM_COLOURS], linestyle=_DASHES[line.dash % NUM_DASHES],
            linewidth=0.8 if line.is_thin else 1.8, alpha=0.55 if line.is_thin else 1.0,
            marker="o" if has_markers else None, markersize=3.5,
        )  # fmt: skip
    axes.set(xlabel=x_label, ylabel=y_label)
    if x_range is not None:
        axes.set_xlim(*x_range)
    if y_range is not None:
        highest = max((value for line in series for value in line.y if value is not None), default=1.0)
        axes.set_ylim(y_range[0], 1.08 * highest if y_range[1] is None else y_range[1])
    axes.grid(color=FAINT, linewidth=0.7)
    legend = tuple(line for line in series if not line.is_thin)
    is_told = len(legend) == 1 and legend[0].label == title
    return Chart(title, _svg(figure, name, title), () if is_told else legend)


def bar_chart(
    name: str,
    title: str,
    labels: Sequence[str],
    groups: Sequence[tuple[str, Sequence[float]]],
    x_label: str,
    y_label: str,
) -> Chart:
    """Draw vertical bars, one group next to the other.

    Args:
        name: As for `line_chart`.
        title: As for `line_chart`.
        labels: Below the bars.
        groups: Name and heights of each group.
        x_label: With unit.
        y_label: With unit.
    """
    figure, axes = _axes(HEIGHT_INCHES)
    width = 0.8 / len(groups)
    for place, (_, heights) in enumerate(groups):
        at = [index + (place - (len(groups) - 1) / 2) * width for index in range(len(labels))]
        axes.bar(at, list(heights), width=width * 0.92, color=_SERIES[place])
    axes.set_xticks(range(len(labels)), list(labels))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    legend = tuple(Series(label, (), (), place) for place, (label, _) in enumerate(groups))
    return Chart(title, _svg(figure, name, title), legend if len(legend) > 1 else ())


def row_chart(name: str, title: str, rows: Sequence[tuple[str, float, str]], x_label: str) -> Chart:
    """Draw horizontal bars, the first one on top, each with its value at its end.

    Args:
        name: As for `line_chart`.
        title: As for `line_chart`.
        rows: Label, length and the text after the bar.
        x_label: With unit.
    """
    figure, axes = _axes(0.7 + 0.24 * len(rows))
    places = range(len(rows), 0, -1)
    longest = max((length for _, length, _ in rows), default=1.0) or 1.0
    axes.barh(places, [length for _, length, _ in rows], height=0.68, color=_SERIES[0])
    for place, (_, length, text) in zip(places, rows, strict=True):
        axes.text(length + longest * 0.015, place, text, va="center", color=INK)
    axes.set_yticks(places, [label for label, _, _ in rows])
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= longest * 1.001])
    axes.set_xlim(0, longest * 1.22)
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xlabel(x_label)
    axes.tick_params(axis="y", length=0)
    return Chart(title, _svg(figure, name, title))


def _axes(height_inches: float) -> tuple[Figure, Any]:
    with mpl.rc_context({"font.size": 10, "axes.labelsize": 10, "axes.axisbelow": True}):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        for spine in axes.spines.values():
            spine.set_color(INK)
            spine.set_linewidth(0.8)
        axes.tick_params(color=INK, labelcolor=INK, labelsize=9.5)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.ticklabel_format(axis="both", style="plain", useOffset=False)
    return figure, axes


def _svg(figure: Figure, name: str, title: str) -> Markup:
    """Return the drawing as an element of a page: no fixed size, unique ids, the page's colours and fonts."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r"\s*<style.*?</style>", "", text, flags=re.DOTALL)  # would apply to the whole page
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--font)", text)
    text = re.sub(r"font-family: [^;\"]+", "font-family: var(--font)", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg {box[0]} role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1))
