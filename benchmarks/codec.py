"""What a position of a top-k row costs on disk and in time, what rounding loses, and what `top_p` saves.

The synthetic set is fixed: 1,000 views of 512 positions, 64 ids a position, a vocabulary of 151,936. In addition, the
rows of a small cache; and, of a teacher that is named, what `top_p` saves on its own rows of held-out text. Speed is
per core, so by seconds of computing: one thread, whatever else the machine does.

Shape suffixes: P positions, K ids of each, most likely first.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.options import ROOT, Options, shared_file
from benchmarks.timing import Timings
from tide_cache.building.driver import build_cache
from tide_cache.config.build import BuildRun
from tide_cache.manifest import Manifest
from tide_cache.records import MaskedView, SampleId, SamplePair, TeacherSignal, TopK, ViewRecord
from tide_cache.shards import CodecName, EncodedShard, ShardHeader, ShardReader, ShardRules, encode_signals

Floats = npt.NDArray[np.float64]

VOCAB_SIZE, LENGTH, TOP_K, MOST_VIEWS = 151_936, 512, 64, 1000
CURVE_VIEWS, CURVE_K, REAL_SAMPLES = 64, 256, 60
FIXED_KS = (8, 16, 32, 64, 128, 192, 256)
TOP_PS = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
CODECS: tuple[CodecName, ...] = ("plain", "compact")
RULES = ShardRules(1, VOCAB_SIZE, VOCAB_SIZE, (1.0,), frozenset({"topk"}))
HEADER = ShardHeader("0" * 16, "0" * 16, "plain", 0)


@dataclass(frozen=True)
class Rows:
    """The teacher's rows of some views, as the generator gives them.

    Attributes:
        num_positions: Of each view.
        ids_PK: Token ids, most likely first.
        logprobs_PK: Their log-probs, float32.
        log_tail_P: What is left of the mass.
        vocab_size: Ids are below it.
    """

    num_positions: list[int]
    ids_PK: npt.NDArray[np.uint32]
    logprobs_PK: npt.NDArray[np.float32]
    log_tail_P: Floats
    vocab_size: int = VOCAB_SIZE


@dataclass(frozen=True)
class Stored:
    """What one shard holds.

    Attributes:
        pairs: Its samples.
        records: The records of each sample, by view.
        rules: Of the shard.
    """

    pairs: list[SamplePair]
    records: list[list[ViewRecord]]
    rules: ShardRules

    @property
    def num_positions(self) -> int:
        """Positions with a top-k row."""
        return sum(len(record.signal.topk.rows_R) for of_sample in self.records for record in _with_topk(of_sample))

    def encode(self, codec: CodecName) -> EncodedShard:
        """Return the shard in a codec."""
        indexes = list(range(len(self.pairs)))
        return encode_signals(HEADER, indexes, self.records, replace(self.rules, codec=codec), "float16")


def run(options: Options) -> dict[str, float]:
    """Measure bytes, rounding and speed, then the two curves, then the rows of a cache."""
    generate = _generator()
    rows = Rows(*_cast(generate(min(options.rows, MOST_VIEWS), TOP_K)))
    figures = _stored_figures([_stored(rows, np.full(len(rows.ids_PK), TOP_K))], options.repeats, f"_k{TOP_K}")
    kl_P = _codec_kl(rows)
    figures |= {"codec_kl_mean": float(kl_P.mean()), "codec_kl_max": float(kl_P.max())}
    figures |= _curves(Rows(*_cast(generate(min(options.rows, CURVE_VIEWS), CURVE_K))))
    if options.teacher is not None:
        figures |= {f"real_{name}": value for name, value in _curves(_rows_of(options.teacher)).items()}
    cache = options.cache or ROOT / "runs" / "gsm8k-cpu" / "cache-shared"
    if not (cache / "manifest.json").exists():
        print(f"benchmarks codec: no real rows, {cache} is no complete cache; --cache names another", file=sys.stderr)
        return figures
    found = _stored_figures(list(_shards(cache)), options.repeats, "")
    return figures | {f"real_{name}": value for name, value in found.items()}


def _generator() -> Any:
    path = shared_file("bench/synthetic_topk.py")
    spec = importlib.util.spec_from_file_location("synthetic_topk", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.V == VOCAB_SIZE
    return module.gen


def _rows_of(teacher: Path) -> Rows:
    """Capture what a teacher says of some held-out text, with as many ids as the curve itemises."""
    tokenizer = {"path": str(teacher)}
    lengths = {"max_length": 128, "block_size": 16}
    with TemporaryDirectory() as folder:
        values = {
            "corpus": {"spec": f"{shared_file('data/gsm8k_test.jsonl')}[train:{REAL_SAMPLES}]"},
            "teacher": {"model": str(teacher), "dtype": "float32", "device": "cpu", **lengths},
            "student": {"tokenizer": tokenizer, **lengths},
            "views": {"num_views": 4},
            "signals": {"top_k": CURVE_K, "top_p": 1.0, "temperatures": [1.0], "logprob_dtype": "float32"},
            "build": {"out": f"{folder}/cache"},
        }
        build_cache(BuildRun.model_validate(values))
        vocab_size = Manifest.load(Path(folder, "cache")).identity.vocab_sizes.teacher
        every = [r.signal.topk for s in _shards(Path(folder, "cache")) for of in s.records for r in _with_topk(of)]
        views = [topk for topk in every if len(topk.rows_R)]
    ids_PK, logprobs_PK = (
        np.concatenate([getattr(topk, name) for topk in views]).reshape(-1, CURVE_K) for name in ("ids_E", "logprobs_E")
    )
    log_tail_P = np.concatenate([topk.log_tail_RT[:, 0] for topk in views]).astype(np.float64)
    return Rows([len(topk.rows_R) for topk in views], ids_PK, logprobs_PK, log_tail_P, vocab_size)


def _cast(generated: tuple[Any, ...]) -> tuple[Any, ...]:
    num_positions, ids, logprobs, log_tail = generated
    return num_positions.tolist(), ids, logprobs, np.asarray(log_tail, np.float64)


def _stored(rows: Rows, counts_P: npt.NDArray[np.integer[Any]]) -> Stored:
    """Lay out rows as views of samples, with the first few ids of each position."""
    rng = np.random.default_rng(0)
    probs_PK = np.exp(rows.logprobs_PK.astype(np.float64))
    is_kept_PK = np.arange(rows.ids_PK.shape[1]) < counts_P[:, None]
    rest_P = (probs_PK * ~is_kept_PK).sum(axis=1) + np.exp(rows.log_tail_P)
    true_P = _draw(rng, probs_PK)
    spots = np.arange(LENGTH, dtype=np.int32)
    chunks_C4 = np.stack([spots, spots + 1, spots, spots + 1], axis=1)
    pairs, records, start = [], [], 0
    for number, count in enumerate(rows.num_positions):
        own = slice(start, start := start + count)
        is_masked_L = np.zeros(LENGTH, np.bool_)
        is_masked_L[rng.permutation(LENGTH)[:count]] = True
        ids_L = rng.integers(0, rows.vocab_size, LENGTH).astype(np.int32)
        ids_L[is_masked_L] = rows.ids_PK[own][np.arange(count), true_P[own]]
        pair = SamplePair(SampleId(f"synthetic:{number}"), ids_L, np.ones(LENGTH, np.bool_), ids_L, chunks_C4)
        topk = TopK(
            rows_R=np.arange(count, dtype=np.int32),
            counts_R=counts_P[own].astype(np.int32),
            ids_E=rows.ids_PK[own][is_kept_PK[own]],
            logprobs_E=rows.logprobs_PK[own][is_kept_PK[own]],
            log_tail_RT=np.log(rest_P[own, None]).astype(np.float32),
            log_partition_RT=np.zeros((count, 1), np.float32),
        )
        truth_N = rows.logprobs_PK[own][np.arange(count), true_P[own]]
        view = MaskedView(pair.sample_id, 0, count / LENGTH, is_masked_L, is_masked_L)
        pairs.append(pair)
        records.append(ViewRecord(pair, view, TeacherSignal(truth_N, true_P[own] == 0, topk)))
    return Stored(pairs, [[record] for record in records], RULES)


def _draw(rng: np.random.Generator, probs_PK: Floats) -> npt.NDArray[np.int64]:
    """Draw a true token for each position from its ids."""
    below_PK = np.cumsum(probs_PK, axis=1)
    drawn_P = rng.random(len(below_PK)) * below_PK[:, -1]
    result: npt.NDArray[np.int64] = (below_PK[:, :-1] < drawn_P[:, None]).sum(axis=1)
    return result


def _stored_figures(shards: Sequence[Stored], repeats: int, suffix: str) -> dict[str, float]:
    """Bytes and speed in both codecs; speed is of whole shards, with every check that a build or a reader does."""
    num_positions = sum(shard.num_positions for shard in shards)
    figures = {}
    with TemporaryDirectory() as folder:
        decoders = {}
        for codec in CODECS:
            encoded = [shard.encode(codec) for shard in shards]
            figures[f"bytes_per_position{suffix}_{codec}"] = sum(one.size for one in encoded) / num_positions
            readers = []
            for number, (one, shard) in enumerate(zip(encoded, shards, strict=True)):
                path = Path(folder, f"{codec}-{number}.parquet")
                path.write_bytes(one.data)
                readers.append((ShardReader(path, one, replace(shard.rules, codec=codec)), shard))
            decoders[codec] = readers
        timings = Timings(
            {f"encode_{codec}": lambda codec=codec: [shard.encode(codec) for shard in shards] for codec in CODECS}
            | {f"decode_{codec}": lambda codec=codec: [_decode(*one) for one in decoders[codec]] for codec in CODECS},
            repeats,
            of_cpu=True,
        )
    for work in ("encode", "decode"):
        figures[f"{work}_positions_per_s"] = timings.rate(f"{work}_plain", num_positions)
        figures[f"{work}_positions_per_s_compact"] = timings.rate(f"{work}_compact", num_positions)
    return figures


def _decode(reader: ShardReader, shard: Stored) -> None:
    for view in range(reader.layout.num_views):
        for group in range(reader.layout.num_groups):
            members = reader.layout.samples_of(group)
            reader.read_signals(view, group, shard.pairs[members.start : members.stop])


def _codec_kl(rows: Rows) -> Floats:
    """KL in nats of each row and its rest to what is read back."""
    return _kl(rows, np.full(len(rows.ids_PK), rows.ids_PK.shape[1]))


def _kl(rows: Rows, counts_P: npt.NDArray[np.integer[Any]]) -> Floats:
    """KL(truth || decoded) over the vocabulary in nats, where whatever mass is not itemised is spread evenly.

    The truth itemises all K ids, the decoded row the first few, rounded; its total is brought back to one.
    """
    num_kept_K = rows.ids_PK.shape[1]
    logprobs_PK = rows.logprobs_PK.astype(np.float64)
    truth_PK, truth_tail_P = np.exp(logprobs_PK), np.exp(rows.log_tail_P)
    is_kept_PK = np.arange(num_kept_K) < counts_P[:, None]
    rest_P = (truth_PK * ~is_kept_PK).sum(axis=1) + truth_tail_P
    spread_P = np.log(rest_P) - np.log(rows.vocab_size - counts_P)
    rounded_PK = rows.logprobs_PK.astype(np.float16).astype(np.float64)
    total_P = (np.exp(rounded_PK) * is_kept_PK).sum(axis=1) + rest_P
    decoded_PK = np.where(is_kept_PK, rounded_PK, spread_P[:, None])
    itemised_P = (truth_PK * (logprobs_PK - decoded_PK)).sum(axis=1)
    tail_P = truth_tail_P * (rows.log_tail_P - np.log(rows.vocab_size - num_kept_K) - spread_P)
    mass_P = truth_PK.sum(axis=1) + truth_tail_P
    result: Floats = (itemised_P + tail_P) / mass_P + np.log(total_P) - np.log(mass_P)
    return result


def _curves(rows: Rows) -> dict[str, float]:
    """Bytes against KL for a fixed k and for `top_p`, and how many bytes `top_p` takes for the KL of a fixed k."""
    mass_PK = np.cumsum(np.exp(rows.logprobs_PK.astype(np.float64)), axis=1)
    cuts = {f"k{k}": np.full(len(mass_PK), k) for k in FIXED_KS}
    cuts |= {f"top_p{p}": np.minimum((mass_PK < p).sum(axis=1) + 1, CURVE_K) for p in TOP_PS}
    figures: dict[str, float] = {}
    for name, counts_P in cuts.items():
        figures[f"curve_{name}_bytes_per_position"] = _stored(rows, counts_P).encode("plain").size / len(mass_PK)
        figures[f"curve_{name}_ids_per_position"] = float(counts_P.mean())
        figures[f"curve_{name}_kl"] = float(_kl(rows, counts_P).mean())
    log_kls, log_bytes = (
        np.log([figures[f"curve_top_p{p}_{name}"] for p in TOP_PS]) for name in ("kl", "bytes_per_position")
    )
    for k in FIXED_KS:
        log_kl = np.log(figures[f"curve_k{k}_kl"])
        if log_kls[-1] <= log_kl <= log_kls[0]:  # what lies outside the curve is not guessed
            equal = float(np.exp(np.interp(-log_kl, -log_kls, log_bytes)))
            figures[f"adaptive_ratio_k{k}"] = equal / figures[f"curve_k{k}_bytes_per_position"]
    return figures


def _shards(cache: Path) -> Iterator[Stored]:
    """Read a whole cache."""
    manifest = Manifest.load(cache)
    for shard in range(manifest.plan.num_shards):
        of_pairs, of_signals = (manifest.reader(cache, table, shard) for table in ("pairs", manifest.passes[0]))
        groups = [of_pairs.read_pairs(group) for group in range(of_pairs.layout.num_groups)]
        records = [
            [record for group, pairs in enumerate(groups) for record in of_signals.read_signals(view, group, pairs)]
            for view in range(of_signals.layout.num_views)
        ]
        by_sample = [list(views) for views in zip(*records, strict=True)]
        yield Stored([pair for pairs in groups for pair in pairs], by_sample, manifest.identity.shard_rules)


def _with_topk(records: Sequence[ViewRecord]) -> Iterator[Any]:
    yield from (record for record in records if record.signal is not None and record.signal.topk is not None)
