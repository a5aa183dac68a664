"""How fast a cache becomes batches, and how long a step waits for them.

Rates are per second of processor time of the one thread that loads: what else runs on the machine takes none of it.
Memory is as in a long run: a warm-up epoch fills the row groups that are held. `topk` is compared with the time that
pyarrow alone takes to decode the same columns: no loader over this format and library is faster.
"""

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.material import Loading, Shape, write_cache
from benchmarks.options import Options
from benchmarks.students import PROXY, PROXY_VOCAB, Trainee, objectives_of, qwen3_config, shape_of
from tide_cache.loading.cache import CacheSource
from tide_cache.loading.collate import batch_of
from tide_cache.loading.hot_cache import HotCache
from tide_cache.loading.order import LaneOrder
from tide_cache.loading.prefetch import Prefetcher
from tide_cache.loading.source import TeacherSource
from tide_cache.records import StudentBatch, Targets
from tide_cache.shards import SignalKind
from tide_cache.shards.schema import signals_schema

MOST_SAMPLES, HELD_GROUPS, MICRO_BATCH = 1024, 8, 8
HOT_BYTES = 16 << 30
STALL_STEPS, STALL_LENGTH = 12, 128
CASES: dict[str, tuple[str, tuple[SignalKind, ...]]] = {
    "truth": ("cross", ("truth",)),
    "chunks": ("cross", ("truth", "chunks")),
    "topk": ("shared", ("truth", "topk")),
}
"""What is decoded, by pipeline: calm and its kin read `truth`; chunk_kl `chunks`; kl and tidal `topk`, k = 64."""


class _Epochs:
    """Loads a whole epoch after the other."""

    def __init__(self, loading: Loading, hot: Path | None = None) -> None:
        self._loading = loading
        self.source: TeacherSource = CacheSource(
            loading.root,
            loading.manifest,
            held_groups=HELD_GROUPS,
            signals=loading.signals,
            hot=hot and HotCache(hot, HOT_BYTES),
        )
        self.order = LaneOrder(self.source.groups, "benchmark", 0, HELD_GROUPS)
        self.layout = loading.layout()

    def batch(self, number: int, size: int = MICRO_BATCH) -> tuple[StudentBatch, Targets]:
        visits = self.order.visits(range(number * size, (number + 1) * size))
        samples = [visit.sample for visit in visits]
        return batch_of([[(view,)] for view in self.source.ready(samples, visits[0].epoch, self.layout)], self.layout)

    def run(self, epoch: int) -> tuple[int, float]:
        """Masked positions of an epoch, and the processor time that loading them took."""
        per_epoch = self.order.num_samples // MICRO_BATCH
        positions, start_s = 0, thread_time()
        for number in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            positions += len(self.batch(number)[1].true_id_N)
        return positions, thread_time() - start_s


def decode_alone(root: Path) -> tuple[int, float]:
    """Positions of a cache with `topk`, and the processor time in which pyarrow alone decodes what is loaded of it."""
    names = signals_schema({"topk"}).names
    positions, seconds = 0, 0.0
    for path in sorted((root / "signals" / "plain").glob("*.parquet")):
        data, start_s = path.read_bytes(), thread_time()
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        tables = [file.read_row_group(group, names, use_threads=False) for group in range(file.num_row_groups)]
        seconds += thread_time() - start_s
        positions += sum(pc.sum(pc.list_value_length(one["truth_logprobs"])).as_py() for one in tables)
    return positions, seconds


def run(options: Options) -> dict[str, float]:
    """Load epochs of each kind in turns, then step with and without loading ahead."""
    torch.set_num_threads(1)
    samples = min(options.rows, MOST_SAMPLES) // MICRO_BATCH * MICRO_BATCH
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            pipeline: (root := Path(folder, pipeline), write_cache(root, Shape(pipeline, samples)))  # type: ignore[arg-type]
            for pipeline in ("shared", "cross")
        }
        loadings = {name: Loading(*caches[pipeline], signals) for name, (pipeline, signals) in CASES.items()}
        later = {name: _Epochs(loading, Path(folder, f"hot-{name}")) for name, loading in loadings.items()}
        firsts: dict[str, list[float]] = {name: [] for name in CASES}
        rates: dict[str, list[float]] = {name: [] for name in CASES}
        for one in later.values():
            one.run(0)
        alone, of_loading, of_first = [], [], []
        for repeat in range(options.repeats):
            for name, loading in loadings.items():
                positions, seconds = _Epochs(loading).run(repeat)
                firsts[name].append(positions / seconds)
                positions, seconds = later[name].run(repeat + 1)
                rates[name].append(positions / seconds)
            positions, seconds = decode_alone(caches["shared"][0])
            alone.append(positions / seconds)
            of_loading.append(rates["topk"][-1] / alone[-1])
            of_first.append(firsts["topk"][-1] / alone[-1])
        figures = {f"positions_per_s_per_core_{name}": median(values) for name, values in rates.items()}
        figures |= {f"positions_per_s_per_core_{name}_first_epoch": median(values) for name, values in firsts.items()}
        figures["positions_per_s_per_core_topk_pyarrow_alone"] = median(alone)
        figures["topk_rate_by_pyarrow_alone"] = median(of_loading)
        figures["topk_first_epoch_rate_by_pyarrow_alone"] = median(of_first)
    trainee = Trainee(qwen3_config(PROXY_VOCAB, **PROXY), 32, MICRO_BATCH)
    return figures | stalls(trainee, STALL_LENGTH, MICRO_BATCH, PROXY_VOCAB, STALL_STEPS)


def stalls(trainee: Trainee, length: int, micro_batch: int, vocab_size: int, steps: int) -> dict[str, float]:
    """Return the share of a step with the cross-entropy alone that is spent waiting for what kl would read, at k = 64.

    Args:
        trainee: Takes the steps.
        length: Tokens of a sample.
        micro_batch: Samples of a step.
        vocab_size: Of the student.
        steps: Measured; each of samples that were not read before.
    """
    objectives = objectives_of([{"kind": "ce"}])
    with tempfile.TemporaryDirectory() as folder:
        shape = shape_of("shared", (steps + 1) * micro_batch, length, vocab_size)
        loading = Loading(Path(folder, "cache"), write_cache(Path(folder, "cache"), shape))
        figures = {}
        for name, ahead in (("", 2), ("_without_prefetch", 0)):
            load = partial(_Epochs(loading).batch, size=micro_batch)
            with Prefetcher(load, range(steps + 1), ahead, trainee.engine.device) as prefetcher:
                trainee.step(prefetcher.take(), objectives)
                waited_s, start_s = prefetcher.stall_s, perf_counter()
                for _ in range(steps):
                    trainee.step(prefetcher.take(), objectives)
                figures[f"stall_share{name}"] = (prefetcher.stall_s - waited_s) / (perf_counter() - start_s)
    return figures
