"""Figures of the example in one file, and the tables of docs/experiments.md.

`python results.py OUT` reads what run.py left under OUT and writes experiments/results/smollm2-cpu.json. Differences to
cross-entropy are paired by start and seed; intervals are 95 % by Student's t, over the three seeds of a start and over
all pairs of start and seed.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from experiments.statistics import Interval, interval  # noqa: E402

RESULTS = ROOT / "experiments/results/smollm2-cpu.json"
PIPELINES, CUTS, BASELINE, CONTROL = ("shared", "cross"), ("even", "ends"), "ce", "chunk_kl-p-1"
_BOTH = {"ce": "ce", "ce-1.1-x-the-steps": "ce, 1.1 x the steps"}
_TRUTH = {"tidal": "tidal", "calm": "calm", "reverse_calm": "reverse_calm"}
ARMS = {
    "shared": _BOTH | {"kl": "kl"} | _TRUTH,
    "cross": _BOTH | {"chunk_kl": "chunk_kl", CONTROL: "chunk_kl, p = 1"} | _TRUTH,
}
"""Folders of the arms, and how tables name them."""
Key = tuple[str, int]


def main(out: Path) -> None:
    """Write the JSON, and print the tables as Markdown."""
    arms = {pipeline: _students(out, pipeline) for pipeline in PIPELINES}
    document = {
        "teacher": _figures(_read(out / "teacher/eval.json")["nll"]) | _solved(out / "teacher"),
        "starts": {
            f"{pipeline}-{cut}": _figures(_read(out / f"starts/{pipeline}-{cut}/eval.json")["nll"])
            for pipeline in PIPELINES
            for cut in CUTS
        },
        "arms": {pipeline: {name: _arm(found, arms[pipeline][BASELINE]) for name, found in arms[pipeline].items()}
                 for pipeline in PIPELINES},
        "solved": {
            f"{pipeline}/{name}": _solved(student)
            for pipeline in PIPELINES
            for folder, name in ARMS[pipeline].items()
            if (student := out / f"students/{pipeline}-even/{folder}/seed-0").joinpath("answers.json").exists()
        },
    }  # fmt: skip
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for pipeline in PIPELINES:
        print(_table(pipeline, document["arms"][pipeline]))


def _students(out: Path, pipeline: str) -> dict[str, dict[Key, dict[str, Any]]]:
    """Return the held-out figures of every student, by arm, then by start and seed."""
    found: dict[str, dict[Key, dict[str, Any]]] = {}
    for cut in CUTS:
        sweep = out / f"students/{pipeline}-{cut}"
        for folder, name in ARMS[pipeline].items():
            for student in sorted((sweep / folder).glob("seed-*")):
                measured = student / ("eval.json" if folder == CONTROL else "held-out.json")
                if measured.exists():
                    seed = int(student.name.removeprefix("seed-"))
                    found.setdefault(name, {})[cut, seed] = _figures(_read(measured)["nll"])
    return found


def _figures(nll: dict[str, Any]) -> dict[str, Any]:
    return {
        "bits_per_byte": nll["nats_per_byte"] / math.log(2),
        "nll": nll["mean_nll"],
        "token_accuracy": nll["mean_accuracy"],
        "nll_by_t": {f"{entry['t']:.2f}": entry["nll"] for entry in nll["times"]},
    }


def _arm(students: dict[Key, dict[str, Any]], baseline: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    keys = [key for key in sorted(students) if key in baseline]
    bits = {key: students[key]["bits_per_byte"] for key in keys}
    gains = {key: bits[key] - baseline[key]["bits_per_byte"] for key in keys}
    return {
        "bits_per_byte": _shown(interval(list(bits.values()))),
        "token_accuracy": sum(students[key]["token_accuracy"] for key in keys) / len(keys),
        "minus_ce": _shown(interval(list(gains.values()))),
        "minus_ce_by_start": {
            cut: _shown(interval(chosen))
            for cut in CUTS
            if (chosen := [gain for key, gain in gains.items() if key[0] == cut])
        },
        "students": {f"{cut}/{seed}": students[cut, seed] for cut, seed in sorted(students)},
    }


def _shown(found: Interval) -> dict[str, Any]:
    return {"mean": found.mean, "half_width": found.half_width, "count": found.num_values}


def _solved(folder: Path) -> dict[str, Any]:
    file = folder / "answers.json"
    if not file.exists():
        return {}
    content = _read(file)
    return {name: content[name] for name in ("problems", "right", "finals")} | {"samples": content["answers"][:3]}


def _table(pipeline: str, arms: dict[str, Any]) -> str:
    lines = [
        f"\n<!-- table: smollm2 {pipeline} -->",
        "| arm | students | bits per byte | minus ce | start `even` | start `ends` | token accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arm in arms.items():
        by_start = [_cell(arm["minus_ce_by_start"].get(cut), name) for cut in CUTS]
        cells = [name, str(arm["bits_per_byte"]["count"]), _plain(arm["bits_per_byte"]), _cell(arm["minus_ce"], name),
                 *by_start, f"{100 * arm['token_accuracy']:.1f}%"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "<!-- end -->"])


def _plain(found: dict[str, Any]) -> str:
    return f"{found['mean']:.4f}"


def _cell(found: dict[str, Any] | None, name: str) -> str:
    if found is None or name == BASELINE:
        return ""
    width = "" if found["half_width"] is None else f" ± {found['half_width']:.4f}"
    text = f"{found['mean']:+.4f}{width}"
    return f"**{text}**" if found["half_width"] is not None and abs(found["mean"]) > found["half_width"] else text


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main(Path(sys.argv[1]))
