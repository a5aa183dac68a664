"""Views for training, cut from the one view that a causal teacher's cache stores: its answers do not depend on masks.

Shape suffixes as in `tide_cache.records`.
"""

from dataclasses import replace

import numpy as np

from tide_cache.records import MaskedView, TeacherSignal, ViewRecord
from tide_cache.signal_table import take, take_positions


def cut_view(whole: ViewRecord, view: MaskedView) -> ViewRecord:
    """Return the part of a record of all supervised tokens that concerns those that a view masks.

    Args:
        whole: Record of the stored view.
        view: Another view of its sample; like every drawn view, it masks whole chunks.
    """
    assert whole.signal is not None, "views of a cache carry signals"
    is_masked_N = view.is_teacher_masked_M[whole.view.is_teacher_masked_M]
    return ViewRecord(whole.pair, view, _cut(whole, whole.signal, view, is_masked_N))


def _cut(whole: ViewRecord, signal: TeacherSignal, view: MaskedView, is_masked_N: np.ndarray) -> TeacherSignal:
    topk, chunks, projected, spans_C4 = signal.topk, signal.chunks, signal.projected, whole.pair.chunks_C4
    if topk is not None:
        row_N = np.cumsum(is_masked_N, dtype=np.int32) - 1
        topk = take(topk, np.flatnonzero(is_masked_N[topk.rows_R]))
        topk = replace(topk, rows_R=row_N[topk.rows_R].astype(np.int32))
    if chunks is not None:
        spans_A4 = spans_C4[chunks.chunks_A]
        is_masked_A = view.is_teacher_masked_M[spans_A4[:, 0]]
        chunks = take(chunks, np.flatnonzero(is_masked_A), spans_A4[:, 3] - spans_A4[:, 2])
    if projected is not None:
        is_student_masked_N = view.is_student_masked_L[whole.view.is_student_masked_L]
        student_row_N = np.cumsum(is_student_masked_N, dtype=np.int32) - 1
        projected = take(projected, np.flatnonzero(is_student_masked_N[projected.rows_R]))
        projected = replace(projected, rows_R=student_row_N[projected.rows_R].astype(np.int32))
    cut = take_positions(signal, np.flatnonzero(is_masked_N))
    return replace(cut, topk=topk, chunks=chunks, projected=projected)
