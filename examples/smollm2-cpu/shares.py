"""How much of a teacher's gain another tokenizer keeps: (gain over ce, share of ce) across, over the same with one.

`python shares.py OUT` reads the students under OUT/students: `shared-*` and `kept-*` with the teacher's tokenizer,
`projected-*` with another one. It writes experiments/results/smollm2-signal.json and prints the tables.

Gains are paired by start and seed. An interval of a share is the middle 95 % of 10,000 resamples of these pairs, the
same pairs on both sides; with few pairs it is too narrow. Rows are not resampled.
"""

import json
import math
import sys
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

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
RESAMPLES = 10_000
Pair = tuple[str, int]
Bits = dict[str, dict[Pair, float]]


def main(out: Path) -> None:
    """Write the JSON, and print tables as Markdown."""
    shared, cross = (_bits_per_byte(out / "students", arms) for arms in (SHARED, CROSS))
    shares = {
        f"share_of_gain_kept_{name}": _share(cross, arm, shared, of_shared) for name, (arm, of_shared) in ACROSS.items()
    }
    sides = {"shared": shared, "cross": cross}
    arms = {side: {name: _arm(bits, name) for name in bits if bits[name]} for side, bits in sides.items()}
    RESULTS.write_text(json.dumps({"arms": arms, "shares": shares}, indent=1) + "\n", encoding="utf-8")
    for side, of_side in arms.items():
        print(f"\n| {side}: arm | students | bits per byte | minus ce |\n|---|---|---|---|")
        for name, arm in of_side.items():
            gain = "" if name == "ce" else f"{arm['minus_ce']['mean']:+.4f} ± {arm['minus_ce']['half_width']:.4f}"
            print(f"| {name} | {arm['students']} | {arm['bits_per_byte']:.4f} | {gain} |")
    print("\n| share of gain kept | pairs | share | 95% |\n|---|---|---|---|")
    for name, share in shares.items():
        print(f"| {name} | {share['pairs']} | {share['share']:.2f} | {share['low']:.2f} to {share['high']:.2f} |")


def _bits_per_byte(students: Path, arms: dict[str, tuple[str, ...]]) -> Bits:
    found: Bits = {}
    for sweep, names in arms.items():
        for name in names:
            files = sorted(students.glob(f"{sweep}-*/{name}/seed-*/held-out.json"))
            found[name] = {_pair(file): _read(file)["nll"]["nats_per_byte"] / math.log(2) for file in files}
    return found


def _pair(file: Path) -> Pair:
    """Return start and seed of a student, from its path."""
    return file.parts[-4].partition("-")[2], int(file.parent.name.removeprefix("seed-"))


def _arm(bits: Bits, name: str) -> dict[str, Any]:
    pairs = [pair for pair in sorted(bits[name]) if pair in bits["ce"]]
    gain = interval([bits[name][pair] - bits["ce"][pair] for pair in pairs])
    return {
        "students": len(pairs),
        "bits_per_byte": mean(bits[name][pair] for pair in pairs),
        "minus_ce": {"mean": gain.mean, "half_width": gain.half_width},
        "by_student": {f"{start}/{seed}": bits[name][start, seed] for start, seed in pairs},
    }


def _share(cross: Bits, arm: str, shared: Bits, of_shared: str) -> dict[str, Any]:
    """Return the share with its interval, over the pairs that all four arms have."""
    pairs = sorted({*cross[arm]} & {*cross["ce"]} & {*shared[of_shared]} & {*shared["ce"]})
    random = Random(0)

    def of(chosen: list[Pair]) -> float:
        across, own = (
            mean(bits["ce"][pair] - bits[name][pair] for pair in chosen) / mean(bits["ce"][pair] for pair in chosen)
            for bits, name in ((cross, arm), (shared, of_shared))
        )
        return across / own

    resampled = sorted(of(random.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = (resampled[round(q * (RESAMPLES - 1))] for q in (0.025, 0.975))
    return {"share": of(pairs), "low": low, "high": high, "pairs": len(pairs), "compared_with": of_shared}


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]))
