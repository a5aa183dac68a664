"""How much of a teacher's gain another tokenizer keeps: (gain over ce, share of ce) across, over the same with one.

`python shares.py OUT` reads the students under OUT/students: `shared-*` and `kept-*` with the teacher's tokenizer,
`projected-*` and `conditional-*` with another one, and `told-*`, which `told.py` trained. It writes
experiments/results/smollm2-signal.json and prints the tables. Every sweep across tokenizers is compared with the `ce`
of the same cache, start and seed; students of `told.py` that take the signals of `projected` in the order of
`conditional` have the `ce` of the latter.

An interval of a share resamples starts, seeds and, where all students kept their sums by row, rows: the middle 95% of
experiments/bootstrap.py. With few pairs it is too narrow.
"""

import json
import math
import sys
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from experiments.bootstrap import share_of_gain  # noqa: E402
from experiments.statistics import interval  # noqa: E402

RESULTS = ROOT / "experiments/results/smollm2-signal.json"
KEPT, CHUNKS, PROJECTED = (
    "kl-T-2-among-the-kept",
    "chunk_kl-T-2-among-the-kept",
    "kl-projected-T-2-among-the-kept",
)
SIDES = {
    "shared": {
        "shared": ("ce", "kl"),
        "kept": (KEPT,),
        "told": (f"{KEPT}-text", f"{KEPT}-unseen", f"{KEPT}-one-to-one"),
    },
    "cross": {
        "projected": ("ce", "chunk_kl", CHUNKS, "kl-projected", PROJECTED, f"{PROJECTED}-truth-elsewhere"),
    },
    "conditional": {
        "conditional": ("ce", PROJECTED, CHUNKS, "x-token", f"{PROJECTED}-least-sure"),
        "told": (f"{PROJECTED}-asked-once",),
    },
}
"""By side: the sweeps whose students are compared with its `ce`, and their arms."""
ACROSS = {
    "chunk_kl": ("cross", "chunk_kl", "kl"),
    "kl_projected": ("cross", "kl-projected", "kl"),
    "chunk_kl_kept": ("cross", CHUNKS, KEPT),
    "kl_projected_kept": ("cross", PROJECTED, KEPT),
    "kl_projected_kept_truth_elsewhere": ("cross", f"{PROJECTED}-truth-elsewhere", KEPT),
    "chunk_kl_kept_conditional": ("conditional", CHUNKS, KEPT),
    "kl_projected_kept_conditional": ("conditional", PROJECTED, KEPT),
    "kl_projected_kept_asked_once": ("conditional", f"{PROJECTED}-asked-once", KEPT),
    "kl_projected_kept_conditional_least_sure": ("conditional", f"{PROJECTED}-least-sure", KEPT),
    "x_token_conditional": ("conditional", "x-token", "kl"),
}
"""Shares by name: side and arm across tokenizers, and the arm with the teacher's own with which it is compared."""
TEACHER, BEST = "smollm2", "kl_projected_kept_conditional"
"""The share that is quoted for the teacher; it was chosen before it was measured."""
Pair = tuple[str, int]
Students = dict[str, dict[Pair, dict[str, Any]]]


def main(out: Path) -> None:
    """Write the JSON, and print tables as Markdown."""
    sides = {side: _students(out / "students", sweeps) for side, sweeps in SIDES.items()}
    arms = {side: {name: _arm(every, name) for name in every if every[name]} for side, every in sides.items()}
    shares = {
        f"share_of_gain_kept_{name}": _share(sides[side], arm, sides["shared"], own)
        for name, (side, arm, own) in ACROSS.items()
        if sides[side].get(arm)
    }
    best = shares[f"share_of_gain_kept_{BEST}"]
    figures = {
        f"share_of_gain_kept_{TEACHER}{end}": best[name]
        for end, name in (("", "share"), ("_low", "low"), ("_high", "high"))
    }
    document = {"figures": figures, "arms": arms, "shares": shares}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for side, of_side in arms.items():
        print(f"\n| {side}: arm | students | bits per byte | minus ce |\n|---|---|---|---|")
        for name, arm in of_side.items():
            gain, width = arm["minus_ce"]["mean"], arm["minus_ce"]["half_width"]
            told = "" if name == "ce" else f"{gain:+.4f}" if width is None else f"{gain:+.4f} ± {width:.4f}"
            print(f"| {name} | {arm['students']} | {arm['bits_per_byte']:.4f} | {told} |")
    print("\n| share of gain kept | pairs | rows | share | 95% |\n|---|---|---|---|---|")
    for name, share in shares.items():
        low, high = share["low"], share["high"]
        print(f"| {name} | {share['pairs']} | {share['rows']} | {share['share']:.2f} | {low:.2f} to {high:.2f} |")


def _students(students: Path, sweeps: dict[str, tuple[str, ...]]) -> Students:
    """Return the held-out figures of each student, by arm, start and seed."""
    found: Students = {}
    for sweep, names in sweeps.items():
        for name in names:
            files = sorted(students.glob(f"{sweep}-*/{name}/seed-*/held-out.json"))
            found[name] = {_pair(file): json.loads(file.read_text(encoding="utf-8"))["nll"] for file in files}
    return found


def _pair(file: Path) -> Pair:
    """Return start and seed of a student, from its path."""
    return file.parts[-4].partition("-")[2], int(file.parent.name.removeprefix("seed-"))


def _bits(report: dict[str, Any]) -> float:
    bits: float = report["nats_per_byte"] / math.log(2)
    return bits


def _arm(students: Students, name: str) -> dict[str, Any]:
    arm, baseline = students[name], students["ce"]
    pairs = [pair for pair in sorted(arm) if pair in baseline]
    gain = interval([_bits(arm[pair]) - _bits(baseline[pair]) for pair in pairs])
    return {
        "students": len(pairs),
        "bits_per_byte": mean(_bits(arm[pair]) for pair in pairs),
        "minus_ce": {"mean": gain.mean, "half_width": gain.half_width},
        "by_student": {f"{start}/{seed}": _bits(arm[start, seed]) for start, seed in pairs},
    }


def _share(across: Students, arm: str, shared: Students, own: str) -> dict[str, Any]:
    """Return the share with its interval, over the pairs that all four arms have."""
    found = share_of_gain(across[arm], across["ce"], shared[own], shared["ce"])
    return {
        "share": found.value,
        "low": found.low,
        "high": found.high,
        "pairs": found.students,
        "rows": found.rows,
        "compared_with": own,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
