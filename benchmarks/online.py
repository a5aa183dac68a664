"""Training from a cache against training with the teacher in the loop, as the paper does: time and peak memory.

Both take the same samples with the same masks. Time: one step of each in every round. Memory: each in a process of its
own, of that process on CPUs and of the allocator on a GPU.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.material import Loading, Shape, write_cache
from benchmarks.online_reference import Method, OnlineBatch, OnlineSettings, OnlineTrainer, make_batch
from benchmarks.options import Options
from benchmarks.processes import in_own_process, peak_rss
from benchmarks.published_shapes import SMALL_LLADA2, SMALL_STUDENT, SMALL_WEDLM, Config, random_backbone
from benchmarks.step import Batch
from benchmarks.students import Trainee, objectives_of, shape_of, signals_of
from benchmarks.timing import Timings
from tide_cache.config.presets import PRESETS
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import Manifest
from tide_cache.modeling.backbone import ADAPTERS, DTYPES
from tide_cache.records import ViewRecord

ROWS: dict[str, tuple[Method, float]] = {
    "cross/calm": ("calm", 5.0),
    "cross/tide-shared": ("tidal_calm", 5.0),
    "cross/tide-cross": ("reverse_calm", 5.0),
    "shared/kl": ("kl", 2.0),
    "shared/tide-shared": ("tidal_kl", 2.0),
    "shared/tide-cross": ("reverse_kl", 2.0),
}
"""The paper's six runs, with what each adds to the cross-entropy, and its T."""


@dataclass(frozen=True)
class Setting:
    """A pipeline on a machine.

    Attributes:
        pipeline: `cross` (A): the teacher is shown x_t alone. `shared` (B): [x_t, x_0].
        student: Configuration.
        teacher: Configuration.
        length: Tokens of a sample.
        micro_batch: Samples of a step.
        precision: Of all.
        device: Where.
    """

    pipeline: Literal["cross", "shared"]
    student: Config
    teacher: Config
    length: int
    micro_batch: int
    precision: str = "float32"
    device: str = "cpu"

    @property
    def shape(self) -> Shape:
        """Of the cache."""
        return shape_of(self.pipeline, 2 * self.micro_batch, self.length, self.student["vocab_size"])

    @property
    def rows(self) -> tuple[str, ...]:
        """The runs of this pipeline."""
        return tuple(name for name in ROWS if name.startswith(self.pipeline))

    def records(self, root: Path) -> list[ViewRecord]:
        """The samples of a step."""
        return CacheSource(root, Manifest.load(root)).records(range(self.micro_batch), 0)

    def settings(self, row: str) -> OnlineSettings:
        """How the reference trains."""
        method, temperature = ROWS[row]
        last = self.student["vocab_size"] - 1
        return OnlineSettings(
            method, temperature, "full" if self.pipeline == "cross" else "block",
            compdemo=PRESETS[row].signal_pass == "compdemo", block_size=self.shape.block_size, student_mask_id=last,
            teacher_mask_id=last, pad_id=last - 1,
            shared_vocab_size=self.student["vocab_size"] if self.pipeline == "shared" else 0,
            upcast_teacher=self.teacher["model_type"] == "llada2_moe",
        )  # fmt: skip


SMALL = (
    Setting("cross", SMALL_STUDENT, SMALL_LLADA2, length=128, micro_batch=2),
    Setting("shared", SMALL_STUDENT, SMALL_WEDLM, length=128, micro_batch=2),
)


def run(options: Options) -> dict[str, float]:
    """Compare on two CPU cores, with small models."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for setting in SMALL:
        figures |= measure(setting, options.repeats)
    return figures


def measure(setting: Setting, repeats: int) -> dict[str, float]:
    """Return seconds and peaks of a step of each run, with the teacher in the loop and from the cache, and ratios.

    Args:
        setting: What is trained, and where.
        repeats: Timed rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "cache")
        write_cache(root, setting.shape)
        figures = measure_time(setting, root, repeats)
        for row in setting.rows:
            for side in ("online", "ours"):
                figures[f"{row}_{side}_peak_mib"] = in_own_process(peak, setting, root, row, side) / 2**20
            figures[f"{row}_memory_ratio"] = figures[f"{row}_online_peak_mib"] / figures[f"{row}_ours_peak_mib"]
    return figures


def measure_time(setting: Setting, root: Path, repeats: int) -> dict[str, float]:
    """Return seconds of a step of each run, both ways, and their ratio."""
    work: dict[str, Callable[[], Any]] = {}
    online, ours = _Online(setting, root), _Ours(setting, root)
    for row in setting.rows:
        work |= {f"{row}_online": partial(online.step, row), f"{row}_ours": partial(ours.step, row)}
    timings = Timings(work, repeats, of_cpu=setting.device == "cpu")
    figures = {f"{name}_step_s": 1 / timings.rate(name, 1) for name in work}
    return figures | {f"{row}_time_ratio": timings.ratio(f"{row}_online", f"{row}_ours") for row in setting.rows}


def peak(setting: Setting, root: Path, row: str, side: str) -> int:
    """Bytes at the peak of two steps, models included."""
    torch.set_num_threads(1)
    steps = _Online(setting, root) if side == "online" else _Ours(setting, root)
    for _ in range(2):
        steps.step(row)
    return peak_rss() if setting.device == "cpu" else torch.cuda.max_memory_allocated()


class _Online:
    """Steps with the teacher in the loop."""

    def __init__(self, setting: Setting, root: Path) -> None:
        dtype = DTYPES[setting.precision]
        student = random_backbone(setting.student, dtype, setting.device)
        teacher = random_backbone(setting.teacher, dtype, setting.device)
        records = setting.records(root)
        self._setting = setting
        self._pairs, self._views = [record.pair for record in records], [record.view for record in records]
        self._trainer = OnlineTrainer(student, teacher, setting.settings(setting.rows[0]))
        self._batches: dict[str, OnlineBatch] = {}

    def step(self, row: str) -> None:
        settings = self._setting.settings(row)
        if row not in self._batches:
            self._batches[row] = make_batch(self._pairs, self._views, settings, self._setting.device)
        self._trainer.settings = settings
        self._trainer.step(self._batches[row], progress=0.5)
        if self._setting.device != "cpu":
            torch.cuda.synchronize()


class _Ours:
    """Steps from the cache."""

    def __init__(self, setting: Setting, root: Path) -> None:
        config = ADAPTERS[setting.student["model_type"]].read_config(setting.student, "published")
        how = (setting.shape.block_size, setting.micro_batch, setting.precision, setting.device)
        self._setting, self._root, self._trainee = setting, root, Trainee(config, *how)
        self._batches: dict[str, Batch] = {}

    def step(self, row: str) -> None:
        objectives = objectives_of(PRESETS[row].objectives)
        if row not in self._batches:
            manifest = Manifest.load(self._root)
            loading = Loading(self._root, manifest, signals_of(objectives))
            self._batches[row] = loading.batches(1, self._setting.micro_batch)[0]
        self._trainee.step(self._batches[row], objectives)


def tiny(setting: Setting) -> Setting:
    """Return the same on a CPU in seconds, to try that it runs."""
    teacher = SMALL_LLADA2 if setting.teacher["model_type"] == "llada2_moe" else SMALL_WEDLM
    return replace(
        setting, student=SMALL_STUDENT, teacher=teacher, length=64, micro_batch=2, precision="float32", device="cpu"
    )
