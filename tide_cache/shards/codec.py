"""Records to columns and back; `decode(encode(x))` is `x`, up to the declared rounding of log-probs.

Pure: numpy, pyarrow and the records. Columns become arrays through their offsets; the only Python loops go over the
rows of a row group, 64 at most.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tide_cache.records import Bools, Int32s, MaskedView, SampleId, SamplePair, TeacherSignal, TopK, ViewRecord
from tide_cache.shards.columns import PairColumns, Ragged, SignalColumns, TopKColumns


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
    indexes: Sequence[int], records: Sequence[ViewRecord], logprob_dtype: Literal["float16", "float32"]
) -> SignalColumns:
    """Lay out one view of the samples of one row group.

    Args:
        indexes: Each sample's row number in the corpus.
        records: Their views with signals, in the same order; all with `topk`, or none, and the split likewise.
        logprob_dtype: `float16` rounds the kept log-probs to what a float16 can hold; `truth` is never rounded.
    """
    views = [record.view for record in records]
    signals = [record.signal for record in records if record.signal is not None]
    kept = [signal.topk for signal in signals if signal.topk is not None]
    splits = [signal.is_shown_first_N for signal in signals if signal.is_shown_first_N is not None]
    assert len(signals) == len(records), "a row without a signal"
    assert len(kept) in (0, len(records)), "topk in some rows only"
    assert len(splits) in (0, len(records)), "a split in some rows only"
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
    )


def columns_to_views(columns: SignalColumns, pairs: Sequence[SamplePair], num_temperatures: int) -> list[ViewRecord]:
    """Rebuild one view of the samples of one row group; arrays other than masks are read-only views.

    Args:
        columns: Checked columns; positions lie inside their sample.
        pairs: The samples of the same group, in order; they give the lengths of the masks.
        num_temperatures: Temperatures that `topk` was captured for.
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
                topk=None if columns.topk is None else _topk_of_row(columns.topk, row, num_temperatures),
                is_shown_first_N=None if columns.shown_first is None else columns.shown_first[row],
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


def _positions(is_masked: Bools) -> Int32s:
    return np.flatnonzero(is_masked).astype(np.int32)


def _topk_to_columns(kept: Sequence[TopK], logprob_dtype: Literal["float16", "float32"]) -> TopKColumns:
    logprobs = Ragged.of([topk.logprobs_E for topk in kept], np.float32)
    if logprob_dtype == "float16":
        with np.errstate(over="ignore"):  # an overflow becomes -inf, which the value checks refuse by name
            rounded = logprobs.values.astype(np.float16).astype(np.float32)
        logprobs = Ragged(logprobs.offsets, rounded)
    return TopKColumns(
        topk_rows=Ragged.of([topk.rows_R for topk in kept], np.int32),
        topk_counts=Ragged.of([topk.counts_R for topk in kept], np.int32),
        topk_ids=Ragged.of([topk.ids_E for topk in kept], np.uint32),
        topk_logprobs=logprobs,
        topk_log_tail=Ragged.of([topk.log_tail_RT.reshape(-1) for topk in kept], np.float32),
        topk_log_partition=Ragged.of([topk.log_partition_RT.reshape(-1) for topk in kept], np.float32),
    )


def _topk_of_row(columns: TopKColumns, row: int, num_temperatures: int) -> TopK:
    return TopK(
        rows_R=columns.topk_rows[row],
        counts_R=columns.topk_counts[row],
        ids_E=columns.topk_ids[row],
        logprobs_E=columns.topk_logprobs[row],
        log_tail_RT=columns.topk_log_tail[row].reshape(-1, num_temperatures),
        log_partition_RT=columns.topk_log_partition[row].reshape(-1, num_temperatures),
    )
