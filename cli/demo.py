"""`tide-cache demo`: the self-contained demonstration."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tide_cache.errors import Interrupted, TideCacheError

from .console import chatter_to_stderr, number, percent, print_json, print_table, print_text, say, size
from .options import Json
from .progress import ProgressReport

if TYPE_CHECKING:
    from tide_cache.demo.run import ArmResult, DemoResult
    from tide_cache.evaluation.comparison import Spread

UNITS = {"teacher": "steps", "caches": "views", "students": "students"}


def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything; run again to continue there.")] = Path("demo-output"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: shows that all runs, proves nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train a teacher on generated tasks, capture it once, train students in both pipelines, and compare them."""
    with chatter_to_stderr():
        try:
            from tide_cache.demo.plan import FULL, QUICK
            from tide_cache.demo.run import run_demo
        except ImportError as error:
            raise TideCacheError(
                f"the demonstration draws with {error.name}: pip install 'tide-cache[report]'"
            ) from None
        try:
            with _Stages() as stages:
                result = run_demo(out, QUICK if quick else FULL, stages.update)
        except (Interrupted, KeyboardInterrupt) as error:
            stopped = Interrupted(f"Stopped; what is done lies in {out}. Run the same command again to continue.")
            stopped.exit_code = getattr(error, "exit_code", stopped.exit_code)
            raise stopped from None
    if as_json:
        print_json({"results": str(result.results), "picture": str(result.picture), "out": str(out.resolve())})
        return
    _print_result(result)
    if quick:
        say("These are the figures of --quick: they only show that everything runs.")


class _Stages(contextlib.ExitStack):
    """Shows the progress of one stage after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._stage = ""

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done of a stage."""
        if stage != self._stage:
            self.close()
            self._stage, self._report = stage, self.enter_context(ProgressReport(stage, UNITS[stage]))
        self._report.update(done, total)


def _print_result(result: "DemoResult") -> None:
    teacher = result.teacher
    print_text(
        f"Teacher on held-out tasks: NLL {number(teacher.nll)}, token accuracy {percent(teacher.accuracy)}, "
        f"exact match {percent(teacher.exact_match)}"
    )
    for pipeline, title in (("shared", "the teacher's tokenizer"), ("cross", "another tokenizer")):
        rows = [_row(arm) for arm in result.arms if arm.arm.pipeline == pipeline]
        columns = ("student", "held-out NLL", "minus ce, paired", "seeds better", "token accuracy", "exact match")
        print_table(f"Students with {title}: mean ± deviation over seeds", columns, rows)
    views = ", ".join(f"{views}: {value}" for views, value in result.nll_at_views.items())
    print_text(f"Held-out NLL of `kl` by views per sample: {views}")
    for pipeline, cache in result.caches.items():
        per_position = cache.cache_bytes / max(cache.masked_positions, 1)
        views = f"{cache.num_samples} samples x {cache.num_views} views"
        print_text(f"Cache, {pipeline}: {size(cache.cache_bytes)}, {views}, {per_position:.0f} B per masked position")
    print_text(f"Figures: {result.results}\nPicture: {result.picture}")
    print_text(f"Corpus, tokenizers, teacher, caches and students: {result.results.parent}")


def _row(arm: "ArmResult") -> list[str]:
    against = arm.nll
    return [
        arm.arm.name,
        str(against.value),
        "" if against.difference is None else str(against.difference),
        "" if against.difference is None else f"{against.num_better} of {against.num_paired}",
        _share(arm.accuracy),
        _share(arm.exact_match),
    ]


def _share(spread: "Spread") -> str:
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return f"{percent(spread.mean)}{deviation}"
