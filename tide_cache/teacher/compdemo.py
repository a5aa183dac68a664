"""The `compdemo` pass: the teacher sees two partial views in place of each view, and predicts what each masks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from tide_cache.records import Bools, Int32s, MaskedView, SamplePair, TeacherSignal
from tide_cache.signal_table import concat, take, take_positions
from tide_cache.teacher.sorting import AnyTeacher
from tide_cache.views import draw_shown_first, partial_views


def demo_parts(
    pairs: Sequence[SamplePair], views: Sequence[Sequence[MaskedView]], seed: int, demo_ratio: float
) -> list[list[MaskedView]]:
    """Return for each sample the partial views that the teacher is shown, for all its views.

    Args:
        pairs: The samples.
        views: For each sample its views.
        seed: Mask seed.
        demo_ratio: Probability that a masked chunk is shown in pass one.
    """
    return [list(chain(*of_sample)) for of_sample in _parts(views, _splits(pairs, views, seed, demo_ratio))]


def compdemo_signals(
    teacher: AnyTeacher,
    pairs: Sequence[SamplePair],
    views: Sequence[Sequence[MaskedView]],
    seed: int,
    demo_ratio: float,
    on_views: Callable[[int], None] | None = None,
) -> list[list[TeacherSignal]]:
    """Return the signal of every view of every sample, each masked position from the forward in which it was masked.

    Args:
        teacher: The teacher.
        pairs: The samples.
        views: For each sample its views.
        seed: Mask seed.
        demo_ratio: Probability that a masked chunk is shown in pass one.
        on_views: As in `Teacher.signals`; counts partial views, at most two for a view.

    Raises:
        TeacherOutputError: An output is not finite; names the sample and view.
    """
    splits = _splits(pairs, views, seed, demo_ratio)
    parts = _parts(views, splits)
    answers = teacher.signals(pairs, [list(chain(*of_sample)) for of_sample in parts], on_views)
    result = []
    for pair, of_sample, of_split, of_answer in zip(pairs, parts, splits, answers, strict=True):
        left = iter(of_answer)
        result.append(
            [
                merge_signals(of_view, [next(left) for _ in of_view], is_shown_first_M, pair)
                for of_view, is_shown_first_M in zip(of_sample, of_split, strict=True)
            ]
        )
    return result


def _splits(
    pairs: Sequence[SamplePair], views: Sequence[Sequence[MaskedView]], seed: int, demo_ratio: float
) -> list[list[Bools]]:
    return [
        [draw_shown_first(pair, view, seed, demo_ratio) for view in of_sample]
        for pair, of_sample in zip(pairs, views, strict=True)
    ]


def _parts(
    views: Sequence[Sequence[MaskedView]], splits: Sequence[Sequence[Bools]]
) -> list[list[tuple[MaskedView, ...]]]:
    return [
        [
            tuple(partial_views(view, is_shown_first_M))
            for view, is_shown_first_M in zip(of_sample, of_split, strict=True)
        ]
        for of_sample, of_split in zip(views, splits, strict=True)
    ]


def merge_signals(
    parts: Sequence[MaskedView], signals: Sequence[TeacherSignal], is_shown_first_M: Bools, pair: SamplePair
) -> TeacherSignal:
    """Return the signals of partial views as one, in the order of positions.

    Args:
        parts: Partial views of one view; no position is masked in two of them.
        signals: Their signals.
        is_shown_first_M: The split, which is stored with them.
        pair: The sample.
    """
    positions = [np.flatnonzero(part.is_teacher_masked_M) for part in parts]
    position_N = np.concatenate(positions)
    order_N = np.argsort(position_N)
    row_of_position_M = np.zeros(len(is_shown_first_M), np.int32)
    row_of_position_M[position_N[order_N]] = np.arange(len(order_N))
    is_student_masked_L = np.logical_or.reduce([part.is_student_masked_L for part in parts])
    student_row_L = (np.cumsum(is_student_masked_L) - 1).astype(np.int32)
    joined = concat(
        [
            _renumbered(signal, row_of_position_M[of_part], student_row_L[part.is_student_masked_L])
            for signal, part, of_part in zip(signals, parts, positions, strict=True)
        ]
    )
    topk, chunks, projected = joined.topk, joined.chunks, joined.projected
    size_C = pair.chunks_C4[:, 3] - pair.chunks_C4[:, 2]
    return replace(
        take_positions(joined, order_N),
        topk=None if topk is None else take(topk, np.argsort(topk.rows_R)),
        is_shown_first_N=is_shown_first_M[position_N[order_N]],
        chunks=None if chunks is None else take(chunks, np.argsort(chunks.chunks_A), size_C[chunks.chunks_A]),
        projected=None if projected is None else take(projected, np.argsort(projected.rows_R)),
    )


def _renumbered(signal: TeacherSignal, row_N: Int32s, student_row_N: Int32s) -> TeacherSignal:
    """Return a partial view's signal with kept ids by the masked tokens of the whole view.

    Args:
        signal: Signal of a partial view.
        row_N: New number of each masked teacher token.
        student_row_N: New number of each masked student token.
    """
    topk, projected = signal.topk, signal.projected
    return replace(
        signal,
        topk=None if topk is None else replace(topk, rows_R=row_N[topk.rows_R]),
        projected=None if projected is None else replace(projected, rows_R=student_row_N[projected.rows_R]),
    )
