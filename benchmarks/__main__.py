"""Runs one benchmark, prints its figures and writes them with the machine and the command."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import (
    amortise,
    build,
    chunks,
    codec,
    growth,
    head,
    inference,
    launches,
    loader,
    multiview,
    online,
    packing,
    pairing,
    plan,
    ranks,
    scale,
    starts,
    step,
    tails,
    traffic,
)
from benchmarks.machine import describe_machine
from benchmarks.options import MaterialMissing, Options

BENCHMARKS: dict[str, Callable[[Options], dict[str, float]]] = {
    "amortise": amortise.run,
    "build": build.run,
    "chunks": chunks.run,
    "codec": codec.run,
    "growth": growth.run,
    "head": head.run,
    "inference": inference.run,
    "launches": launches.run,
    "loader": loader.run,
    "multiview": multiview.run,
    "online": online.run,
    "packing": packing.run,
    "pairing": pairing.run,
    "plan": plan.run,
    "ranks": ranks.run,
    "scale": scale.run,
    "starts": starts.run,
    "step": step.run,
    "tails": tails.run,
    "traffic": traffic.run,
}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark that the arguments name.

    Args:
        arguments: Of the command line, without the program.

    Returns:
        Exit status: 2 when material is missing.
    """
    given = _parser().parse_args(arguments)
    try:
        figures = BENCHMARKS[given.name](Options(given.rows, given.repeats, given.teacher, given.student, given.cache))
    except MaterialMissing as error:
        print(f"benchmarks {given.name}: {error}", file=sys.stderr)
        return 2
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:>14,.2f}" if abs(value) >= 0.01 else f"{name:<{width}}  {value:>14.2g}")
    if given.json is not None:
        command = shlex.join(["python", "-m", "benchmarks", *arguments])
        record = {"figures": figures, "machine": describe_machine(), "command": command}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure one of the design's bars.")
    parser.add_argument("name", choices=sorted(BENCHMARKS), metavar="NAME", help=f"one of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, the machine and the command here")
    parser.add_argument("--rows", type=_positive, default=Options.rows, help="rows of the corpus (%(default)s)")
    parser.add_argument("--repeats", type=_positive, default=Options.repeats, help="timed rounds (%(default)s)")
    for who in ("teacher", "student"):
        parser.add_argument(
            f"--{who}",
            type=Path,
            metavar="MODEL",
            help=f"folder of a trained {who}, for tails and codec" + (", and inference" if who == "student" else ""),
        )
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="complete cache with real rows, for codec")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
