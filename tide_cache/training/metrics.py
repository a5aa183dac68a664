"""What a run reports: one JSON line per logged step, and a callback for the terminal."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tide_cache.disk import write_whole, writing
from tide_cache.errors import RunFolderError
from tide_cache.unreadable import is_there, told_apart


@dataclass(frozen=True)
class StepMetrics:
    """Figures of the steps since the last line.

    Attributes:
        step: Optimizer steps taken.
        epoch: Passes over the samples so far.
        loss: Weighted sum of the objectives' means, as it is minimised, in nats.
        losses: Mean of each objective, not weighted, in nats.
        nll_by_t: Mean -log q(true) of the masked tokens, in nats, by their view's t in ten buckets from 0 to 1; None
            where no token fell. It does not depend on the objectives.
        learning_rate: Learning rate of the last step.
        gradient_norm: Before clipping, of the last step; None where DeepSpeed does not say.
        trust: Share of the teacher in TIDAL's target at t = 0.5, in the last step; None without `tidal`.
        tokens_per_s: Student tokens (one copy, padding excluded) over all ranks per second.
        stall_share: Share of the time in which steps waited for their data, mean over the ranks.
        peak_memory_bytes: Highest so far, of the rank with most: allocated on the GPU, or resident on the CPU.
        elapsed_s: Seconds since this process started training.
    """

    step: int
    epoch: float
    loss: float
    losses: dict[str, float]
    nll_by_t: list[float | None]
    learning_rate: float
    gradient_norm: float | None
    trust: float | None
    tokens_per_s: float
    stall_share: float
    peak_memory_bytes: int
    elapsed_s: float


_METRICS = TypeAdapter(StepMetrics)

OnStep = Callable[[StepMetrics, int], None]
"""Called with the figures and the number of steps of the whole run."""


class MetricsFile:
    """Appends to metrics.jsonl; on resume, lines of steps that will be taken again are dropped first."""

    def __init__(self, path: Path, resumed_at: int):
        self._path = path
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= resumed_at] if resumed_at else []
        write_whole(path, "".join(f"{line}\n" for line in kept))
        self._held = ""

    def write(self, metrics: StepMetrics) -> None:
        """Append one line; if the disk is full, hold it back until there is room, since it must not end a run."""
        self._held += json.dumps(asdict(metrics)) + "\n"
        with suppress(OSError):
            self._append()

    def close(self) -> None:
        """Write what was held back.

        Raises:
            WriteError: The disk is still full.
        """
        with writing(self._path):
            self._append()

    def _append(self) -> None:
        """Write all lines that are held, or none of them."""
        if not self._held:
            return
        before = self._path.stat().st_size
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(self._held)
        except OSError:
            os.truncate(self._path, before)
            raise
        self._held = ""


def read_metrics(path: Path) -> list[StepMetrics]:
    """Read the lines of a metrics.jsonl, in their order; one that was cut off in writing is left out.

    Args:
        path: The file; figures that this release does not know are ignored.

    Raises:
        RunFolderError: A line is something else.
        UnreadableError: It cannot be read now.
    """
    found = []
    for place, line in enumerate(_lines(path), 1):
        try:
            found.append(_METRICS.validate_json(line))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the line"
            raise RunFolderError(
                f"{path}:{place}: {where}: {fault['msg']}; expected a line that `tide-cache train` wrote.\n"
                "Remove the line, or give another run."
            ) from None
    return found


def objective_names(kinds: Sequence[str]) -> list[str]:
    """Name objectives by kind, with a number where a kind occurs twice."""
    return [kind if kinds.count(kind) == 1 else f"{kind}.{kinds[:i].count(kind)}" for i, kind in enumerate(kinds)]


def _lines(path: Path) -> list[str]:
    if not is_there(path):
        return []
    with told_apart(path):
        text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.endswith("}")]
