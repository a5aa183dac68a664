"""How long the second run and the second worker of a build take until the teacher sees something.

The first run reads, hashes, renders and pairs `--rows` rows of made-up text, publishes their pairs, and builds one
shard with a tiny teacher. Then a process like those of `--workers N` gets another shard, and the same command runs
again over what is there. Seconds are of their processors, up to the first view shown; a forward shows one view, so that
next to no work on the shard is in them.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.build import SMALL_TEACHER, run_values
from benchmarks.options import Options
from tide_cache.building.executors.processes import WORKER
from tide_cache.child import Child
from tide_cache.config.build import BuildRun
from tide_cache_cli.run_toml import run_toml

SHARD_SAMPLES = 512
IMPORTS = "import tide_cache.building.executors.worker_process, transformers.models.qwen3.modeling_qwen3"


def run(options: Options) -> dict[str, float]:
    """Build the first shard, then start others; a tenth of the rows shows what grows with them."""
    figures = {}
    for name, num_rows in (("_10th", options.rows // 10), ("", options.rows)):
        with tempfile.TemporaryDirectory(prefix="tide-cache-starts-") as folder:
            found = _starts(Path(folder), num_rows, options.repeats)
            figures |= {f"{key}{name}": value for key, value in found.items()}
    figures["imports_s"] = median(_cpu_s([sys.executable, "-c", IMPORTS]) for _ in range(options.repeats))
    return figures


def _starts(folder: Path, num_rows: int, repeats: int) -> dict[str, float]:
    values = run_values(folder, 1, SMALL_TEACHER)
    with (folder / "sums.jsonl").open("w", encoding="utf-8") as file:
        for row in range(num_rows):
            said = {"question": f"What is {row} plus {row % 97}?", "answer": f"It is {row + row % 97}."}
            file.write(json.dumps(said) + "\n")
    values["corpus"]["spec"] = str(folder / "sums.jsonl")
    values["views"] = {"num_views": 1}
    values["build"] = {"out": str(folder / "cache"), "samples_per_shard": SHARD_SAMPLES, "batch_tokens": 64}
    build_run = BuildRun.model_validate(values)
    (folder / "run.toml").write_text(run_toml(build_run), encoding="utf-8")
    command = [sys.executable, "-m", "tide_cache_cli.main", "build-teacher-shards", str(folder / "run.toml")]
    command += ["--shard-range", "0:1"]
    first_s = _cpu_s(command)
    again_s = median(_cpu_s(command) for _ in range(repeats))
    workers = [_worker_s(build_run, shard) for shard in range(1, 1 + repeats)]
    cpu_s, clock_s = (median(one) for one in zip(*workers, strict=True))
    return {
        "first_run_s": first_s,
        "nothing_to_do_s": again_s,
        "second_worker_s": cpu_s,
        "second_worker_by_clock_s": clock_s,
    }


def _worker_s(build_run: BuildRun, shard: int) -> tuple[float, float]:
    """Return the seconds until a worker's first view, of its processor and by the clock."""
    started_s = time.perf_counter()
    child = Child([WORKER], {}, 1)
    try:
        child.send(json.dumps({"run": build_run.model_dump(mode="json"), "device": "cpu"}))
        child.send(json.dumps(shard))
        while not child.has_ended:
            if any("views" in answer for answer in child.read()):
                break
        clock_s = time.perf_counter() - started_s
        ticks = Path(f"/proc/{child.popen.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), clock_s
    finally:
        child.popen.kill()
        child.bury()


def _cpu_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
