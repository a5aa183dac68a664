"""Records to columns and back; `decode(encode(x))` is `x`, up to the declared rounding of log-probs.

Pure: numpy, pyarrow and the records. Columns become arrays through their offsets; the only Python loops go over the
rows of a row group, 64 at most.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tide_cache.records import (
    Bools,
    ChunkCandidates,
    Float32s,
    Int32s,
    MaskedView,
    SampleId,
    SamplePair,
    TailSamples,
    TeacherSignal,
    TopK,
    ViewRecord,
)
from tide_cache.shards.columns import ChunkColumns, PairColumns, Ragged, SignalColumns, TailColumns, TopKColumns

Integers = npt.NDArray[np.integer[Any]]
LogprobDtype = Literal["float16", "float32"]


def pairs_to_columns(indexes: Sequence[int], pairs: Sequence[SamplePair]) -> PairColumns:
    """Lay out the samples of one row group.

    Args:
        indexes: Each sample's row number in the corpus.
        pairs: The samples, in the same order.
    """
    return PairColumns(
        sample_index=np.asarray(indexes, np.int64),
        sample_id=[pair.sample_id for pair in pairs],
        student_ids=Ragged.of([pair.student_ids_L for pair in pairs], np.int32),
        is_supervised=Ragged.of([pair.is_supervised_L for pair in pairs], np.bool_),
        teacher_ids=Ragged.of([pair.teacher_ids_M for pair in pairs], np.int32),
        chunks=Ragged.of([pair.chunks_C4.reshape(-1) for pair in pairs], np.int32),
    )


def columns_to_pairs(columns: PairColumns) -> list[SamplePair]:
    """Rebuild the samples of one row group; their arrays are read-only views."""
    return [
        SamplePair(
            sample_id=SampleId(name),
            student_ids_L=columns.student_ids[row],
            is_supervised_L=columns.is_supervised[row],
            teacher_ids_M=columns.teacher_ids[row],
            chunks_C4=columns.chunks[row].reshape(-1, 4),
        )
        for row, name in enumerate(columns.sample_id)
    ]


def signals_to_columns(
    indexes: Sequence[int], records: Sequence[ViewRecord], logprob_dtype: LogprobDtype
) -> SignalColumns:
    """Lay out one view of the samples of one row group.

    Args:
        indexes: Each sample's row number in the corpus.
        records: Their views with signals, in the same order; an optional signal is in all of them, or in none.
        logprob_dtype: `float16` rounds the kept log-probs to what a float16 can hold; `truth` is never rounded.
    """
    views = [record.view for record in records]
    signals = [record.signal for record in records if record.signal is not None]
    kept = [signal.topk for signal in signals if signal.topk is not None]
    tails = [topk.tail for topk in kept if topk.tail is not None]
    chunks = [signal.chunks for signal in signals if signal.chunks is not None]
    splits = [signal.is_shown_first_N for signal in signals if signal.is_shown_first_N is not None]
    assert len(signals) == len(records), "a row without a signal"
    for optional in (kept, tails, chunks, splits):
        assert len(optional) in (0, len(records)), "an optional signal in some rows only"
    return SignalColumns(
        sample_index=np.asarray(indexes, np.int64),
        sample_id=[view.sample_id for view in views],
        view=np.asarray([view.view for view in views], np.int32),
        t=np.asarray([view.t for view in views], np.float64),
        student_masked=Ragged.of([_positions(view.is_student_masked_L) for view in views], np.int32),
        teacher_masked=Ragged.of([_positions(view.is_teacher_masked_M) for view in views], np.int32),
        shown_first=Ragged.of(splits, np.bool_) if splits else None,
        truth_logprobs=Ragged.of([signal.truth_logprobs_N for signal in signals], np.float32),
        is_top1=Ragged.of([signal.is_top1_N for signal in signals], np.bool_),
        topk=_topk_to_columns(kept, logprob_dtype) if kept else None,
        tail=_tail_to_columns(tails, logprob_dtype) if tails else None,
        chunks=_chunks_to_columns(chunks, logprob_dtype) if chunks else None,
    )


def columns_to_views(columns: SignalColumns, pairs: Sequence[SamplePair], num_temperatures: int) -> list[ViewRecord]:
    """Rebuild one view of the samples of one row group; arrays other than masks are read-only views.

    Args:
        columns: Checked columns; positions lie inside their sample.
        pairs: The samples of the same group, in order; they give the lengths of the masks.
        num_temperatures: Temperatures of tails and partitions.
    """
    student_masks = masks_of(columns.student_masked, [len(pair.student_ids_L) for pair in pairs])
    teacher_masks = masks_of(columns.teacher_masked, [len(pair.teacher_ids_M) for pair in pairs])
    return [
        ViewRecord(
            pair=pair,
            view=MaskedView(
                sample_id=pair.sample_id,
                view=int(columns.view[row]),
                t=float(columns.t[row]),
                is_student_masked_L=student_masks[row],
                is_teacher_masked_M=teacher_masks[row],
            ),
            signal=TeacherSignal(
                truth_logprobs_N=columns.truth_logprobs[row],
                is_top1_N=columns.is_top1[row],
                topk=None if columns.topk is None else _topk_of_row(columns, columns.topk, row, num_temperatures),
                is_shown_first_N=None if columns.shown_first is None else columns.shown_first[row],
                chunks=None if columns.chunks is None else _chunks_of_row(columns.chunks, row, num_temperatures),
            ),
        )
        for row, pair in enumerate(pairs)
    ]


def masks_of(positions: Ragged, lengths: Sequence[int]) -> Ragged:
    """Turn lists of positions into boolean masks of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    is_masked: Bools = np.zeros(offsets[-1], np.bool_)
    is_masked[np.repeat(offsets[:-1], positions.lengths) + positions.values] = True
    return Ragged(offsets, is_masked)


def repeats_of_candidates(ids_F: Integers, sizes_J: Integers, owner_J: Integers) -> Bools:
    """Mark candidates [J] whose ids an earlier candidate of the same chunk has.

    Args:
        ids_F: Ids of all candidates, end to end.
        sizes_J: Number of ids of each.
        owner_J: Chunk of each.
    """
    table = np.full((len(sizes_J), 1 + int(sizes_J.max(initial=0))), -1, np.int64)
    table[:, 0] = owner_J
    candidate_F = np.repeat(np.arange(len(sizes_J)), sizes_J)
    place_F = np.arange(len(ids_F)) - np.repeat(np.cumsum(sizes_J) - sizes_J, sizes_J)
    table[candidate_F, 1 + place_F] = ids_F
    is_repeated_J: Bools = np.ones(len(sizes_J), np.bool_)
    is_repeated_J[np.unique(table, axis=0, return_index=True)[1]] = False
    return is_repeated_J


def _positions(is_masked: Bools) -> Int32s:
    return np.flatnonzero(is_masked).astype(np.int32)


def _topk_to_columns(kept: Sequence[TopK], logprob_dtype: LogprobDtype) -> TopKColumns:
    return TopKColumns(
        topk_rows=Ragged.of([topk.rows_R for topk in kept], np.int32),
        topk_counts=Ragged.of([topk.counts_R for topk in kept], np.int32),
        topk_ids=Ragged.of([topk.ids_E for topk in kept], np.uint32),
        topk_logprobs=_rounded([topk.logprobs_E for topk in kept], logprob_dtype),
        topk_log_tail=_flat([topk.log_tail_RT for topk in kept]),
        topk_log_partition=_flat([topk.log_partition_RT for topk in kept]),
    )


def _tail_to_columns(tails: Sequence[TailSamples], logprob_dtype: LogprobDtype) -> TailColumns:
    return TailColumns(
        tail_counts=Ragged.of([tail.counts_R for tail in tails], np.int32),
        tail_ids=Ragged.of([tail.ids_S for tail in tails], np.uint32),
        tail_logprobs=_rounded([tail.logprobs_S for tail in tails], logprob_dtype),
        tail_draws=Ragged.of([tail.draws_S for tail in tails], np.int32),
    )


def _chunks_to_columns(chunks: Sequence[ChunkCandidates], logprob_dtype: LogprobDtype) -> ChunkColumns:
    return ChunkColumns(
        chunk_rows=Ragged.of([one.chunks_A for one in chunks], np.int32),
        chunk_counts=Ragged.of([one.counts_A for one in chunks], np.int32),
        chunk_ids=Ragged.of([one.ids_F for one in chunks], np.uint32),
        chunk_logprobs=_rounded([one.logprobs_J for one in chunks], logprob_dtype),
        chunk_log_tail=_flat([one.log_tail_AT for one in chunks]),
        chunk_log_partition=_flat([one.log_partition_AT for one in chunks]),
    )


def _rounded(lists: Sequence[Float32s], logprob_dtype: LogprobDtype) -> Ragged:
    logprobs = Ragged.of(list(lists), np.float32)
    if logprob_dtype == "float32":
        return logprobs
    with np.errstate(over="ignore"):  # an overflow becomes -inf, which the value checks refuse by name
        return Ragged(logprobs.offsets, logprobs.values.astype(np.float16).astype(np.float32))


def _flat(tables: Sequence[Float32s]) -> Ragged:
    return Ragged.of([table.reshape(-1) for table in tables], np.float32)


def _topk_of_row(columns: SignalColumns, topk: TopKColumns, row: int, num_temperatures: int) -> TopK:
    return TopK(
        rows_R=topk.topk_rows[row],
        counts_R=topk.topk_counts[row],
        ids_E=topk.topk_ids[row],
        logprobs_E=topk.topk_logprobs[row],
        log_tail_RT=topk.topk_log_tail[row].reshape(-1, num_temperatures),
        log_partition_RT=topk.topk_log_partition[row].reshape(-1, num_temperatures),
        tail=None if columns.tail is None else _tail_of_row(columns.tail, row),
    )


def _tail_of_row(tail: TailColumns, row: int) -> TailSamples:
    return TailSamples(tail.tail_counts[row], tail.tail_ids[row], tail.tail_logprobs[row], tail.tail_draws[row])


def _chunks_of_row(chunks: ChunkColumns, row: int, num_temperatures: int) -> ChunkCandidates:
    return ChunkCandidates(
        chunks_A=chunks.chunk_rows[row],
        counts_A=chunks.chunk_counts[row],
        ids_F=chunks.chunk_ids[row],
        logprobs_J=chunks.chunk_logprobs[row],
        log_tail_AT=chunks.chunk_log_tail[row].reshape(-1, num_temperatures),
        log_partition_AT=chunks.chunk_log_partition[row].reshape(-1, num_temperatures),
    )
