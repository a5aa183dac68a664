"""GSM8K on two CPU cores: train a teacher, capture it once, train students, and print what each knows of held-out text.

Every step is a `tide-cache` command, printed before it runs; what is finished already is not run again, so an
interrupted run goes on where it stopped. From the repository's root: `.venv/bin/python examples/gsm8k-cpu/run.py`.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tide_cache.evaluation.comparison import compare, spread

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHARED = Path(os.environ.get("TIDE_CACHE_SHARED", ROOT.parent / "shared"))
TEST = SHARED / "data/gsm8k_test.jsonl"

PRESETS = {
    "shared": ["bd3lm", "kl", "calm", "tide-cross", "tide-shared", "tide-chunk"],
    "cross": ["bd3lm", "calm", "tide-cross", "tide-shared", "tide-chunk"],
}
"""Every row that a pipeline's one cache serves, the baseline first; `kl` needs tokens that both sides share."""
TOKENIZERS = {"shared": "falcon", "cross": "qwen"}


def main() -> None:
    """Run every command that has not been run, then print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=ROOT / "runs/gsm8k-cpu", help="folder of everything")
    options.add_argument("--seeds", type=int, default=3, help="students of each preset")
    options.add_argument("--teacher-steps", type=int, default=600)
    options.add_argument("--student-steps", type=int, default=150)
    options.add_argument("--held-out", type=int, default=100, help="samples of GSM8K test that are measured")
    args = options.parse_args()
    if not TEST.exists():
        sys.exit(f"{TEST}: not found; set TIDE_CACHE_SHARED to the folder that holds data/ and tokenizers/")
    results = run_everything(args.out.resolve(), args)
    print_tables(results, args.seeds)


def run_everything(out: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run teacher, captures, students and evaluations; give every evaluation by name."""
    teacher = out / "teacher"
    train("teacher", teacher, "--set", f"train.steps={args.teacher_steps}", *paths("student", "falcon"))
    results = {"teacher": evaluate(teacher, args.held_out)}
    for pipeline, presets in PRESETS.items():
        cache = out / f"cache-{pipeline}"
        if not (cache / "manifest.json").exists():
            where = ["--teacher", str(teacher / "model"), "--dataset", f"{SHARED}/data/gsm8k_train.jsonl[train:300]"]
            tokenizer = paths("student", TOKENIZERS[pipeline])
            run("build-teacher-shards", str(HERE / f"capture-{pipeline}.toml"), "--out", str(cache), *where, *tokenizer)
        for preset in presets:
            for seed in range(args.seeds):
                student = out / "students" / pipeline / preset / f"seed-{seed}"
                steps = ["--set", f"train.steps={args.student_steps}"]
                seeds = ["--set", f"student.shape.init_seed={seed}", "--set", f"data.seed={seed}"]
                tokenizer = paths("student", TOKENIZERS[pipeline])
                chosen = ["--cache", str(cache), "--preset", f"{pipeline}/{preset}"]
                train(f"student-{pipeline}", student, *chosen, *steps, *seeds, *tokenizer)
                results[f"{pipeline}/{preset}/{seed}"] = evaluate(student, args.held_out)
    return results


def paths(section: str, tokenizer: str) -> list[str]:
    """Point a run file at the tokenizer where TIDE_CACHE_SHARED says it is."""
    return ["--set", f"{section}.tokenizer.path={SHARED}/tokenizers/{tokenizer}"]


def train(run_file: str, out: Path, *options: str) -> None:
    """Train, or go on training, unless the model is there."""
    if (out / "model/config.json").exists():
        return
    resume = ["--resume"] if any(out.glob("checkpoints/*/committed.json")) else []
    if not resume:
        shutil.rmtree(out, ignore_errors=True)  # left by a run that was killed before its first checkpoint
    if run_file == "teacher":
        options = (*options, "--dataset", f"{SHARED}/data/gsm8k_train.jsonl")
    run("train", str(HERE / f"{run_file}.toml"), "--out", str(out), *options, *resume)


def evaluate(run_folder: Path, held_out: int) -> dict[str, Any]:
    """Measure a model on GSM8K test, or read what was measured."""
    file = run_folder / "eval.json"
    if not file.exists():
        limit = ["--limit", str(held_out), "--max-length", "128"]
        run("eval", str(run_folder / "model"), "--dataset", str(TEST), *limit, "--out", str(file))
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content["nll"]


def run(*command: str) -> None:
    """Run a tide-cache command in this environment; stop when it fails."""
    shown = ["tide-cache", *command]
    print("$ " + shlex.join(shown), file=sys.stderr, flush=True)
    finished = subprocess.run([sys.executable, "-m", "tide_cache_cli.main", *command], stdout=sys.stderr, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def print_tables(results: dict[str, dict[str, Any]], num_seeds: int) -> None:
    """Print NLL by t, and the mean paired against the baseline of the same tokenizer."""
    console = Console(width=130)
    times = [entry["t"] for entry in results["teacher"]["times"]][::2]
    for pipeline, presets in PRESETS.items():
        table = Table(title=f"Held-out NLL, nats per masked token, {TOKENIZERS[pipeline]} tokenizer")
        for heading in ("model", *(f"t={t:.2f}" for t in times), "mean", "minus bd3lm (paired)", "seeds better"):
            table.add_column(heading, justify="left" if heading == "model" else "right")
        if pipeline == "shared":
            table.add_row("teacher", *nll_cells([results["teacher"]], times), f"{results['teacher']['mean_nll']:.3f}")
        runs = {name: [results[f"{pipeline}/{name}/{seed}"] for seed in range(num_seeds)] for name in presets}
        baseline = {seed: found["mean_nll"] for seed, found in enumerate(runs[presets[0]])}
        for name, found in runs.items():
            values = {seed: entry["mean_nll"] for seed, entry in enumerate(found)}
            against = compare(values, None if name == presets[0] else baseline)
            better = "" if against.difference is None else f"{against.num_better} of {against.num_paired}"
            table.add_row(name, *nll_cells(found, times), str(against.value), str(against.difference or ""), better)
        console.print(table)


def nll_cells(found: list[dict[str, Any]], times: list[float]) -> list[str]:
    """Return the mean over seeds at some t of the grid."""
    at = [{entry["t"]: entry["nll"] for entry in result["times"]} for result in found]
    return [f"{spread([values[t] for values in at]).mean:.3f}" for t in times]


if __name__ == "__main__":
    main()
