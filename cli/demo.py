"""`tide-cache demo`: the self-contained demonstration."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tide_cache.errors import Interrupted, TideCacheError

from .console import chatter_to_stderr, number, percent, print_json, print_table, print_text, say, size
from .heartbeat import Heartbeat
from .options import Json

if TYPE_CHECKING:
    from tide_cache.demo.design import DemoSize, Table
    from tide_cache.demo.run import DemoResult, DemoRow
    from tide_cache.evaluation.comparison import Spread

UNITS = {
    "libraries": "loaded",
    "corpus": "written",
    "teacher": "steps",
    "capture": "views",
    "starting": "students",
    "students": "steps",
    "figures": "drawn",
}
TOKENIZERS = {"shared": "the teacher's", "cross": "another"}


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all output; run again to continue there.")] = Path(
        "demo-output"
    ),
    full: Annotated[
        bool, typer.Option("--full", help="Also train every other objective, three seeds and fewer views: 39 students.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use tiny sizes: shows that everything runs, proves nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a teacher on generated tasks, capture it once, train students from the cache, and compare them.

    Four students show what the cache is worth; `--full` adds all others and reuses finished ones.
    """
    from tide_cache.demo.claim import claim
    from tide_cache.demo.design import FIRST_LOOK, FULL, QUICK, WHOLE_TABLE

    size, table = QUICK if quick else FULL, WHOLE_TABLE if full else FIRST_LOOK
    claim(out, size)
    # Spinning threads would cost a busy machine most of its time. The variable is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with chatter_to_stderr():
        try:
            with Heartbeat(UNITS) as heartbeat:
                heartbeat.update("libraries", 0, 1)
                result = _run(out, size, table, heartbeat)
        except (Interrupted, KeyboardInterrupt) as error:
            stopped = Interrupted(f"Stopped; finished work is in {out}. Run the same command again to continue.")
            stopped.exit_code = getattr(error, "exit_code", stopped.exit_code)
            raise stopped from None
    if as_json:
        print_json({"results": str(result.results), "picture": str(result.picture), "out": str(out.resolve())})
        return
    _print_result(result)
    if quick:
        say("These figures come from --quick: they only show that everything runs.")
    elif not full:
        say(f"Next: tide-cache demo --full --out {out}   (three seeds, every objective, fewer views: 35 more students)")


def _run(out: Path, size: "DemoSize", table: "Table", heartbeat: Heartbeat) -> "DemoResult":
    try:
        from tide_cache.demo.run import run_demo
    except ImportError as error:
        raise TideCacheError(f"the demo draws with {error.name}: pip install 'tide-cache[report]'") from None
    return run_demo(out, size, table, heartbeat.update)


def _print_result(result: "DemoResult") -> None:
    teacher, num_seeds = result.teacher, result.num_seeds
    print_text(
        f"Teacher on held-out tasks: NLL {number(teacher.nll)}, token accuracy {percent(teacher.accuracy)}, "
        f"exact match {percent(teacher.exact_match)}"
    )
    over = f"{num_seeds} seeds" if num_seeds > 1 else "one seed"
    columns = ["tokenizer", "student", "NLL", "minus ce", "token accuracy", "exact match"]
    if num_seeds > 1:
        columns.insert(4, "seeds better")
    print_table(f"Students on the same tasks, {over}", columns, [_row(arm, num_seeds) for arm in result.arms], (0, 1))
    spread_over = "deviation over seeds" if num_seeds > 1 else "half of a 95% interval over the held-out tasks"
    print_text(f"NLL: nats per masked token, lower is better; ±: {spread_over}")
    if result.nll_at_views:
        views = ", ".join(f"{views}: {value}" for views, value in result.nll_at_views.items())
        print_text(f"Held-out NLL of `kl` by views per sample: {views}")
    for pipeline, cache in result.caches.items():
        per_position = cache.cache_bytes / max(cache.masked_positions, 1)
        views = f"{cache.num_samples} samples x {cache.num_views} views"
        print_text(f"Cache, {pipeline}: {size(cache.cache_bytes)}, {views}, {per_position:.0f} B per masked position")
    print_text(
        f"Picture: {_near(result.picture)}\nFigures: {_near(result.results)}; everything else is in the same folder"
    )


def _near(path: Path) -> Path:
    """Return a path relative to the working folder, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _row(row: "DemoRow", num_seeds: int) -> list[str]:
    nll, difference = row.nll, row.nll.difference
    cells = [TOKENIZERS[row.arm.pipeline], row.arm.name, str(nll.value), ""]
    if difference is not None:
        cells[3] = str(difference)
        if num_seeds == 1:
            cells[3] += "" if row.interval is None else f" ± {row.interval:.3f}"
    if num_seeds > 1:
        cells.append("" if difference is None else f"{nll.num_better} of {nll.num_paired}")
    return [*cells, _share(row.accuracy), _share(row.exact_match)]


def _share(spread: "Spread") -> str:
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return f"{percent(spread.mean)}{deviation}"
