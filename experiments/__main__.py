"""Runs the experiment, or goes on with it, and writes what was found: `python -m experiments run`, then `report`."""

import argparse
import os
import sys
import time
from pathlib import Path

from experiments.arms import STAGES
from experiments.material import make_material
from experiments.report import read_results, write_report, write_results
from experiments.sizes import SIZES
from experiments.stages import Experiment, num_cores
from experiments.trials import make_starts, run_stage
from tide_cache.errors import TideCacheError

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TIDE_CACHE_SHARED", ROOT.parent / "shared"))


def main() -> None:
    """Read the command line and do as it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "report"), help="run: all stages that are left; report: tables, plots")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--out", type=Path, help="folder of everything; by default runs/experiments-SIZE")
    parser.add_argument("--hours", type=float, default=float("inf"), help="start nothing after so long")
    parser.add_argument("--only", default="", help="run the stages whose names begin so, with teacher and starts")
    parser.add_argument("--processes", type=int, default=num_cores(), help="students at a time")
    args = parser.parse_args()
    experiment = Experiment((args.out or ROOT / f"runs/experiments-{args.size}").resolve(), SIZES[args.size])
    results_file = ROOT / f"experiments/results/{args.size}.json"
    try:
        if args.what == "run":
            run(experiment, args.processes, time.monotonic() + 3600 * args.hours, args.only)
            write_results(experiment, results_file)
        else:
            write_report(read_results(results_file), ROOT / "docs")
    except TideCacheError as error:
        sys.exit(str(error))


def run(experiment: Experiment, processes: int, until: float, only: str) -> None:
    """Do what is left, stage by stage; `only`: of stages whose names begin so."""
    say("material")
    make_material(experiment.root / "material", SHARED, experiment.size.held_out, experiment.size.vocabularies)
    say("teacher")
    experiment.train_teacher()
    say("students' starts")
    make_starts(experiment)
    results = {}
    for stage in (stage for stage in STAGES if stage.name.startswith(only)):
        if time.monotonic() > until:
            return
        say(stage.name)
        for trial in run_stage(experiment, stage, results, processes, lambda: time.monotonic() > until):
            measured = results[trial.key]
            seconds = measured["cpu_s"]["train"]
            say(f"{trial.key}: validation {measured['validation']['nll']:.4f}, trained in {seconds:.0f} s of CPU time")


def say(message: str) -> None:
    """Print progress to stderr."""
    print(time.strftime("%H:%M:%S"), message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
