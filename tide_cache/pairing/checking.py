"""What the user is told about a corpus once its rows are paired, and what is refused, before any teacher time is spent.

A sample cut at `max_length` loses the end of its answer. So the number of cut samples is reported early, with the
length that would hold most of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tide_cache.config.settings import OnBadRow
from tide_cache.errors import PairingError, fault_list
from tide_cache.pairing.collecting import NOT_SUPERVISED
from tide_cache.pairing.report import Lengths, PairedRows, PairingReport

SHOWN_FAULTS = 5
WARN_ABOVE = 0.1
"""Share of rows cut, or left out because nothing to learn is within `max_length`, above which a warning is due."""
HELD = 0.95
"""Share of rows that the advised length holds."""


@dataclass(frozen=True)
class LengthLimit:
    """A maximum length, and how the user can set it.

    Attributes:
        key: Name of the setting: `student.max_length`, `--max-length`.
        longest: Its value.
        side: Side whose tokens it counts.
    """

    key: str
    longest: int
    side: str = "student"

    def num_cut(self, lengths: Lengths) -> int:
        """Count the conversations that are longer."""
        return sum(count for length, count in self._counts(lengths).items() if length > self.longest)

    def holding(self, lengths: Lengths) -> int:
        """Return the shortest length that holds the advised share of conversations."""
        counts = self._counts(lengths)
        left = HELD * sum(counts.values())
        for length in sorted(counts):
            left -= counts[length]
            if left <= 1e-9:
                return length
        return 0

    def _counts(self, lengths: Lengths) -> Mapping[int, int]:
        return lengths.student if self.side == "student" else lengths.teacher


def shown_faults(faults: Sequence[str], count: int) -> list[str]:
    """Return the first faults, and how many more there are.

    Args:
        faults: Some or all of them.
        count: Number of all.
    """
    shown = [*faults[:SHOWN_FAULTS]]
    return [*shown, f"and {count - len(shown)} more"] if count > len(shown) else shown


def require_usable(
    spec: str, faults: Sequence[str], on_bad_row: OnBadRow, key: str, num_faults: int | None = None
) -> None:
    """Refuse a corpus with bad rows, unless they may be left out.

    Args:
        spec: The corpus, for the message.
        faults: Some or all bad rows, each with its place and fault.
        on_bad_row: `error` or `skip`.
        key: Where that is set in a run file, or empty.
        num_faults: Number of bad rows; by default those given.

    Raises:
        PairingError: Lists the first rows.
    """
    count = len(faults) if num_faults is None else num_faults
    if on_bad_row == "skip" or not count:
        return
    rows = "1 row" if count == 1 else f"{count} rows"
    where = f" ({key} = 'skip')" if key else ""
    raise PairingError(
        fault_list(
            f"{spec}: {rows} cannot be rendered by the chat template:",
            shown_faults(faults, count),
            f"Nothing was computed. Fix the rows, or leave such rows out with --on-bad-row skip{where}.",
        )
    )


def require_samples(title: str, report: PairingReport, way_out: str) -> None:
    """Refuse a corpus without any usable row.

    Args:
        title: What yielded nothing.
        report: Counts of all rows.
        way_out: What can be done.

    Raises:
        PairingError: Lists the reasons.
    """
    if not report.samples:
        reasons = [f"{reason}: {count}" for reason, count in sorted(report.dropped.items())]
        raise PairingError(fault_list(title, reasons, way_out))


def remarks(
    report: PairingReport,
    lengths: Lengths,
    limits: Sequence[LengthLimit],
    notes: Sequence[str] = (),
    skipped: Sequence[str] = (),
    faults: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return how many rows became samples, what was cut and left out, and what of the corpus is not read.

    Args:
        report: Counts of all rows.
        lengths: Their lengths before they were cut.
        limits: Where they are cut.
        notes: Remarks of the corpus reader.
        skipped: Rows of the corpus that could not be read.
        faults: Rows that the chat template does not render; they are among `report.dropped`.
    """
    num_dropped = sum(report.dropped.values())
    result = [
        f"{report.samples + num_dropped} rows: {report.samples} samples, {num_dropped} left out",
        f"{report.truncated} of {report.samples} samples cut at max_length",
    ]
    result += [f"{count} rows left out: {reason}" for reason, count in sorted(report.dropped.items())]
    result += [f"left out: {fault}" for fault in faults[:SHOWN_FAULTS]]
    if skipped:
        result.append(f"{len(skipped)} bad rows skipped; the first: {skipped[0]}")
    result += [
        f"{name} of {count} rows is not written by the chat template: it is not learnt"
        for name, count in sorted(lengths.unwritten.items())
    ]
    result += notes
    num_short = report.truncated + report.dropped.get(NOT_SUPERVISED, 0)
    if num_short > WARN_ABOVE * (report.samples + num_dropped):
        result.append(f"warning: {_advice(report, lengths, limits, num_short)}")
    return tuple(result)


def _advice(report: PairingReport, lengths: Lengths, limits: Sequence[LengthLimit], num_short: int) -> str:
    total = report.samples + sum(report.dropped.values())
    head = f"{num_short} of {total} rows ({num_short / total:.0%}) lose their end or all of it at max_length"
    needed = [
        f"{limit.key} = {limit.holding(lengths)} would hold {HELD:.0%} of them (it is {limit.longest}, and "
        f"{limit.num_cut(lengths)} are longer)"
        for limit in limits
        if limit.holding(lengths) > limit.longest
    ]
    return f"{head}; {'; '.join(needed)}" if needed else head


def remarks_of(
    paired: PairedRows, limits: Sequence[LengthLimit], notes: Sequence[str] = (), skipped: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the same remarks for rows that were paired at once; arguments as for `remarks`."""
    return remarks(paired.report, paired.lengths, limits, notes, skipped, paired.faults)
