"""How much of a teacher's gain another tokenizer keeps: (gain over ce, share of ce) across, over the same with one.

`python shares.py OUT` reads the students under OUT/students: `shared-*` and `kept-*` with the teacher's tokenizer,
`projected-*` with another one. It writes experiments/results/smollm2-signal.json and prints the tables.

Gains are paired by start and seed. An interval of a share is the middle 95 % of 10,000 resamples of starts, seeds and
rows, the same on both sides. Where a student was measured before its sums by row were kept, rows are not resampled;
`tide-cache eval MODEL --by-row --out held-out.json` measures it again.
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
SHARED = {"shared": ("ce", "kl"), "kept": ("kl-T-2-among-the-kept",)}
CROSS = {
    "projected": (
        "ce",
        "chunk_kl",
        "chunk_kl-T-2-among-the-kept",
        "kl-projected",
        "kl-projected-T-2-among-the-kept",
        "kl-projected-T-2-among-the-kept-truth-elsewhere",
    )
}
ACROSS = {
    "chunk_kl": ("chunk_kl", "kl"),
    "kl_projected": ("kl-projected", "kl"),
    "chunk_kl_kept": ("chunk_kl-T-2-among-the-kept", "kl-T-2-among-the-kept"),
    "kl_projected_kept": ("kl-projected-T-2-among-the-kept", "kl-T-2-among-the-kept"),
    "kl_projected_kept_truth_elsewhere": (
        "kl-projected-T-2-among-the-kept-truth-elsewhere",
        "kl-T-2-among-the-kept",
    ),
}
"""Shares by name: the arm across tokenizers, and that with the teacher's own with which it is compared."""
Pair = tuple[str, int]
Arms = dict[str, dict[Pair, dict[str, Any]]]
"""Held-out figures by arm, then by start and seed."""


def main(out: Path) -> None:
    """Write the JSON, and print tables as Markdown."""
    shared, cross = (_measured(out / "students", arms) for arms in (SHARED, CROSS))
    shares = {
        f"share_of_gain_kept_{name}": _share(cross, arm, shared, of_shared) for name, (arm, of_shared) in ACROSS.items()
    }
    sides = {"shared": shared, "cross": cross}
    arms = {side: {name: _arm(found, name) for name in found if found[name]} for side, found in sides.items()}
    RESULTS.write_text(json.dumps({"arms": arms, "shares": shares}, indent=1) + "\n", encoding="utf-8")
    for side, of_side in arms.items():
        print(f"\n| {side}: arm | students | bits per byte | minus ce |\n|---|---|---|---|")
        for name, arm in of_side.items():
            gain = "" if name == "ce" else f"{arm['minus_ce']['mean']:+.4f} ± {arm['minus_ce']['half_width']:.4f}"
            print(f"| {name} | {arm['students']} | {arm['bits_per_byte']:.4f} | {gain} |")
    print("\n| share of gain kept | pairs | share | 95% |\n|---|---|---|---|")
    for name, share in shares.items():
        print(f"| {name} | {share['pairs']} | {share['share']:.2f} | {share['low']:.2f} to {share['high']:.2f} |")


def _measured(students: Path, arms: dict[str, tuple[str, ...]]) -> Arms:
    found: Arms = {}
    for sweep, names in arms.items():
        for name in names:
            files = sorted(students.glob(f"{sweep}-*/{name}/seed-*/held-out.json"))
            found[name] = {_pair(file): _read(file)["nll"] for file in files}
    return found


def _pair(file: Path) -> Pair:
    """Return start and seed of a student, from its path."""
    return file.parts[-4].partition("-")[2], int(file.parent.name.removeprefix("seed-"))


def _arm(arms: Arms, name: str) -> dict[str, Any]:
    bits, baseline = (
        {pair: nll["nats_per_byte"] / math.log(2) for pair, nll in arms[arm].items()} for arm in (name, "ce")
    )
    pairs = [pair for pair in sorted(bits) if pair in baseline]
    gain = interval([bits[pair] - baseline[pair] for pair in pairs])
    return {
        "students": len(pairs),
        "bits_per_byte": mean(bits[pair] for pair in pairs),
        "minus_ce": {"mean": gain.mean, "half_width": gain.half_width},
        "by_student": {f"{start}/{seed}": bits[start, seed] for start, seed in pairs},
    }


def _share(cross: Arms, arm: str, shared: Arms, of_shared: str) -> dict[str, Any]:
    """Return the share with its interval, over the pairs that all four arms have."""
    found = share_of_gain(cross[arm], cross["ce"], shared[of_shared], shared["ce"])
    interval_of = {"low": found.low, "high": found.high, "pairs": found.students, "rows": found.rows}
    return {"share": found.value, **interval_of, "compared_with": of_shared}


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]))
