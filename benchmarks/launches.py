"""How fast one thread launches small operations while a worker is busy with what a teacher said.

Launching is what a GPU is kept busy with. The worker sorts rows and spells chunks, in a thread or in a process of its
own, or encodes the signals of a shard; a capture on a GPU has processes for both. Rates are counted by the clock, in
turns.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.material import SameIds, samples
from benchmarks.material import Shape, write_cache
from benchmarks.options import Options
from tide_cache.aside import Aside
from tide_cache.building.shard import SignalEncoder
from tide_cache.config.sections import SignalsConfig
from tide_cache.loading.cache import CacheSource
from tide_cache.manifest import CacheFolder
from tide_cache.modeling.row_signals import RowSignals
from tide_cache.records import ViewRecord
from tide_cache.shards import ShardHeader
from tide_cache.teacher.sorting import Batch, Sorter, as_arrays

VOCAB, LENGTH, NUM_SAMPLES, TOP_K = 4096, 512, 8, 64
WINDOW_S = 0.5
SIGNALS = SignalsConfig(kinds=("truth", "topk", "chunks"), temperatures=(1.0, 2.0), top_k=TOP_K, top_p=1.0, chunk_k=16)


def run(options: Options) -> dict[str, float]:
    """Count launches alone and beside each worker, in turns."""
    torch.set_num_threads(1)
    sorter = Sorter(SIGNALS, VOCAB, SameIds(VOCAB))
    with tempfile.TemporaryDirectory() as folder:
        what, rows = material(Path(folder, "sorted"))
        encoder, table = encoding(Path(folder, "encoded"))
    aside, encoder_aside = Aside(sorter), Aside(encoder)
    workers: dict[str, Callable[[], Any] | None] = {
        "alone": None,
        "beside_sorting_thread": lambda: sorter.signals(*what, rows),
        "beside_sorting_process": lambda: aside.call("signals_of_arrays", *what, as_arrays(rows), None),
        "beside_encoding_thread": lambda: encoder.encode(*table),
        "beside_encoding_process": lambda: encoder_aside.call("encode", *table),
    }
    for work in workers.values():
        if work is not None:
            work()
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.repeats):
        for name, work in workers.items():
            rates[name].append(_rate(work))
    figures = {f"launches_per_s_{name}": median(values) for name, values in rates.items()}
    for name in list(workers)[1:]:
        ratios = [beside / alone for beside, alone in zip(rates[name], rates["alone"], strict=True)]
        figures[f"rate_{name}"] = median(ratios)
    return figures


def material(root: Path) -> tuple[tuple[Batch, np.ndarray, np.ndarray], RowSignals]:
    """Return what a forward is sorted from: samples with a view, their masked tokens, and random rows."""
    shape = Shape("cross", NUM_SAMPLES, student_length=LENGTH, vocab_size=VOCAB)
    pairs, views = samples(root, shape, 1)
    length = max(len(pair.teacher_ids_M) for pair in pairs)
    is_masked_BnL = np.zeros((len(pairs), 1, length), bool)
    for b, (pair, (view,)) in enumerate(zip(pairs, views, strict=True)):
        is_masked_BnL[b, 0, : len(pair.teacher_ids_M)] = view.is_teacher_masked_M
    ids = [pair.teacher_ids_M[view.is_teacher_masked_M] for pair, (view,) in zip(pairs, views, strict=True)]
    true_N, random = np.concatenate(ids).astype(np.int64), np.random.default_rng(0)
    logits_NK = -np.sort(random.exponential(2.0, (len(true_N), TOP_K)), axis=1)
    logprobs_NK = np.log(0.99) + logits_NK - np.log(np.exp(logits_NK).sum(axis=1, keepdims=True))
    nothing_N, zeros_NT = torch.zeros(len(true_N)), torch.full((len(true_N), 2), float(np.log(0.01)))
    rows = RowSignals(
        truth_logprobs_N=nothing_N,
        is_top1_N=nothing_N.bool(),
        counts_N=torch.full((len(true_N),), TOP_K),
        ids_NK=torch.from_numpy(random.permuted(np.tile(np.arange(VOCAB), (len(true_N), 1)), axis=1)[:, :TOP_K].copy()),
        logprobs_NK=torch.from_numpy(logprobs_NK.astype(np.float32)),
        log_tail_NT=zeros_NT,
        log_partition_NT=torch.zeros_like(zeros_NT),
        tail_ids_ND=torch.zeros((len(true_N), 0), dtype=torch.int64),
        tail_logprobs_ND=torch.zeros((len(true_N), 0)),
    )
    batch = [(pair, list(of_pair)) for pair, of_pair in zip(pairs, views, strict=True)]
    return (batch, is_masked_BnL, true_N), rows


def encoding(root: Path) -> tuple[SignalEncoder, tuple[ShardHeader, list[int], list[list[ViewRecord]]]]:
    """Return what encodes the signals of a shard, and a shard's."""
    manifest = write_cache(root, Shape("shared", 4 * NUM_SAMPLES, student_length=LENGTH, vocab_size=VOCAB))
    indexes = list(range(4 * NUM_SAMPLES))
    records = [[record] for record in CacheSource(root, manifest).records(indexes, 0)]
    header = CacheFolder(root).header("plain", 0)
    return SignalEncoder(manifest.identity.shard_rules, "float16"), (header, indexes, records)


def _rate(work: Callable[[], Any] | None) -> float:
    """Return launches a second of this thread, while another one does the work again and again."""
    is_over = Event()

    def repeat() -> None:
        while work is not None and not is_over.is_set():
            work()

    worker = Thread(target=repeat)
    worker.start()
    one, count, start_s = torch.zeros(1), 0, perf_counter()
    with torch.inference_mode():
        while perf_counter() - start_s < WINDOW_S:
            for _ in range(100):
                one.add_(1)
            count += 100
    rate = count / (perf_counter() - start_s)
    is_over.set()
    worker.join()
    return rate
