"""The table names every array that is stored, and what is generic over it moves nothing to another place."""

from dataclasses import fields, replace

import numpy as np
import pytest

from helpers.shard_examples import RULES, TEMPERATURES, make_compdemo, make_shard
from tide_cache.records import ChunkCandidates, ProjectedTopK, TailSamples, TeacherSignal, TopK
from tide_cache.shards.schema import signals_schema
from tide_cache.signal_table import (
    NESTED,
    PARTS,
    at_temperatures,
    concat,
    empty,
    from_columns,
    keep_items,
    parts_in,
    take,
    take_positions,
    to_columns,
)

EVERYTHING = replace(RULES, parts=frozenset({"topk", "tail", "chunks", "projected"}))
RECORDS = make_compdemo(1, make_shard(3, 12, EVERYTHING)[2])[0]
SIGNALS = [
    replace(record.signal, steps_to_reveal_N=np.arange(1, 1 + record.view.is_student_masked_L.sum(), dtype=np.uint16))
    for record in RECORDS
]


def assert_equal(found, expected):
    left, right = to_columns(found), to_columns(expected)
    assert left.keys() == right.keys()
    for column, array in right.items():
        assert left[column].dtype == array.dtype, column
        np.testing.assert_array_equal(left[column], array, err_msg=column)


@pytest.mark.parametrize("record", [TeacherSignal, TopK, TailSamples, ChunkCandidates, ProjectedTopK])
def test_every_array_is_in_the_table(record):
    """One that is not would be captured, and silently not stored."""
    listed = {field.name for part in PARTS if part.record is record for field in part.fields}
    assert listed | NESTED.get(record, {}).keys() == {field.name for field in fields(record)}


def test_columns_are_those_of_the_format_and_hold_what_the_table_says():
    columns = to_columns(SIGNALS[0])
    listed = [field for part in PARTS for field in part.fields]
    assert columns.keys() == {field.column for field in listed} <= set(signals_schema(parts_in(columns)).names)
    assert all(columns[field.column].dtype == field.dtype for field in listed)


def test_from_columns_inverts_to_columns():
    for signal in SIGNALS:
        for some in (signal, replace(signal, chunks=None, is_shown_first_N=None), replace(signal, topk=None)):
            assert_equal(from_columns(TeacherSignal, to_columns(some), len(TEMPERATURES)), some)
    assert from_columns(TopK, {}, 2) is None


def test_take_undoes_concat():
    topks = [signal.topk for signal in SIGNALS]
    joined, end = concat(topks), 0
    for topk in topks:
        start, end = end, end + len(topk.rows_R)
        assert_equal(take(joined, np.arange(start, end)), topk)
    backwards = np.arange(end)[::-1]
    assert_equal(take(take(joined, backwards), backwards), joined)


def test_candidates_of_several_tokens_are_taken_with_the_sizes_of_their_chunks():
    sizes = [record.pair.chunks_C4[record.signal.chunks.chunks_A] @ [0, 0, -1, 1] for record in RECORDS]
    joined, end = concat([empty(ChunkCandidates, len(TEMPERATURES)), *(signal.chunks for signal in SIGNALS)]), 0
    for signal, size_A in zip(SIGNALS, sizes, strict=True):
        start, end = end, end + len(size_A)
        assert_equal(take(joined, np.arange(start, end), np.concatenate(sizes)), signal.chunks)


def test_numbers_are_counted_through_and_what_some_lack_is_theirs_alone():
    one, other = [signal for signal in SIGNALS if len(signal.topk.rows_R) and len(signal.chunks.chunks_A)][:2]
    first = {"masked position": [0, 100], "chunk": [0, 7]}
    joined = concat([one, replace(other, chunks=None, is_shown_first_N=None)], first)
    assert joined.topk.rows_R.tolist() == [*one.topk.rows_R, *(other.topk.rows_R + 100)]
    assert joined.chunks.chunks_A.tolist() == one.chunks.chunks_A.tolist()
    assert joined.is_shown_first_N is None
    turned = concat([replace(one, chunks=None), other], first)
    assert turned.chunks.chunks_A.tolist() == (other.chunks.chunks_A + 7).tolist()
    without = concat([one.topk, replace(other.topk, tail=None)])
    assert without.tail.counts_R.tolist() == [*one.topk.tail.counts_R, *np.zeros_like(other.topk.rows_R)]


def test_items_are_kept_and_counted():
    topk = next(signal.topk for signal in SIGNALS if len(signal.topk.rows_R) > 1)
    is_kept_E = topk.ids_E % 2 == 0
    kept, row_E = keep_items(topk, is_kept_E), np.repeat(np.arange(len(topk.rows_R)), topk.counts_R)
    assert np.repeat(np.arange(len(kept.counts_R)), kept.counts_R).tolist() == row_E[is_kept_E].tolist()
    assert (kept.ids_E.tolist(), kept.counts_R.dtype) == (topk.ids_E[is_kept_E].tolist(), np.int32)
    assert kept.log_tail_RT is topk.log_tail_RT


def test_other_temperatures_are_not_numbers_where_they_were_not_captured():
    topk = SIGNALS[0].topk
    assert at_temperatures(topk, TEMPERATURES, TEMPERATURES) is topk
    moved = at_temperatures(topk, TEMPERATURES, (1.0, 4.0, 2.0))
    np.testing.assert_array_equal(moved.log_tail_RT[:, [2, 0]], topk.log_tail_RT)
    assert np.isnan(moved.log_partition_RT[:, 1]).all()


def test_positions_are_taken_of_everything_that_has_one_value_for_each():
    signal = next(signal for signal in SIGNALS if len(signal.truth_logprobs_N) > 2)
    turned = take_positions(signal, np.arange(len(signal.truth_logprobs_N))[::-1])
    for name in ("truth_logprobs_N", "is_top1_N", "is_shown_first_N"):
        assert getattr(turned, name).tolist() == getattr(signal, name)[::-1].tolist()
    assert turned.topk is signal.topk
