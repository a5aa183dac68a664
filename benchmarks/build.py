"""What stage 1 costs beyond the teacher: GSM8K under a Qwen3 of random weights, with the real vocabulary.

Random weights spread their mass, so every row keeps `top_k` ids, the most that a row can write. The teacher is as wide
as the published student and has fewer layers; a real one is wider and deeper, so it takes more time of the same work
around it. Whether memory grows with the corpus is asked of a smaller one, with shards of the same size.
"""

import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import Qwen3Config

from benchmarks.options import Options, shared_file
from benchmarks.processes import in_own_process, peak_rss
from tide_cache.building import identity
from tide_cache.building.driver import build_cache
from tide_cache.building.prepare import prepare_build
from tide_cache.building.prepared_build import PreparedBuild
from tide_cache.building.shard import build_shard
from tide_cache.building.worker import load_teacher
from tide_cache.config.build import BuildRun
from tide_cache.locations import CachePath
from tide_cache.manifest import CacheFolder
from tide_cache.modeling.backbone import Backbone, new_backbone
from tide_cache.modeling.checkpoint import save_student
from tide_cache.modeling.packing import PackedInput
from tide_cache.pairing import TextTokenizer
from tide_cache.shards import LocalFiles, writer
from tide_cache.teacher import capture
from tide_cache.teacher.capture import Teacher

TEACHER = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16}
SMALL_TEACHER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
FEW_ROWS, MANY_ROWS, ROWS_PER_SHARD = 40, 400, 20
"""For the question whether memory grows: twenty shards instead of two, as many as a worker ever holds."""
TOKENIZER: Path | None = None
"""Folder of another tokenizer than Qwen's, for a small run."""
MASK = {"mask_token": "<|tide-mask|>", "add_mask_token": True}
NUM_VIEWS = 4
SHARDS = 4


class Stopwatch:
    """Seconds by name; a call inside another of the same name counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: set[str] = set()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, on the clock."""

        def run(*arguments: Any, **options: Any) -> Any:
            if name in self._running:
                return work(*arguments, **options)
            self._running.add(name)
            start = perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                self._running.remove(name)
                self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

        return run


class _TimedHashes:
    """Stands for `hashlib` in the writer."""

    def __init__(self, watch: Stopwatch, hashes: Any) -> None:
        self.sha256 = watch.timed("guard", hashes.sha256)


class _TimedBackbone:
    """Notes what the model was shown, so that it can be shown the same again with nothing around it."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.device, self.head_VD = backbone.device, backbone.head_VD
        self.shown: list[PackedInput] = []
        self.num_rows: list[int] = []

    def __call__(self, packed: PackedInput) -> torch.Tensor:
        self.shown.append(packed)
        return self._backbone(packed)

    def eval(self) -> "_TimedBackbone":
        return self

    @torch.no_grad()
    def forward_only(self, head_rows: int) -> None:
        """Show everything again: hidden states and the logits of masked rows, thrown away."""
        for packed, num_rows in zip(self.shown, self.num_rows, strict=True):
            hidden_BSD = self._backbone(packed)
            hidden_ND = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])[:num_rows]
            for start in range(0, num_rows, head_rows):
                hidden_ND[start : start + head_rows] @ self.head_VD.T


def run(options: Options) -> dict[str, float]:
    """Capture a corpus, and let the teacher alone see the same batches, in turns."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        values = run_values(Path(folder), options.rows, TEACHER)
        for number in range(options.repeats):
            values["build"]["out"] = str(Path(folder) / f"cache-{number}")
            rounds.append(_round(BuildRun.model_validate(values)))
    return {name: median(one[name] for one in rounds) for name in rounds[0]} | _growth()


def _growth() -> dict[str, float]:
    """Return the peak of whole builds of few and of ten times as many rows, each in a separate process."""
    peaks = []
    for num_rows in (FEW_ROWS, MANY_ROWS):
        with tempfile.TemporaryDirectory() as folder:
            values = run_values(Path(folder), num_rows, SMALL_TEACHER)
            values["views"] = {"num_views": 1}
            values["build"] |= {"out": str(Path(folder) / "cache"), "samples_per_shard": ROWS_PER_SHARD}
            peaks.append(in_own_process(_peak_of_build, values) / 2**20)
    return {"small_rss_mib": peaks[0], "small_rss_mib_10x": peaks[1], "rss_ratio_10x": peaks[1] / peaks[0]}


def _peak_of_build(values: dict[str, Any]) -> int:
    build_cache(BuildRun.model_validate(values))
    return peak_rss()


def _round(run: BuildRun) -> dict[str, float]:
    watch = Stopwatch()
    with _patched(identity, "checkpoint_fingerprint", watch.timed("guard", identity.checkpoint_fingerprint)):
        build = prepare_build(run)
    loaded = load_teacher(run, build, "cpu")
    backbone = _TimedBackbone(loaded._backbone)
    teacher = Teacher(backbone, build.capture)
    teacher.signals = watch.timed("teacher", teacher.signals)
    start = perf_counter()
    _capture(build, teacher, backbone, _timed_folder(run.build.out, watch), watch)
    capture_s = perf_counter() - start
    peak_rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = perf_counter()
    backbone.forward_only(build.capture.head_rows)
    forward_only_s = perf_counter() - start
    seconds = watch.seconds
    num_tokens = sum(packed.ids_BS.numel() for packed in backbone.shown)
    return {
        "capture_s": capture_s,
        "teacher_s": seconds["teacher"],
        "forward_only_s": forward_only_s,
        "write_s": seconds["write"],
        "guard_s": seconds["guard"],
        "write_share": seconds["write"] / seconds["teacher"],
        "guard_share": seconds["guard"] / capture_s,
        "overhead_ratio": capture_s / forward_only_s,
        "tokens_per_s": num_tokens / capture_s,
        "masked_rows": float(sum(backbone.num_rows)),
        "cache_mib": sum(path.stat().st_size for path in Path(str(run.build.out)).rglob("*.parquet")) / 2**20,
        "peak_rss_mib": peak_rss_mib,
    }


def _capture(
    build: PreparedBuild, teacher: Teacher, backbone: _TimedBackbone, folder: CacheFolder, watch: Stopwatch
) -> None:
    """Build every shard and the manifest; the guards are what could be left out if nothing ever went wrong."""
    start_row_signals = capture.start_row_signals

    def counted(hidden_ND: torch.Tensor, *rest: Any) -> Any:
        backbone.num_rows.append(len(hidden_ND))
        return start_row_signals(hidden_ND, *rest)

    with (
        _patched(capture, "start_row_signals", counted),
        _patched(writer, "check_pairs", watch.timed("guard", writer.check_pairs)),
        _patched(writer, "check_signals", watch.timed("guard", writer.check_signals)),
        _patched(writer, "hashlib", _TimedHashes(watch, writer.hashlib)),
        _patched(writer, "_encode", watch.timed("write", writer._encode)),
        _patched(writer, "_signals_table", watch.timed("write", writer._signals_table)),
    ):
        folder.begin(build.identity, build.plan, build.passes)
        for shard in range(build.plan.num_shards):
            build_shard(build, teacher, folder, shard, lambda count: None)
        folder.finish(build.passes)


def _timed_folder(root: CachePath, watch: Stopwatch) -> CacheFolder:
    files = LocalFiles()
    for name in ("create", "replace", "sync_folder", "make_folder", "remove_leftovers"):
        setattr(files, name, watch.timed("guard", getattr(files, name)))
    folder = CacheFolder(root, files)
    for name in ("begin", "is_committed", "finish"):
        setattr(folder, name, watch.timed("write", watch.timed("guard", getattr(folder, name))))
    folder.commit = watch.timed("write", folder.commit)
    return folder


class _patched:
    """Puts another value in a module's place for a while."""

    def __init__(self, module: Any, name: str, value: Any) -> None:
        self._module, self._name, self._value = module, name, value

    def __enter__(self) -> None:
        self._before = getattr(self._module, self._name)
        setattr(self._module, self._name, self._value)

    def __exit__(self, *error: object) -> None:
        setattr(self._module, self._name, self._before)


def run_values(folder: Path, num_rows: int, shape: dict[str, int]) -> dict[str, Any]:
    """Write corpus and teacher into a folder, and give the run file of a build without `build.out`."""
    lines = shared_file("data/gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:num_rows]
    (folder / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, map(json.loads, lines))) + "\n", encoding="utf-8")
    path = str(TOKENIZER or shared_file("tokenizers/qwen"))
    tokenizer = TextTokenizer.load(path, **MASK)
    config = Qwen3Config(
        vocab_size=tokenizer.vocab_size, **shape, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    teacher = new_backbone(config, torch.float32, "cpu", seed=0)
    save_student(folder / "teacher", teacher.model.state_dict(), config, tokenizer, {})
    qwen = {"path": path, **MASK}
    return {
        "corpus": {"spec": str(folder / "gsm8k.jsonl")},
        "teacher": {"model": str(folder / "teacher"), "tokenizer": qwen, "dtype": "float32", "device": "cpu"},
        "student": {"tokenizer": qwen},
        "views": {"num_views": NUM_VIEWS},
        "build": {"samples_per_shard": max(1, num_rows // SHARDS)},
    }
