"""Holds the tables of the docs against `benchmarks/results/*.json`: `python -m benchmarks.pages`.

A section that names a results file is held to it: in every table row, each number of a cell that begins with a number
must be a figure of that file, rounded as it is shown, or a quotient of two such figures of its row. Where the row
names figures in backticks, only those count. Bars are no measurements: a column headed `bar` is left out, and what a
verdict says of one ("missed by 7 %", "by a factor of 1.3") must follow from the row's figures and its bar.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/performance.md", "docs/reliability.md")

_NUMBER = re.compile(r"(?<![\w.])(-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?:\s*(%|M\b|k\b))?")
_VERDICT = re.compile(r"by a factor of (?:about )?[\d.]+|(?:by|and) (?:about )?\d+ %")
_SCALES = {"%": 1e2, "M": 1e-6, "k": 1e-3, "": 1.0}


@dataclass(frozen=True)
class Shown:
    """A number as a page shows it.

    Attributes:
        text: With its unit.
        value: The number, without the unit.
        half_step: Half of the last digit's place: how far a figure may be from it.
        scale: What a figure is multiplied by for this unit.
    """

    text: str
    value: float
    half_step: float
    scale: float

    def is_rounded(self, figure: float) -> bool:
        """Say whether it is this figure, rounded."""
        return abs(figure * self.scale - self.value) <= self.half_step * (1 + 1e-6)


@dataclass(frozen=True)
class Row:
    """A table row under a section's figures."""

    place: str
    cells: tuple[str, ...]
    bar: str
    figures: Mapping[str, float]


def find_faults(pages: Sequence[Path]) -> tuple[list[str], int]:
    """Compare pages with the figures.

    Returns:
        What does not agree, one line each, and how many numbers were compared.
    """
    faults, num_compared = [], 0
    for page in pages:
        for row in _rows(page):
            unfounded, compared = _check(row)
            faults += [f"{row.place}: {shown.text!r} is no figure of its results file" for shown in unfounded]
            num_compared += compared
    return faults, num_compared


def _rows(page: Path) -> Iterator[Row]:
    """Return the table rows of the sections that name a results file."""
    lines = page.read_text(encoding="utf-8").split("\n")
    heads = [n for n, line in enumerate(lines) if re.match(r"#{1,6} ", line)]
    for first, last in zip(heads, [*heads[1:], len(lines)], strict=True):
        section = lines[first:last]
        figures = _figures("\n".join(section))
        headers: list[str] = []
        for offset, line in enumerate(section):
            cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")] if line.startswith("|") else []
            if cells and figures and headers and not set(line) <= set("|-: "):
                bars = [cell for header, cell in zip(headers, cells, strict=False) if header == "bar"]
                kept = [cell for header, cell in zip(headers, cells, strict=False) if header != "bar"]
                yield Row(f"{page.name}:{first + offset + 1}", tuple(kept), " ".join(bars), figures)
            headers = headers or cells if cells else []


def _figures(section: str) -> dict[str, float]:
    """Read the figures of the results files that a section names."""
    found: dict[str, float] = {}
    for name in sorted(set(re.findall(r"benchmarks/results/(\w+)\.json", section))):
        found |= json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))["figures"]
    return found


def _check(row: Row) -> tuple[list[Shown], int]:
    """Return the numbers of a row that nothing founds, and how many were looked at."""
    names = re.findall(r"`([^`]+)`", row.cells[0])
    named = [value for key, value in row.figures.items() if any(key.startswith(name) for name in names)]
    candidates = named or list(row.figures.values())
    values = [shown for cell in row.cells[1:] if re.match(r"-?\d", cell) for shown in _numbers(cell)]
    matched = [figure for shown in values for figure in candidates if shown.is_rounded(figure)]
    quotients = [a / b for a, b in permutations(matched, 2) if b]
    unfounded = [shown for shown in values if not any(map(shown.is_rounded, [*matched, *quotients]))]
    verdicts = [shown for cell in row.cells[1:] for said in _VERDICT.findall(cell) for shown in _numbers(said)]
    bars = [shown.value / shown.scale for shown in _numbers(row.bar)]
    of_bars = [x for bar in bars for figure in matched if bar and figure for x in (figure / bar, bar / figure)]
    derived = [*of_bars, *(abs(1 - x) for x in of_bars)]
    unfounded += [shown for shown in verdicts if not any(map(shown.is_rounded, derived))]
    return unfounded, len(values) + len(verdicts)


def _numbers(text: str) -> list[Shown]:
    result = []
    for number, unit in _NUMBER.findall(text):
        mantissa, _, exponent = number.replace(",", "").partition("e")
        decimals = len(mantissa.partition(".")[2])
        half_step = 0.5 * 10.0 ** (int(exponent or 0) - decimals)
        result.append(Shown(f"{number} {unit}".strip(), float(number.replace(",", "")), half_step, _SCALES[unit]))
    return result


if __name__ == "__main__":
    found, compared = find_faults([ROOT / page for page in PAGES])
    print("\n".join(found) or f"{compared} numbers agree with benchmarks/results", file=sys.stderr)
    sys.exit(1 if found else 0)
