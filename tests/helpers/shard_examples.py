"""Small random samples, views and signals that obey every law of the format."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tide_cache.records import (
    ChunkCandidates,
    MaskedView,
    ProjectedTopK,
    SampleId,
    SamplePair,
    TailSamples,
    TeacherSignal,
    TopK,
    ViewRecord,
)
from tide_cache.shards import EncodedShard, LocalFiles, ShardHeader, ShardRules, encode_pairs, encode_signals
from tide_cache.views.masking import active_chunks

STUDENT_VOCAB, TEACHER_VOCAB = 40, 50
TEMPERATURES = (2.0, 1.0)
RULES = ShardRules(
    num_views=3,
    student_vocab_size=STUDENT_VOCAB,
    teacher_vocab_size=TEACHER_VOCAB,
    temperatures=TEMPERATURES,
    parts=frozenset({"topk"}),
)
HEADER = ShardHeader(cache_id="0123456789abcdef", plan_hash="fedcba9876543210", table="pairs", shard=7)


def make_pair(rng: np.random.Generator, number: int, max_chunks: int = 8) -> SamplePair:
    """A sample whose chunks are split by tokens that belong to none, with an unsupervised prompt."""
    chunks, teacher, student = [], 0, 0
    for _ in range(rng.integers(0, max_chunks + 1)):
        teacher, student = teacher + rng.integers(0, 2), student + rng.integers(0, 2)
        ends = teacher + rng.integers(1, 4), student + rng.integers(1, 4)
        chunks.append((teacher, ends[0], student, ends[1]))
        teacher, student = ends
    teacher, student = teacher + rng.integers(0, 3), student + rng.integers(0, 3)
    return SamplePair(
        sample_id=SampleId(f"part/ä.jsonl:{number}"),
        student_ids_L=rng.integers(0, STUDENT_VOCAB, student).astype(np.int32),
        is_supervised_L=np.arange(student) >= student // 3,
        teacher_ids_M=rng.integers(0, TEACHER_VOCAB, teacher).astype(np.int32),
        chunks_C4=np.array(chunks, np.int32).reshape(-1, 4),
    )


def make_record(rng: np.random.Generator, pair: SamplePair, view: int, has_topk: bool = True) -> ViewRecord:
    """A chunk-consistent view of a sample with a teacher's signal."""
    t = 1.0 - rng.random()
    student = pair.is_supervised_L & (rng.random(len(pair.student_ids_L)) < t)
    teacher = rng.random(len(pair.teacher_ids_M)) < t / 2
    for (a, b, c, d), is_distillable in zip(pair.chunks_C4, pair.is_distillable_C, strict=True):
        if is_distillable:
            student[c:d] = teacher[a:b] = rng.random() < t
    masked = MaskedView(pair.sample_id, view, t, student, teacher)
    return ViewRecord(pair, masked, make_signal(rng, pair.teacher_ids_M[teacher], has_topk))


def make_signal(rng: np.random.Generator, true_ids: np.ndarray, has_topk: bool) -> TeacherSignal:
    logits = rng.normal(0, 3, (len(true_ids), TEACHER_VOCAB))
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    truth = logp[np.arange(len(true_ids)), true_ids].astype(np.float32)
    rows = np.flatnonzero(rng.random(len(true_ids)) < 0.7).astype(np.int32)
    topk = make_topk(rng, rows, logp[rows]) if has_topk else None
    return TeacherSignal(truth, logp.argmax(axis=1) == true_ids, topk) if len(true_ids) else _silent(truth, topk)


def make_topk(rng: np.random.Generator, rows: np.ndarray, logp: np.ndarray) -> TopK:
    counts = rng.integers(1, logp.shape[1] + 1, len(rows)).astype(np.int32)
    order = np.argsort(-logp, axis=1, kind="stable")
    ids = [order[row, :count] for row, count in enumerate(counts)]
    tails, partitions = np.empty((2, len(rows), len(TEMPERATURES)), np.float32)
    for row, kept in enumerate(ids):
        for at, temperature in enumerate(TEMPERATURES):
            powers = np.exp(logp[row] / temperature)
            rest = np.delete(powers, kept).sum()
            tails[row, at] = math.log(rest) if rest > 0 else -math.inf
            partitions[row, at] = math.log(powers.sum())
    return TopK(
        rows_R=rows,
        counts_R=counts,
        ids_E=np.concatenate([*ids, []]).astype(np.uint32),
        logprobs_E=np.concatenate([*(logp[row, kept] for row, kept in enumerate(ids)), []]).astype(np.float32),
        log_tail_RT=tails,
        log_partition_RT=partitions,
    )


def _silent(truth: np.ndarray, topk: TopK | None) -> TeacherSignal:
    return TeacherSignal(truth, np.empty(0, np.bool_), topk)


def make_shard(
    seed: int, num_samples: int, rules: ShardRules = RULES, max_chunks: int = 8
) -> tuple[list[int], list[SamplePair], list[list[ViewRecord]]]:
    """Indexes, samples, and records by view."""
    rng = np.random.default_rng(seed)
    indexes = np.flatnonzero(rng.random(2 * num_samples + 8) < 0.6)
    while len(indexes) < num_samples:
        indexes = np.append(indexes, indexes[-1] + 1)
    pairs = [make_pair(rng, number, max_chunks) for number in range(num_samples)]
    records = [
        [make_record(rng, pair, view, "topk" in rules.parts) for pair in pairs] for view in range(rules.num_views)
    ]
    if rules.parts & {"tail", "chunks", "projected"}:
        further = np.random.default_rng(seed + 1)
        records = [[with_further_signals(further, record, rules) for record in of_view] for of_view in records]
    return indexes[:num_samples].tolist(), pairs, records


def with_further_signals(rng: np.random.Generator, record: ViewRecord, rules: ShardRules) -> ViewRecord:
    """The same view with ids drawn from tails, and with candidate chunks, as the rules say."""
    topk = record.signal.topk
    if "tail" in rules.parts and topk is not None:
        topk = replace(topk, tail=make_tail(rng, topk))
    chunks = make_chunks(rng, record) if "chunks" in rules.parts else None
    projected = make_projected(rng, record) if "projected" in rules.parts else None
    return replace(record, signal=replace(record.signal, topk=topk, chunks=chunks, projected=projected))


def make_projected(rng: np.random.Generator, record: ViewRecord) -> ProjectedTopK:
    """Candidates at some masked student tokens."""
    rows = np.flatnonzero(rng.random(int(record.view.is_student_masked_L.sum())) < 0.7).astype(np.int32)
    logits = rng.normal(0, 3, (len(rows), STUDENT_VOCAB))
    topk = make_topk(rng, rows, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return ProjectedTopK(**{name: array for name, array in vars(topk).items() if name != "tail"})


def make_tail(rng: np.random.Generator, topk: TopK) -> TailSamples:
    ends = np.cumsum(topk.counts_R)
    left = [
        np.setdiff1d(np.arange(TEACHER_VOCAB), topk.ids_E[e - c : e]) for e, c in zip(ends, topk.counts_R, strict=True)
    ]
    drawn = [np.sort(rng.choice(ids, min(len(ids), 3), replace=False)) for ids in left]
    ids = np.concatenate([np.zeros(0), *drawn]).astype(np.uint32)
    counts = np.array([len(ids) for ids in drawn], np.int32)
    return TailSamples(
        counts, ids, -rng.random(len(ids)).astype(np.float32), rng.integers(1, 4, len(ids)).astype(np.int32)
    )


def make_chunks(rng: np.random.Generator, record: ViewRecord) -> ChunkCandidates:
    """Candidates of every active chunk, sometimes none; drawn probabilities sum to one with the tail."""
    chunks = np.flatnonzero(active_chunks(record.pair, record.view)).astype(np.int32)
    counts = rng.integers(0, 5, len(chunks)).astype(np.int32)
    ids, logprobs, tails = [], [], np.zeros((len(chunks), len(TEMPERATURES)), np.float32)
    for a, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        probs = np.sort(rng.dirichlet(np.ones(count + 1))[:count])[::-1]
        tails[a] = math.log(1 - probs.sum())
        logprobs.append(np.log(probs))
        size = record.pair.chunks_C4[chunk, 3] - record.pair.chunks_C4[chunk, 2]
        firsts = rng.permutation(STUDENT_VOCAB)[:count]
        ids += [np.array([first, *rng.integers(0, STUDENT_VOCAB, size - 1)]) for first in firsts]
    partitions = np.zeros_like(tails)
    partitions[:, TEMPERATURES.index(2.0)] = rng.random(len(chunks))
    return ChunkCandidates(
        chunks, counts, np.concatenate([np.zeros(0), *ids]).astype(np.uint32),
        np.concatenate([np.zeros(0), *logprobs]).astype(np.float32), tails, partitions,
    )  # fmt: skip


def encode_views(
    header: ShardHeader, indexes: list[int], by_view: Sequence[Sequence[ViewRecord]], rules: ShardRules, dtype: str
) -> EncodedShard:
    """The signals shard of records by view, as `make_shard` gives them."""
    return encode_signals(header, indexes, list(zip(*by_view, strict=True)), rules, dtype)


def encode_both(
    seed: int, num_samples: int, rules: ShardRules = RULES, header: ShardHeader = HEADER, max_chunks: int = 8
) -> tuple[EncodedShard, EncodedShard]:
    """The pairs shard and the signals shard of the same samples."""
    indexes, pairs, records = make_shard(seed, num_samples, rules, max_chunks)
    return (
        encode_pairs(replace(header, table="pairs"), indexes, pairs, rules),
        encode_views(replace(header, table="plain"), indexes, records, rules, "float16"),
    )


def with_split(rng: np.random.Generator, record: ViewRecord) -> ViewRecord:
    """The same view in the compdemo pass: each chunk is shown in the first forward, or in the second."""
    is_first_M = rng.random(len(record.pair.teacher_ids_M)) < 0.5
    for start, end in record.pair.chunks_C4[:, :2]:
        is_first_M[start:end] = rng.random() < 0.5
    is_first_N = is_first_M[record.view.is_teacher_masked_M]
    return replace(record, signal=replace(record.signal, is_shown_first_N=is_first_N))


def make_compdemo(seed: int, records: Sequence[Sequence[ViewRecord]]) -> list[list[ViewRecord]]:
    """The records of `make_shard` as the compdemo pass has them."""
    rng = np.random.default_rng(seed)
    return [[with_split(rng, record) for record in of_view] for of_view in records]


def encode_compdemo(
    seed: int, num_samples: int, rules: ShardRules = RULES, header: ShardHeader = HEADER, max_chunks: int = 8
) -> EncodedShard:
    """The compdemo shard of the samples of `encode_both`."""
    indexes, _, records = make_shard(seed, num_samples, rules, max_chunks)
    return encode_views(replace(header, table="compdemo"), indexes, make_compdemo(seed, records), rules, "float16")


def assert_pairs_equal(found: Sequence[SamplePair], expected: Sequence[SamplePair]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.sample_id == other.sample_id
        for name in ("student_ids_L", "is_supervised_L", "teacher_ids_M", "chunks_C4"):
            _assert_same(getattr(one, name), getattr(other, name))


def assert_records_equal(found: Sequence[ViewRecord], expected: Sequence[ViewRecord], logprob_dtype: str) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_pairs_equal([one.pair], [other.pair])
        assert (one.view.sample_id, one.view.view, one.view.t) == (
            other.view.sample_id,
            other.view.view,
            other.view.t,
        )
        _assert_same(one.view.is_student_masked_L, other.view.is_student_masked_L)
        _assert_same(one.view.is_teacher_masked_M, other.view.is_teacher_masked_M)
        _assert_same(one.signal.truth_logprobs_N, other.signal.truth_logprobs_N)
        _assert_same(one.signal.is_top1_N, other.signal.is_top1_N)
        assert (one.signal.is_shown_first_N is None) == (other.signal.is_shown_first_N is None)
        if other.signal.is_shown_first_N is not None:
            _assert_same(one.signal.is_shown_first_N, other.signal.is_shown_first_N)
        assert (one.signal.topk is None) == (other.signal.topk is None)
        if other.signal.topk is not None:
            for name in ("rows_R", "counts_R", "ids_E", "log_tail_RT", "log_partition_RT"):
                _assert_same(getattr(one.signal.topk, name), getattr(other.signal.topk, name))
            rounded = other.signal.topk.logprobs_E.astype(logprob_dtype).astype(np.float32)
            _assert_same(one.signal.topk.logprobs_E, rounded)
            _assert_fields_same(one.signal.topk.tail, other.signal.topk.tail, "logprobs_S", logprob_dtype)
        _assert_fields_same(one.signal.chunks, other.signal.chunks, "logprobs_J", logprob_dtype)
        _assert_fields_same(one.signal.projected, other.signal.projected, "logprobs_E", logprob_dtype)


def _assert_fields_same(
    found: TailSamples | ChunkCandidates | ProjectedTopK | None,
    expected: TailSamples | ChunkCandidates | ProjectedTopK | None,
    rounded: str,
    dtype: str,
) -> None:
    assert (found is None) == (expected is None)
    for name, array in vars(expected).items() if expected is not None else ():
        _assert_same(getattr(found, name), array.astype(dtype).astype(np.float32) if name == rounded else array)


def _assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


class MemoryFiles(LocalFiles):
    """One file, in memory, so that thousands of damaged copies cost no disk."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def size(self, path: Path) -> int:
        return len(self.data)

    def read(self, path: Path, start: int, size: int) -> bytes:
        return self.data[max(start, 0) : max(start + size, 0)]
