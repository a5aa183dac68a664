"""Every law on values: the writer refuses to publish a break of it, and the reader refuses to return one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.shard_examples import (
    HEADER,
    RULES,
    STUDENT_VOCAB,
    TEACHER_VOCAB,
    MemoryFiles,
    encode_views,
    make_compdemo,
    make_shard,
)
from tide_cache.errors import ShardCorruptError, TeacherOutputError
from tide_cache.records import SampleId, SamplePair, TeacherSignal, TopK, ViewRecord
from tide_cache.shards import ShardReader, encode_pairs

SIGNALS = replace(HEADER, table="plain")
INDEXES, PAIRS, RECORDS = make_shard(4, 5)
AT = next(
    i
    for i, record in enumerate(RECORDS[1])
    if record.view.is_student_masked_L.sum() >= 2
    and record.signal.topk.counts_R.min(initial=9) >= 2
    and len(record.signal.topk.rows_R) >= 2
)
"""A sample that is masked and has candidates in view 1."""


def _with(array: np.ndarray, at: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed.reshape(-1)[at] = value
    return changed


def _signal(change: Callable[[TeacherSignal], TeacherSignal]) -> Callable[[ViewRecord], ViewRecord]:
    return lambda record: replace(record, signal=change(record.signal))


def _topk(change: Callable[[TopK], TopK]) -> Callable[[ViewRecord], ViewRecord]:
    return _signal(lambda signal: replace(signal, topk=change(signal.topk)))


def _view(**changes: object) -> Callable[[ViewRecord], ViewRecord]:
    return lambda record: replace(record, view=replace(record.view, **changes))


def _mask_unsupervised(record: ViewRecord) -> ViewRecord:
    first = int(np.flatnonzero(~record.pair.is_supervised_L)[0])
    return _view(is_student_masked_L=_with(record.view.is_student_masked_L, first, True))(record)


def _split_chunk(record: ViewRecord) -> ViewRecord:
    starts = record.pair.chunks_C4[record.pair.is_distillable_C, 2]
    mask = record.view.is_student_masked_L
    return _view(is_student_masked_L=_with(mask, int(starts[0]), not mask[starts[0]]))(record)


def _swap_first_two(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array[1::-1], array[2:]])


FAULTS: dict[str, tuple[Callable[[ViewRecord], ViewRecord], str, str]] = {
    "other view": (_view(view=2), "view", "expected view 1"),
    "t zero": (_view(t=0.0), "t", "outside"),
    "t above one": (_view(t=1.5), "t", "outside"),
    "t NaN": (_view(t=float("nan")), "t", "outside"),
    "other sample": (_view(sample_id=SampleId("x")), "sample_id", "not the sample"),
    "unsupervised": (_mask_unsupervised, "student_masked", "unsupervised token"),
    "split chunk": (_split_chunk, "teacher_masked", "masked in part"),
    "short mask": (
        lambda r: _view(is_teacher_masked_M=np.append(r.view.is_teacher_masked_M, True))(r),
        "teacher_masked",
        "outside the teacher's tokens",
    ),
    "truth missing": (
        _signal(lambda s: replace(s, truth_logprobs_N=s.truth_logprobs_N[1:])),
        "truth_logprobs",
        "length differs from teacher_masked",
    ),
    "top-1 missing": (_signal(lambda s: replace(s, is_top1_N=s.is_top1_N[1:])), "is_top1", "length differs"),
    "truth NaN": (
        _signal(lambda s: replace(s, truth_logprobs_N=_with(s.truth_logprobs_N, 0, np.nan))),
        "truth_logprobs",
        "not finite or above 0",
    ),
    "truth infinite": (
        _signal(lambda s: replace(s, truth_logprobs_N=_with(s.truth_logprobs_N, 0, -np.inf))),
        "truth_logprobs",
        "not finite or above 0",
    ),
    "truth positive": (
        _signal(lambda s: replace(s, truth_logprobs_N=_with(s.truth_logprobs_N, 0, 0.01))),
        "truth_logprobs",
        "not finite or above 0",
    ),
    "rows unsorted": (_topk(lambda k: replace(k, rows_R=_swap_first_two(k.rows_R))), "topk_rows", "do not increase"),
    "row outside": (_topk(lambda k: replace(k, rows_R=_with(k.rows_R, -1, 999))), "topk_rows", "is outside"),
    "row negative": (_topk(lambda k: replace(k, rows_R=_with(k.rows_R, 0, -1))), "topk_rows", "is outside"),
    "counts missing": (_topk(lambda k: replace(k, counts_R=k.counts_R[1:])), "topk_counts", "differs from topk_rows"),
    "count zero": (_topk(lambda k: replace(k, counts_R=_with(k.counts_R, 0, 0))), "topk_counts", "keeps no id"),
    "ids missing": (_topk(lambda k: replace(k, ids_E=k.ids_E[1:])), "topk_ids", "differs from the sum of topk_counts"),
    "logprobs missing": (
        _topk(lambda k: replace(k, logprobs_E=k.logprobs_E[1:])),
        "topk_logprobs",
        "differs from the sum of topk_counts",
    ),
    "id too large": (
        _topk(lambda k: replace(k, ids_E=_with(k.ids_E, 0, TEACHER_VOCAB))),
        "topk_ids",
        f"outside the vocabulary of {TEACHER_VOCAB}",
    ),
    "id twice": (_topk(lambda k: replace(k, ids_E=_with(k.ids_E, 1, k.ids_E[0]))), "topk_ids", "occurs twice"),
    "unordered": (
        _topk(lambda k: replace(k, logprobs_E=_swap_first_two(k.logprobs_E))),
        "topk_logprobs",
        "not in order of probability",
    ),
    "overflows float16": (
        _topk(lambda k: replace(k, logprobs_E=_with(k.logprobs_E, k.counts_R[0] - 1, -1e6))),
        "topk_logprobs",
        "not finite or above 0",
    ),
    "mass missing": (
        _topk(lambda k: replace(k, logprobs_E=k.logprobs_E - np.float32(0.01))),
        "topk_logprobs",
        "do not sum to probability 1",
    ),
    "mass above one": (
        _topk(lambda k: replace(k, log_tail_RT=np.zeros_like(k.log_tail_RT))),
        "topk_logprobs",
        "do not sum to probability 1",
    ),
    "tail NaN": (
        _topk(lambda k: replace(k, log_tail_RT=_with(k.log_tail_RT, 0, np.nan))),
        "topk_log_tail",
        "not a number, or infinite",
    ),
    "tail missing": (
        _topk(lambda k: replace(k, log_tail_RT=k.log_tail_RT[:, :1])),
        "topk_log_tail",
        "differs from topk_rows times 2 temperatures",
    ),
    "partition infinite": (
        _topk(lambda k: replace(k, log_partition_RT=_with(k.log_partition_RT, 0, -np.inf))),
        "topk_log_partition",
        "not finite",
    ),
    "partition at one": (
        _topk(lambda k: replace(k, log_partition_RT=_with(k.log_partition_RT, 1, 0.5))),
        "topk_log_partition",
        "not 0 at T = 1",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_law_is_refused_by_writer_and_reader(name, monkeypatch):
    change, column, problem = FAULTS[name]
    records = [list(view) for view in RECORDS]
    records[1][AT] = change(records[1][AT])
    with pytest.raises(TeacherOutputError) as refused:
        encode_views(SIGNALS, INDEXES, records, RULES, "float16")
    for part in (", view 1, ", f"{column}: ", problem, "Nothing of this shard was published", "float32"):
        assert part in str(refused.value)

    monkeypatch.setattr("tide_cache.shards.writer.check_signals", lambda *args, **kwargs: None)
    shard = encode_views(SIGNALS, INDEXES, records, RULES, "float16")
    reader = ShardReader(Path("s.parquet"), shard, RULES, MemoryFiles(shard.data))
    with pytest.raises(ShardCorruptError) as corrupt:
        reader.read_signals(1, 0, PAIRS, thorough=True)
    for part in ("s.parquet: row group 1 (view 1, samples 0 to 4 of the shard), ", f"column {column}", problem):
        assert part in str(corrupt.value)
    named = "x" if name == "other sample" else PAIRS[AT].sample_id
    assert f"sample '{named}'" in str(corrupt.value)
    assert len(reader.read_signals(0, 0, PAIRS)) == len(PAIRS)


def _show_half(record: ViewRecord) -> ViewRecord:
    """Show the first token of the first masked chunk of several teacher tokens, and not the others."""
    row_M = np.cumsum(record.view.is_teacher_masked_M) - 1
    start = next(a for a, b, _, _ in record.pair.chunks_C4 if b - a > 1 and record.view.is_teacher_masked_M[a:b].all())
    split = record.signal.is_shown_first_N
    return replace(
        record, signal=replace(record.signal, is_shown_first_N=_with(split, row_M[start], ~split[row_M[start]]))
    )


SPLIT_FAULTS: dict[str, tuple[Callable[[ViewRecord], ViewRecord], str]] = {
    "missing": (
        _signal(lambda s: replace(s, is_shown_first_N=s.is_shown_first_N[1:])),
        "length differs from teacher_masked",
    ),
    "chunk in part": (_show_half, "a chunk is shown in part"),
}


@pytest.mark.parametrize("name", SPLIT_FAULTS)
def test_a_broken_split_is_refused_by_writer_and_reader(name, monkeypatch):
    change, problem = SPLIT_FAULTS[name]
    table, records = replace(HEADER, table="compdemo"), make_compdemo(0, RECORDS)
    at = next(
        i
        for i, record in enumerate(records[1])
        for a, b, _, _ in record.pair.chunks_C4
        if b - a > 1 and record.view.is_teacher_masked_M[a:b].all()
    )
    records[1][at] = change(records[1][at])
    with pytest.raises(TeacherOutputError, match=f"view 1, shown_first: .*{problem}"):
        encode_views(table, INDEXES, records, RULES, "float16")
    monkeypatch.setattr("tide_cache.shards.writer.check_signals", lambda *args, **kwargs: None)
    shard = encode_views(table, INDEXES, records, RULES, "float16")
    reader = ShardReader(Path("s.parquet"), shard, RULES, MemoryFiles(shard.data))
    with pytest.raises(ShardCorruptError, match=f"column shown_first, sample '{PAIRS[at].sample_id}': .*{problem}"):
        reader.read_signals(1, 0, PAIRS)
    assert len(reader.read_signals(0, 0, PAIRS)) == len(PAIRS)


PAIR_AT = next(i for i, pair in enumerate(PAIRS) if len(pair.chunks_C4) >= 2)
PAIR_FAULTS: dict[str, tuple[Callable[[SamplePair], SamplePair], str, str]] = {
    "student id": (
        lambda p: replace(p, student_ids_L=_with(p.student_ids_L, 0, STUDENT_VOCAB)),
        "student_ids",
        "outside the vocabulary of 40",
    ),
    "teacher id": (
        lambda p: replace(p, teacher_ids_M=_with(p.teacher_ids_M, 0, -1)),
        "teacher_ids",
        "outside the vocabulary of 50",
    ),
    "supervised": (
        lambda p: replace(p, is_supervised_L=p.is_supervised_L[1:]),
        "is_supervised",
        "differs from student_ids",
    ),
    "three numbers": (
        lambda p: replace(p, chunks_C4=p.chunks_C4.reshape(-1)[:-1]),
        "chunks",
        "not a multiple of 4",
    ),
    "teacher end": (lambda p: replace(p, chunks_C4=_with(p.chunks_C4, -3, 99)), "chunks", "teacher spans"),
    "student end": (lambda p: replace(p, chunks_C4=_with(p.chunks_C4, -1, 99)), "chunks", "student spans"),
    "empty chunk": (
        lambda p: replace(p, chunks_C4=_with(p.chunks_C4, 1, p.chunks_C4[0, 0])),
        "chunks",
        "teacher spans are not increasing",
    ),
    "overlap": (lambda p: replace(p, chunks_C4=p.chunks_C4[::-1].copy()), "chunks", "not increasing"),
    "negative": (lambda p: replace(p, chunks_C4=_with(p.chunks_C4, 0, -1)), "chunks", "teacher spans"),
}


@pytest.mark.parametrize("name", PAIR_FAULTS)
def test_a_broken_pair_is_refused_by_writer_and_reader(name, monkeypatch):
    change, column, problem = PAIR_FAULTS[name]
    pairs = [change(pair) if i == PAIR_AT else pair for i, pair in enumerate(PAIRS)]
    with pytest.raises(AssertionError, match=f"sample '{PAIRS[PAIR_AT].sample_id}', {column}: .*{problem}"):
        encode_pairs(HEADER, INDEXES, pairs, RULES)
    monkeypatch.setattr("tide_cache.shards.writer.check_pairs", lambda *args: None)
    shard = encode_pairs(HEADER, INDEXES, pairs, RULES)
    reader = ShardReader(Path("p.parquet"), shard, RULES, MemoryFiles(shard.data))
    with pytest.raises(ShardCorruptError, match=f"row group 0 .*column {column}, .*{problem}"):
        reader.read_pairs(0)


def test_indexes_must_increase():
    with pytest.raises(AssertionError, match="sample_index: sample indexes do not increase"):
        encode_pairs(HEADER, INDEXES[::-1], PAIRS, RULES)


@pytest.mark.parametrize("vocabulary", [64, 4096])
def test_rounding_to_float16_is_no_fault(vocabulary):
    """Equal log-probs all round the same way: 64 of -4.1589 become 64 of -4.1602, which misses 0.13 % of the mass."""
    topk = TopK(
        rows_R=np.array([0], np.int32),
        counts_R=np.array([vocabulary], np.int32),
        ids_E=np.arange(vocabulary, dtype=np.uint32),
        logprobs_E=np.full(vocabulary, -np.log(vocabulary), np.float32),
        log_tail_RT=np.full((1, 2), -np.inf, np.float32),
        log_partition_RT=np.array([[np.log(vocabulary) / 2, 0]], np.float32),
    )
    record = RECORDS[1][AT]
    records = [
        [replace(record, view=replace(record.view, view=v), signal=replace(record.signal, topk=topk))] for v in range(3)
    ]
    rules = replace(RULES, teacher_vocab_size=vocabulary)
    shard = encode_views(SIGNALS, [0], records, rules, "float16")
    reader = ShardReader(Path("s.parquet"), shard, rules, MemoryFiles(shard.data))
    stored = reader.read_signals(1, 0, [record.pair])[0].signal.topk.logprobs_E
    assert abs(np.exp(stored).sum() - 1) > 1e-3
